"""PnP-DM: Principled Probabilistic Imaging using Diffusion Models as Plug-and-Play Priors.

Wu, Sun, Chen, Zhang, Yue, Bouman. NeurIPS 2024, https://arxiv.org/abs/2405.18782. Implements algorithm 1 (split Gibbs
sampling with an annealed coupling).

The posterior is split between two variables held together by a coupling rho,

    p(x, z | y) ~ p(x) N(y; A(z), sigma_y^2 I) N(z; x, rho^2 I),

and sampled in turns, while rho decreases through the noise levels:

    prior step        x ~ p(x) N(z; x, rho^2 I)                        the reverse diffusion from z at the level rho
    likelihood step   z ~ N(y; A(z), sigma_y^2 I) N(z; x, rho^2 I)     a Gaussian, if A is linear

At a fixed rho the chain is stationary at p(x, z | y), whose x is the posterior for the noise sigma_y^2 I + rho^2 A A^T: exact
as rho -> 0, with an error of order rho^2. sigma_max = sigma_min = rho runs that chain.

Differs from the paper:
- the first z is where all solvers start (invdiff/solvers/solver.py), and the sample is the last x;
- rho follows the levels of all solvers here instead of max(alpha^k rho_0, rho_min); `steps` counts them;
- the prior step takes `calls` ancestral steps, at the levels rho (1 - j / calls); calls = 1 makes x = E[x | z], whose
  chain is no Gibbs sampler but restores with few calls;
- the Langevin steps for nonlinear operators take their size from the curvature (invdiff/solvers/conditional.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.machine.random import Draws
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.samplers.ancestral import Ancestral
from invdiff.solvers.conditional import LikelihoodStep, inner_levels
from invdiff.solvers.solver import Move
from invdiff.specs.parameters import parameter, whole


@dataclass(frozen=True)
class PnPDM(LikelihoodStep):
    """Split Gibbs sampling; `calls` network calls a level, no gradients through the network."""

    name: ClassVar[str] = "pnp_dm"
    remedy: ClassVar[str] = "a smaller langevin_size"

    calls: int = parameter(4, kind=whole, low=1, help="network calls of the prior step at each level", unit="calls")

    @property
    def nfe(self) -> int:
        return self.steps * self.calls

    def walk(self, problem: Problem, prior: Prior, levels: Sequence[float], noise: Draws) -> Iterator[Move]:
        likelihood_step = self.likelihood_step(problem)
        z = self.start(problem, prior, levels[0], noise)
        for rho, next_rho in itertools.pairwise([*levels, 0.0]):
            x = self.prior_step(prior, z, rho, noise)
            z = likelihood_step(x, next_rho, noise) if next_rho > 0 else x
            yield Move(rho, next_rho, x, z, z)

    def prior_step(self, prior: Prior, z: torch.Tensor, rho: float, noise: Draws) -> torch.Tensor:
        """A draw of p(x) N(z; x, rho^2 I) up to the discretisation, for z (B, ...)."""
        *_, (_, _, x) = Ancestral().walk(prior, z, inner_levels(rho, self.calls), noise)
        return x
