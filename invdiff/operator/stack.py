"""Several measurements of one image at once: exposures with different blurs, a sharp grey picture beside a coarse colour one.

    A.stack(B)       y = (A(x), B(x)),   A^T y = A^T y_A + B^T y_B

Noise is of one size over all of y. Where the measurements have sigma_A and sigma_B, stack A and (sigma_A / sigma_B) * B, and
scale the second measurement likewise: everything then has sigma_A.

Operators whose A_i^T A_i are diagonal in one basis V (`Operator.right_basis`) have a stack with a decomposition:
s^2 = sum s_i^2, U e_k = (A_i V e_k)_i / s_k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from invdiff.errors import UsageError
from invdiff.operator.algebra import Several, dimensions, flat
from invdiff.operator.contract import Operator, Shape
from invdiff.operator.svd import SVD


def stack(*operators: Any, shape: Shape | None = None) -> Operator:
    """All these measurements of one image, in one y: see `Stack`. operators: Operators, specs or deepinv Physics; one comes
    back as it is. shape: the image's, where y alone cannot tell it. Raises UsageError for what is no operator."""
    of = flat(Stack, operators)
    return of[0] if len(of) == 1 else Stack(of, None if shape is None else tuple(shape))


@dataclass(frozen=True, eq=False)
class Stack(Several):
    """y = (A(x), B(x), ...): concatenated along the channels if all are of one size (C_i, H, W), else as flat vectors.

    `split(y)` gives the measurements back. shape: the image's; without it the shape is found from y where y is not flat.
    SVD where all share the right basis: circular blurs, symmetric reflect blurs, or masks.
    Raises UsageError if the operators take no common image, and where y cannot tell the image's shape.
    """

    name: ClassVar[str] = "stack"

    shape: Shape | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "orthonormal_U", self.of[0].orthonormal_U)

    def _shapes(self, shape: Shape) -> list[Shape]:
        """Shape of each measurement of an image."""
        if self.shape is not None and tuple(shape) != self.shape:
            raise UsageError(f"{self}: made for images {dimensions(self.shape)}, got {dimensions(shape)}")
        return [tuple(one.measurement_shape(shape)) for one in self.of]

    def _join(self, parts: list[torch.Tensor]) -> torch.Tensor:
        agree = len({part.shape[2:] for part in parts}) == 1
        return torch.cat(parts if agree else [part.flatten(1) for part in parts], 1)

    def _cut(self, y: torch.Tensor, shapes: list[Shape]) -> list[torch.Tensor]:
        sizes = [shape[0] if y.ndim > 2 else math.prod(shape) for shape in shapes]
        return [part.reshape(len(y), *shape) for part, shape in zip(y.split(sizes, 1), shapes, strict=True)]

    def split(self, y: torch.Tensor) -> list[torch.Tensor]:
        """The measurements (B, *shape_i) that y (B, *measurement shape) holds."""
        return self._cut(y, self._shapes(self.image_shape(tuple(y.shape[1:]))))

    def A(self, x: torch.Tensor) -> torch.Tensor:
        self._shapes(tuple(x.shape[1:]))
        return self._join([one.A(x) for one in self.of])

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        self._require_linear("A_adjoint")
        x, *more = (one.A_adjoint(part) for one, part in zip(self.of, self.split(y), strict=True))
        return sum(more, start=x)

    def A_vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        parts = self._cut(v, self._shapes(tuple(x.shape[1:])))
        first, *more = (one.A_vjp(x, part) for one, part in zip(self.of, parts, strict=True))
        return sum(more, start=first)

    def first_guess(self, y: torch.Tensor) -> torch.Tensor:
        """Where not linear, the mean of what each measurement says."""
        if self.linear:
            return super().first_guess(y)
        guesses = [one.first_guess(part) for one, part in zip(self.of, self.split(y), strict=True)]
        return torch.stack(guesses).mean(0)

    def measurement_shape(self, shape: Shape) -> Shape:
        shapes = self._shapes(shape)
        if len({one[1:] for one in shapes}) == 1:
            return sum(one[0] for one in shapes), *shapes[0][1:]
        return (sum(map(math.prod, shapes)),)

    def image_shape(self, shape: Shape) -> Shape:
        if self.shape is not None:
            return self.shape
        return self.cached(("image", tuple(shape)), lambda: self._find_image(tuple(shape)))

    def _find_image(self, shape: Shape) -> Shape:
        """The image whose measurement has this shape: the first operator's share of the channels is tried out."""
        for channels in range(1, shape[0]):
            try:
                found = tuple(self.of[0].image_shape((channels, *shape[1:])))
                if self.measurement_shape(found) == shape:
                    return found
            except UsageError:
                continue
        raise UsageError(
            f"{self}: which image gives a measurement {dimensions(shape)} cannot be told from it; give "
            "the image's shape, as in A.stack(B, shape=(3, 64, 64))"
        )

    def observed(self, shape: Shape) -> torch.Tensor | None:
        masks = [one.observed(shape) for one in self.of]
        if all(mask is None for mask in masks):
            return None
        whole = [
            torch.ones(1, *out, dtype=torch.float64) if mask is None else mask.double().expand(1, *out)
            for mask, out in zip(masks, self._shapes(shape), strict=True)
        ]
        return self._join(whole)[0]

    @property
    def right_basis(self) -> str | None:
        bases = {one.right_basis for one in self.of}
        return bases.pop() if len(bases) == 1 else None

    @property
    def has_svd(self) -> bool:
        return self.right_basis is not None

    def svd(self, shape: Shape) -> SVD:
        """Coordinates are those of the first operator's V. Where s = 0, U is the first operator's."""
        if not self.has_svd:
            return super().svd(shape)
        first, *others = (one.svd(shape) for one in self.of)
        s = torch.stack(torch.broadcast_tensors(*(svd.singular_values for svd in (first, *others)))).norm(dim=0)
        zero = s == 0
        inverse = torch.where(zero, 0.0, 1 / torch.where(zero, 1.0, s))
        share = torch.where(zero, 1.0, first.singular_values * inverse)

        def U(c: torch.Tensor) -> torch.Tensor:
            x = first.V(inverse.to(c) * c)
            return self._join([first.U(share.to(c) * c), *(one.A(x) for one in self.of[1:])])

        def U_adjoint(y: torch.Tensor) -> torch.Tensor:
            mine, *parts = self.split(y)
            x, *more = (one.A_adjoint(part) for one, part in zip(self.of[1:], parts, strict=True))
            return share.to(y) * first.U_adjoint(mine) + inverse.to(y) * first.V_adjoint(sum(more, start=x))

        return SVD(s, U, U_adjoint, first.V, first.V_adjoint)

    @property
    def spec(self) -> str:
        """Says which operator it is; only Python builds it: operators.get(...).stack(...)."""
        shape = "" if self.shape is None else f", shape={dimensions(self.shape)}"
        return f"stack({', '.join(one.spec for one in self.of)}{shape})"
