"""RePaint: Inpainting using Denoising Diffusion Probabilistic Models.

Lugmayr, Danelljan, Romero, Yu, Timofte, Van Gool. CVPR 2022, https://arxiv.org/abs/2201.09865. Implements algorithm 1 with
jumps of several levels.

Each step takes what is known from the measurement, noised to the level reached, and the rest from an ancestral step of
the network. The two do not fit together at first: so every `jump` levels the state is noised back up by as many levels,
x_t = x_s + sqrt(sigma_t^2 - sigma_s^2) z, and comes down again, until it has come down `resamplings` times.

Differs from the paper:
- start and levels are those of all solvers here (invdiff/solvers/solver.py); 20 levels by default instead of 250, and
  jump = 5, resamplings = 4 instead of 10 and 10;
- in the coordinate x = x_0 + sigma n, images in [0, 1];
- any operator with a singular value decomposition, of which a mask is the simplest: in its coordinates a direction is known
  where s > 0, to be y_bar = U^T y / s with noise tau = sigma_y / s;
- y may be noisy: y_bar is taken as the state of its direction at the level tau. Above, the known part is y_bar and noise of
  variance sigma_s^2 - tau^2, so that it holds sigma_s^2 in all. Below, the network goes down alone, and a jump up has to go
  towards y_bar or the measurement would be forgotten: the state is drawn given both its ends (a Brownian bridge), with mean
  x_s + f (y_bar - x_s) and variance f (tau^2 - sigma_t^2), f = (sigma_t^2 - sigma_s^2) / (tau^2 - sigma_s^2). There is no
  weight to scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.machine.random import Draws
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.samplers.transitions import DDIM, Estimate
from invdiff.solvers.solver import Move, Solver, spectral_measurement
from invdiff.specs.parameters import parameter, whole


@dataclass(frozen=True)
class RePaint(Solver):
    """Known directions from the noised measurement, with resampling; several network calls a level, no gradients."""

    name: ClassVar[str] = "repaint"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "svd"})

    jump: int = parameter(5, kind=whole, low=1, help="levels to go back up", unit="levels")
    resamplings: int = parameter(4, kind=whole, low=1, help="times to come down each stretch; 1: no resampling")

    def route(self, count: int) -> list[tuple[int, int]]:
        """The levels (from, to) of all moves through `count` levels, as indices: 0 is the first, `count` is no noise."""
        visits = dict.fromkeys(range(count - 1, self.jump - 1, -self.jump), self.resamplings - 1)
        place, moves = 0, []
        while place < count:
            moves.append((place, place + 1))
            place += 1
            if visits.get(place, 0) > 0:
                visits[place] -= 1
                moves.append((place, place - self.jump))
                place -= self.jump
        return moves

    def moves(self, levels: Sequence[float]) -> int:
        return sum(to > place for place, to in self.route(len(levels)))

    @property
    def nfe(self) -> int:
        return self.steps + (self.resamplings - 1) * self.jump * ((self.steps - 1) // self.jump)

    def walk(self, problem: Problem, prior: Prior, levels: Sequence[float], noise: Draws) -> Iterator[Move]:
        svd = problem.operator.svd(problem.image_shape)
        y_bar, tau, measured = spectral_measurement(problem, problem.y)
        ancestral = DDIM(1.0)

        def set_known(x: torch.Tensor, sigma: float) -> torch.Tensor:
            spread = torch.sqrt((sigma**2 - tau**2).clamp(min=0))
            known = y_bar + spread * svd.V_adjoint(noise())
            return x + svd.V(torch.where(measured & (tau <= sigma), known - svd.V_adjoint(x), 0.0))

        def noised(x: torch.Tensor, sigma: float, higher: float) -> torch.Tensor:
            z = noise()
            free = x + (higher**2 - sigma**2) ** 0.5 * z
            ahead = measured & (tau > sigma)  # the measurement's own level is still to come
            x_bar = svd.V_adjoint(x)
            f = ((higher**2 - sigma**2) / torch.where(ahead, tau**2 - sigma**2, 1.0)).clamp(max=1)
            spread = torch.sqrt(f * (tau**2 - higher**2).abs())  # past tau, f = 1
            target = x_bar + f * (y_bar - x_bar) + spread * svd.V_adjoint(z)
            return free + svd.V(torch.where(ahead, target - svd.V_adjoint(free), 0.0))

        x = self.start(problem, prior, levels[0], noise)
        every = [*levels, 0.0]
        for place, to in self.route(len(levels)):
            sigma, next_sigma = every[place], every[to]
            if next_sigma > sigma:
                x = noised(x, sigma, next_sigma)
                continue
            clean = prior.denoise(x, sigma)
            x = ancestral(x, Estimate(clean, clean), sigma, next_sigma, noise)
            if next_sigma > 0:
                x = set_known(x, next_sigma)
            yield Move(sigma, next_sigma, clean, clean, x)
