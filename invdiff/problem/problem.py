"""An inverse problem: operator, noise and measurement, with or without the truth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from invdiff.errors import UsageError
from invdiff.noise import Gaussian, NoiseModel, noise_model
from invdiff.operator.checks import check_answer, check_images
from invdiff.operator.contract import Operator, Shape
from invdiff.operator.kept import lasting
from invdiff.operator.weighted import Weighted, for_rows
from invdiff.operators import resolve_operator
from invdiff.problem.simulation import degrade
from invdiff.problem.whitening import average_deviation, whiten
from invdiff.specs.registry import import_target


@dataclass(frozen=True, eq=False)
class Problem:
    """Y = A(X) + sigma_y Z, or A(X) seen through another noise model.

    operator: A; y: measurement (B, *measurement shape), set to 0 where the operator observes nothing;
    sigma_y: noise standard deviation in [0, 1] units; image_shape: shape of one x without batch;
    truth: the clean x (B, *image_shape) where it is known; noise: the model, None for a Gaussian.
    With a model that is not white Gaussian `of` gives the problem its sigma_y: the root mean square, over the measured
    values, of the standard deviation that y itself tells. It belongs to all rows together, so that `restore` takes images
    whose noise is read from y one by one.
    """

    operator: Operator
    y: torch.Tensor
    sigma_y: float
    image_shape: Shape
    truth: torch.Tensor | None = None
    noise: NoiseModel | None = None

    def __post_init__(self) -> None:
        mask = self._mask
        if mask is not None:
            # A file may hold anything where nothing was measured, white holes say; no solver may see it.
            object.__setattr__(self, "y", self.y * mask.to(self.y))

    @property
    def _mask(self) -> torch.Tensor | None:
        return self.operator.observed(self.image_shape)

    @property
    def noise_model(self) -> NoiseModel:
        """The model, Gaussian ones too."""
        return self.noise or Gaussian(self.sigma_y)

    @classmethod
    def of(
        cls, operator: Operator, y: torch.Tensor, noise: NoiseModel, shape: Shape, truth: torch.Tensor | None = None
    ) -> Problem:
        """With the sigma_y that the noise model has, or gives for this y. Raises UsageError if it cannot have given y."""
        if isinstance(noise, Gaussian):
            return cls(operator, y, noise.sigma, shape, truth)
        problem = cls(operator, y, 1.0, shape, truth, noise)
        noise.check_measurement(problem.y)
        return problem.rows(list(range(len(y))))

    @classmethod
    def from_measurement(cls, y: torch.Tensor, operator: Any, noise: Any) -> Problem:
        """From what was measured. operator: an Operator, its name or spec, or a deepinv Physics; noise: sigma_y, a spec
        such as "poisson:gain=0.02", or a NoiseModel.

        Raises UsageError if y is not a tensor of finite floats, no image could give a measurement of its shape or sign, or A
        answers with something else than real measurements of that shape.
        """
        check_images(y, "the measurement y")
        # The data step squares small numbers: half precision is for networks only.
        y = y.float() if y.dtype in (torch.float16, torch.bfloat16) else y
        operator = resolve_operator(operator)
        shape = operator.image_shape(tuple(y.shape[1:]))
        expected = operator.measurement_shape(shape)
        if tuple(y.shape[1:]) != tuple(expected):
            raise UsageError(f"{operator} measures {expected} from an image {shape}, but y is {tuple(y.shape[1:])}")
        with torch.no_grad():
            answer = check_answer(operator, operator.A(y.new_zeros(1, *shape)))
        if tuple(answer.shape[1:]) != tuple(expected):
            raise UsageError(
                f"{operator}: A gives {tuple(answer.shape[1:])} for an image {tuple(shape)}, but measurement_shape says "
                f"{tuple(expected)}; correct one of them (invdiff operators check tells which)"
            )
        return cls.of(operator, y, noise_model(noise), tuple(shape))

    @classmethod
    def from_clean(cls, x: torch.Tensor, operator: Any, noise: Any, seed: int = 0) -> Problem:
        """Simulate a measurement of x (B, C, H, W), whose noise depends on (seed, position in the batch) alone."""
        operator = resolve_operator(operator)
        y = degrade(x, operator, noise=noise, seed=seed)
        return cls.of(operator, y, noise_model(noise), tuple(x.shape[1:]), x)

    @classmethod
    def load(cls, path: str | os.PathLike[str], operator: Any = None, noise: Any = None) -> Problem:
        """From a measurement file that `save` or `invdiff degrade` wrote; operator and noise stand in for the file's own."""
        return import_target("invdiff.problem.files:load")(path).problem(operator, noise)

    def save(self, path: str | os.PathLike[str], seed: int | None = None) -> None:
        """Write y, operator, arrays and noise to one .npz or .safetensors, all that `load` needs; the truth is left out."""
        import_target("invdiff.problem.files:save")(self, path, seed)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """||y - A x|| / (sigma_y sqrt(m)) of each x (B, ...): about 1 when the noise is explained. Shape (B,).

        Where the noise differs from entry to entry, each counts in units of its own deviation."""
        white = self.whitened()
        difference = white.y - white.operator.A(x)
        mask = white._mask
        counted = torch.ones_like(white.y) if mask is None else mask.to(white.y).expand_as(white.y)
        m = counted.flatten(1).sum(1).clamp(min=1)  # rows may leave out different entries
        return difference.flatten(1).norm(dim=1) / (self.sigma_y * m**0.5)

    def log_likelihood(self, x: torch.Tensor) -> torch.Tensor:
        """log p(y | x) of each x (B, ...), (B,): the noise model's own, whatever it is. Differentiable in x."""
        values = self.noise_model.log_likelihood(self.y, self.operator.A(x))
        mask = self._mask
        return (values if mask is None else values * mask.to(values)).flatten(1).sum(1)

    def likelihood_score(self, x: torch.Tensor) -> torch.Tensor:
        """grad_x log p(y | x), (B, *image shape): J(x)^T (y - A x) / variance(A x), for a differentiable operator.

        An entry that is not measured is 0 in y and in A x, and says nothing."""
        z = self.operator.A(x)
        return self.operator.A_vjp(x, self.noise_model.score(self.y, z))

    def whitened(self) -> Problem:
        """The same measurement with Gaussian noise of one size: itself, if its noise is that; else the locally Gaussian
        problem, W y = W A x + sigma_y n with W = diag(sigma_y / sigma_i) and sigma_i the deviation that y itself tells;
        where the noise is correlated W is a filter. Computed once.

        W has no unit, so sigma_y stays in [0, 1] units. The operator W A has no decomposition (see whitening.py); noise
        that has one size already (laplace, uniform) leaves A as it is."""
        return self._whitened

    @cached_property
    def _whitened(self) -> Problem:
        if self.noise is None:
            return self
        operator = whiten(self.operator, self.noise, self.y, self.sigma_y, self._mask)
        y = operator.W(self.y) if isinstance(operator, Weighted) and operator is not self.operator else self.y
        return Problem(operator, y, self.sigma_y, self.image_shape, self.truth)

    def lasting(self) -> Problem:
        """The same problem with a y that no one writes to, so that data steps may keep what they make of it."""
        problem = replace(self, y=self.y.view_as(self.y))
        lasting(problem.y)
        return problem

    def to(self, device: torch.device) -> Problem:
        """The same problem on a device."""
        operator, truth = self.operator, None if self.truth is None else self.truth.to(device)
        if isinstance(operator, Weighted):
            operator = replace(operator, weights=operator.weights.to(device))
        return Problem(operator, self.y.to(device), self.sigma_y, self.image_shape, truth, self.noise)

    @classmethod
    def batch(cls, problems: Sequence[Problem]) -> Problem:
        """Problems of one operator, noise model and shape as one; truths are kept where all have one."""
        first = problems[0]
        if len(problems) == 1:
            return first
        truths = [problem.truth for problem in problems if problem.truth is not None]
        return cls.of(
            first.operator,
            torch.cat([problem.y for problem in problems]),
            first.noise_model,
            first.image_shape,
            torch.cat(truths) if len(truths) == len(problems) else None,
        )

    def rows(self, index: torch.Tensor | Sequence[int]) -> Problem:
        """The same problem for these rows of the batch (repeats allowed)."""
        if self.noise is None and list(index) == list(range(len(self.y))):
            return self  # without a copy
        operator = for_rows(self.operator, index)
        truth, y = None if self.truth is None else self.truth[index], self.y[index]
        sigma_y = self.sigma_y
        if self.noise is not None:
            # Over different rows only: a thousand samples of one image have the sigma_y of that image, to the last bit.
            sigma_y = float(average_deviation(self.noise, y, self._mask).square().unique().mean().sqrt())
        return Problem(operator, y, sigma_y, self.image_shape, truth, self.noise)
