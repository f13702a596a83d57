"""Operators made of operators: here the adjoint, multiples and sums; chains and stacks in `chain.py`, `stack.py`.

    A.H                    A^T                 A.then(B)   "a | b"    y = B(A(x))
    2 * A                  c A(x)              A.stack(B)             y = (A(x), B(x))
    A + B                  A(x) + B(x)

What is known of the parts stays known of the whole, so that closed forms survive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from invdiff.errors import UsageError
from invdiff.operator.contract import Map, Operator, Shape
from invdiff.operator.svd import SVD
from invdiff.operator.wrapped import Wrapped
from invdiff.specs.registry import import_target

# The loss that leaves most open decides which solver to take.
_HARDEST_FIRST = ("other", "colour", "mixing", "downsampling", "inpainting", "motion", "blur", "denoising")


@dataclass(frozen=True, eq=False)
class Adjoint(Operator):
    """B = A^T of a linear operator A: measurements are its images, and the other way round. `.H` gives A back.

    Its inverses are A's with the sides changed. B = V diag(s) U^T, so that U and V change places too; but the right side
    of a decomposition must be orthonormal everywhere and U may be anything where s = 0, hence `orthonormal_U`.
    """

    name: ClassVar[str] = "adjoint"
    orthonormal_U: ClassVar[bool] = True  # it is V of A

    of: Operator

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self.of.A_adjoint(x)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.of.A(y)

    def measurement_shape(self, shape: Shape) -> Shape:
        return self.of.image_shape(shape)

    def image_shape(self, shape: Shape) -> Shape:
        return self.of.measurement_shape(shape)

    @property
    def H(self) -> Operator:
        return self.of

    @property
    def has_svd(self) -> bool:
        return self.of.has_svd and self.of.orthonormal_U

    def svd(self, shape: Shape) -> SVD:
        if not self.has_svd:
            return super().svd(shape)
        svd = self.of.svd(self.of.image_shape(shape))
        return SVD(svd.singular_values, U=svd.V, U_adjoint=svd.V_adjoint, V=svd.U, V_adjoint=svd.U_adjoint)

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        if self.has_svd:
            return super().prox_l2(z, y, gamma)
        # z + (gamma B^T B + I)^-1 gamma B^T (y - B z), and B^T B = A A^T.
        return z + self.of.solve_data(gamma * self.of.A(y - self.of.A_adjoint(z)), gamma, 1.0)

    def solve_data(self, v: torch.Tensor, a: float, b: float) -> torch.Tensor:
        if self.has_svd:
            return super().solve_data(v, a, b)
        # (a A^T A + b I)^-1 v is the proximal point of v / b for a measurement of zeros.
        zeros = v.new_zeros(v.shape[0], *self.of.measurement_shape(tuple(v.shape[1:])))
        return self.of.prox_l2(v / b, zeros, a / b)

    @property
    def remedy(self) -> str:
        return self.of.remedy

    @property
    def spec(self) -> str:
        """Says which operator it is; only Python builds it: operators.get(...).H."""
        return f"{enclosed(self.of)}.H"

    def settings(self) -> dict[str, Any]:
        return {**self.of.settings(), "name": self.name, "spec": self.spec}


@dataclass(frozen=True, eq=False)
class Scaled(Wrapped):
    """y = c A(x), with a finite c that is not 0: one measurement counted for more, another gain, another sign.

    Everything is A's with other numbers: c A = (sign(c) U) diag(|c| s) V^T.
    """

    name: ClassVar[str] = "scaled"
    keeps: ClassVar[tuple[str, ...]] = (*Wrapped.keeps, "orthonormal_U", "channelwise", "pixelwise")

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.factor) or self.factor == 0:
            raise UsageError(f"{self.factor} * {self.of}: the factor must be a finite number that is not 0")

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * self.of.A(x)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.factor * self.of.A_adjoint(y)

    def A_vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.factor * self.of.A_vjp(x, v)

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        return self.of.A_dagger(y / self.factor)

    def first_guess(self, y: torch.Tensor) -> torch.Tensor:
        return self.of.first_guess(y / self.factor)

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        return self.of.prox_l2(z, y / self.factor, gamma * self.factor**2)

    def solve_data(self, v: torch.Tensor, a: float, b: float) -> torch.Tensor:
        return self.of.solve_data(v, a * self.factor**2, b)

    def data_preconditioner(self, shape: Shape, a: float, b: float) -> Map | None:
        return self.of.data_preconditioner(shape, a * self.factor**2, b)

    @property
    def has_svd(self) -> bool:
        return self.of.has_svd

    def svd(self, shape: Shape) -> SVD:
        svd, sign = self.of.svd(shape), math.copysign(1.0, self.factor)
        return SVD(
            abs(self.factor) * svd.singular_values,
            U=lambda c: sign * svd.U(c),
            U_adjoint=lambda y: sign * svd.U_adjoint(y),
            V=svd.V,
            V_adjoint=svd.V_adjoint,
        )

    @property
    def tight(self) -> float | None:
        return None if self.of.tight is None else abs(self.factor) * self.of.tight

    @property
    def right_basis(self) -> str | None:
        return self.of.right_basis

    @property
    def spec(self) -> str:
        """Says which operator it is; only Python builds it: 2 * operators.get(...)."""
        return f"{str(self.factor).removesuffix('.0')} * {enclosed(self.of)}"

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "factor": self.factor}


def multiple(operator: Operator, factor: float) -> Scaled:
    """factor A(x); a multiple of a multiple is one multiple."""
    return Scaled(operator.of, operator.factor * factor) if isinstance(operator, Scaled) else Scaled(operator, factor)


@dataclass(frozen=True, eq=False)
class Several(Operator):
    """What operators made of several others share: `of`, capabilities, and records that list them."""

    of: tuple[Operator, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        decisive = [one for one in self.of if not one.linear] or self.of
        families = {one.family for one in decisive}
        hardest = next((name for name in _HARDEST_FIRST if name in families), "other")
        object.__setattr__(self, "linear", all(one.linear for one in self.of))
        object.__setattr__(self, "differentiable", all(one.differentiable for one in self.of))
        object.__setattr__(self, "family", families.pop() if len(families) == 1 else hardest)

    def usable_shape(self, shape: Shape) -> Shape:
        """The largest shape that all can take: each may shrink what the others left."""
        before: Shape | None = None
        while shape != before:
            before = shape
            for one in self.of:
                shape = one.usable_shape(shape)
        return shape

    def settings(self) -> dict[str, Any]:
        """The name, the spec, and the settings of every operator that it is made of."""
        return {**super().settings(), "of": [one.settings() for one in self.of]}


def flat(kind: type[Several], operators: Sequence[Any]) -> tuple[Operator, ...]:
    """Operators, specs or deepinv Physics as Operators, with those of the kind taken apart: where the brackets were makes
    no difference. Raises UsageError for what is no operator."""
    # The catalogue of operators stands above this room, so it is found by name.
    resolve = import_target("invdiff.operators:resolve_operator")
    found = [resolve(one) for one in operators]
    return tuple(part for one in found for part in (one.of if isinstance(one, kind) else (one,)))


def enclosed(operator: Operator) -> str:
    """The spec, in brackets where it is an expression."""
    return f"({operator.spec})" if isinstance(operator, (Several, Scaled)) else operator.spec


def dimensions(shape: Shape) -> str:
    """3x64x64 for (3, 64, 64)."""
    return "x".join(map(str, shape))


@dataclass(frozen=True, eq=False)
class Sum(Several):
    """y = A(x) + B(x) + ..., all of one measurement shape. Inverses use conjugate gradients.

    Raises UsageError, naming both shapes, if the measurements differ in shape.
    """

    name: ClassVar[str] = "sum"

    def A(self, x: torch.Tensor) -> torch.Tensor:
        self.measurement_shape(tuple(x.shape[1:]))
        return sum((one.A(x) for one in self.of[1:]), start=self.of[0].A(x))

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        self._require_linear("A_adjoint")
        return sum((one.A_adjoint(y) for one in self.of[1:]), start=self.of[0].A_adjoint(y))

    def A_vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return sum((one.A_vjp(x, v) for one in self.of[1:]), start=self.of[0].A_vjp(x, v))

    def measurement_shape(self, shape: Shape) -> Shape:
        out = tuple(self.of[0].measurement_shape(shape))
        for one in self.of[1:]:
            other = tuple(one.measurement_shape(shape))
            if other != out:
                raise UsageError(
                    f"{self}: {self.of[0]} gives {dimensions(out)} and {one} gives {dimensions(other)} for an image "
                    f"{dimensions(shape)}, which cannot be added; stack(...) keeps both"
                )
        return out

    def image_shape(self, shape: Shape) -> Shape:
        found = tuple(self.of[0].image_shape(shape))
        self.measurement_shape(found)
        return found

    def observed(self, shape: Shape) -> torch.Tensor | None:
        """Measured where any term measures."""
        union = torch.zeros(())
        for one in self.of:
            mask = one.observed(shape)
            if mask is None:
                return None
            union = torch.maximum(union.to(mask), mask)
        return union

    @property
    def spec(self) -> str:
        """Says which operator it is; only Python builds it: operators.get(...) + operators.get(...)."""
        return " + ".join(enclosed(one) for one in self.of)


def add(*operators: Operator) -> Sum:
    """A(x) + B(x) + ...; a sum of sums is one sum."""
    return Sum(flat(Sum, operators))
