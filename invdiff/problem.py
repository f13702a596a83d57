"""An inverse problem: operator, noise level and measurement, with or without the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from invdiff.errors import UsageError
from invdiff.operator import Operator, Shape
from invdiff.parameters import fraction


def check_noise(noise: Any, *, zero: bool = False) -> float:
    """sigma_y as a float in [0, 1] units, from a number or text such as "12.75/255".

    Raises UsageError unless it is more than 0 (zero=True: or equal to it, for simulating) and finite.
    """
    try:
        value = fraction(noise)
    except (TypeError, ValueError):
        raise UsageError(f"noise {noise!r} is not a number; write 0.05 or 12.75/255 (images are in [0, 1])") from None
    if zero and value == 0:
        return 0.0
    if not 0 < value < float("inf"):
        raise UsageError(
            f"noise must be more than 0, got {noise}; for a measurement that looks free of noise give its rounding "
            "error, e.g. 0.3/255 for an 8-bit file"
        )
    return value


def check_images(x: Any, what: str) -> torch.Tensor:
    """x itself if it is a finite floating-point tensor with a batch dimension. Raises UsageError otherwise."""
    if not isinstance(x, torch.Tensor):
        raise UsageError(f"{what} must be a torch tensor (B, C, H, W) in [0, 1], got {type(x).__name__}")
    if not x.is_floating_point():
        raise UsageError(f"{what} has dtype {x.dtype}; convert it to float in [0, 1], e.g. x.float() / 255")
    if x.ndim < 2 or x.numel() == 0:
        raise UsageError(f"{what} needs a batch dimension, e.g. (B, C, H, W); got shape {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise UsageError(
            f"{what} contains NaN or infinity; set those values to 0 and mask them with inpaint, or measure again"
        )
    return x


@dataclass(frozen=True, eq=False)
class Problem:
    """Y = A(X) + sigma_y Z.

    operator: A; y: measurement (B, *measurement shape), set to 0 where the operator observes nothing;
    sigma_y: noise standard deviation in [0, 1] units; image_shape: shape of one x without batch;
    truth: the clean x (B, *image_shape) where it is known.
    """

    operator: Operator
    y: torch.Tensor
    sigma_y: float
    image_shape: Shape
    truth: torch.Tensor | None = None

    def __post_init__(self) -> None:
        mask = self.operator.observed(self.image_shape)
        if mask is not None:
            # A file may hold anything where nothing was measured, white holes say; no solver may see it.
            object.__setattr__(self, "y", self.y * mask.to(self.y))

    @classmethod
    def from_measurement(cls, y: torch.Tensor, operator: Any, noise: Any) -> Problem:
        """From what was measured. operator: an Operator, its name or spec, or a deepinv Physics.

        Raises UsageError if y is not a tensor of finite floats, or no image could give a measurement of its shape.
        """
        check_images(y, "the measurement y")
        # The data step squares small numbers: half precision is for networks only.
        y = y.float() if y.dtype in (torch.float16, torch.bfloat16) else y
        operator = resolve_operator(operator)
        shape = operator.image_shape(tuple(y.shape[1:]))
        expected = operator.measurement_shape(shape)
        if tuple(y.shape[1:]) != tuple(expected):
            raise UsageError(f"{operator} measures {expected} from an image {shape}, but y is {tuple(y.shape[1:])}")
        return cls(operator, y, check_noise(noise), tuple(shape))

    @classmethod
    def from_clean(cls, x: torch.Tensor, operator: Any, noise: Any, seed: int = 0) -> Problem:
        """Simulate a measurement of x (B, C, H, W), whose noise depends on (seed, position in the batch) alone."""
        from invdiff.restoration import degrade

        operator = resolve_operator(operator)
        y = degrade(x, operator, noise=noise, seed=seed)
        return cls(operator, y, check_noise(noise), tuple(x.shape[1:]), x)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """||y - A x|| / (sigma_y sqrt(m)) of each x (B, ...): about 1 when the noise is explained. Shape (B,)."""
        difference = self.y - self.operator.A(x)
        m = max(1, self.operator.measured_count(self.image_shape))
        return difference.flatten(1).norm(dim=1) / (self.sigma_y * m**0.5)

    def to(self, device: torch.device) -> Problem:
        """The same problem on a device."""
        truth = None if self.truth is None else self.truth.to(device)
        return Problem(self.operator, self.y.to(device), self.sigma_y, self.image_shape, truth)

    def rows(self, index: torch.Tensor | list[int]) -> Problem:
        """The same problem for these rows of the batch (repeats allowed)."""
        truth = None if self.truth is None else self.truth[index]
        return Problem(self.operator, self.y[index], self.sigma_y, self.image_shape, truth)


def resolve_operator(operator: Any) -> Operator:
    """An Operator from an Operator, a name or spec, or a deepinv Physics."""
    if isinstance(operator, Operator):
        return operator
    if isinstance(operator, str):
        from invdiff import operators

        return operators.get(operator)
    from invdiff.bridge import as_operator

    return as_operator(operator)
