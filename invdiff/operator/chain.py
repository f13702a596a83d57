"""Chains of operators, y = C(B(A(x))), that keep the structure of their links.

    A.then(B), operators.get("a | b")        (B A)^T = A^T B^T,  J(x)^T v = J_A(x)^T J_B(A x)^T v

Fast paths survive in two ways. Neighbours with a common closed form become one (`Operator.merged`): two filters one filter,
two masks one mask. And a link with A A^T = c^2 I (`Operator.tight`: the luma, block means) carries a decomposition of what
follows: U diag(s) V^T A = U diag(c s) (A^T V / c)^T, whose right side is orthonormal because A^T / c is an isometry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from invdiff.errors import UsageError
from invdiff.operator.algebra import Adjoint, Scaled, Several, dimensions, enclosed, flat
from invdiff.operator.contract import Map, Operator, Shape
from invdiff.operator.svd import SVD


def compose(*operators: Any) -> Operator:
    """y = last(... first(x)): Operators, specs or deepinv Physics, in the order in which they act. One comes back as it is.

    Raises UsageError for what is no operator.
    """
    links = flat(Composition, operators)
    return links[0] if len(links) == 1 else Composition(links)


def merge(first: Operator, second: Operator) -> Operator | None:
    """One operator that is second after first and has a closed form; None if there is none."""
    if isinstance(second, Scaled):
        merged = merge(first, second.of)
        return None if merged is None else second.factor * merged
    if isinstance(first, Scaled) and second.linear:
        merged = merge(first.of, second)
        return None if merged is None else first.factor * merged
    if isinstance(first, Adjoint) and isinstance(second, Adjoint):
        merged = merge(second.of, first.of)
        return None if merged is None else merged.H
    return first.merged(second)


def simplified(links: Sequence[Operator]) -> tuple[Operator, ...]:
    """The same map in fewer or cheaper steps: identities go, mixing channels comes before what treats each alone,
    neighbours are merged."""
    order = [link for link in links if not link.neutral] or [links[-1]]
    for last in range(len(order)):
        for i in range(last, 0, -1):
            if order[i].pixelwise and order[i - 1].channelwise:
                order[i - 1], order[i] = order[i], order[i - 1]
    parts: list[Operator] = []
    for part in order:
        while parts and (merged := merge(parts[-1], part)) is not None:
            parts.pop()
            part = merged
        parts.append(part)
    return tuple(parts)


@dataclass(frozen=True, eq=False)
class Composition(Several):
    """y = last(... first(x)), of two links or more. Shapes are those of the links; an SVD, where structure gives one.

    Raises UsageError, naming the link and the shapes, if a link does not take what the one before it gives.
    """

    name: ClassVar[str] = "composition"

    def __post_init__(self) -> None:
        super().__post_init__()
        for capability in ("channelwise", "pixelwise"):
            object.__setattr__(self, capability, all(getattr(link, capability) for link in self.of))
        object.__setattr__(self, "orthonormal_U", self.parts[-1].orthonormal_U)

    @property
    def parts(self) -> tuple[Operator, ...]:
        """What is computed in place of the links."""
        parts: tuple[Operator, ...] = self.cached("parts", lambda: simplified(self.of))
        return parts

    def A(self, x: torch.Tensor) -> torch.Tensor:
        self.measurement_shape(tuple(x.shape[1:]))
        for part in self.parts:
            x = part.A(x)
        return x

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        self._require_linear("A_adjoint")
        self.image_shape(tuple(y.shape[1:]))
        for part in reversed(self.parts):
            y = part.A_adjoint(y)
        return y

    def A_vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        inputs = [x]
        for part in self.parts[:-1]:
            inputs.append(part.A(inputs[-1]))
        for part, entering in zip(reversed(self.parts), reversed(inputs), strict=True):
            v = part.A_vjp(entering, v)
        return v

    def first_guess(self, y: torch.Tensor) -> torch.Tensor:
        if self.linear:
            return super().first_guess(y)
        for link in reversed(self.of):
            y = link.first_guess(y)
        return y

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        return self.parts[0].prox_l2(z, y, gamma) if len(self.parts) == 1 else super().prox_l2(z, y, gamma)

    def data_preconditioner(self, shape: Shape, a: float, b: float) -> Map | None:
        return self.parts[0].data_preconditioner(shape, a, b) if len(self.parts) == 1 else None

    def measurement_shape(self, shape: Shape) -> Shape:
        out = tuple(shape)
        for number, link in enumerate(self.of, 1):
            try:
                out = tuple(link.measurement_shape(out))
            except UsageError as error:
                raise UsageError(
                    f"{self}: link {number}, {link}, does not take {dimensions(out)}, which it gets for an image "
                    f"{dimensions(shape)}: {error}"
                ) from None
        return out

    def image_shape(self, shape: Shape) -> Shape:
        found = tuple(shape)
        for number, link in reversed(list(enumerate(self.of, 1))):
            try:
                found = tuple(link.image_shape(found))
            except UsageError as error:
                raise UsageError(
                    f"{self}: link {number}, {link}, does not give {dimensions(found)}, which a measurement "
                    f"{dimensions(shape)} asks of it: {error}"
                ) from None
        return found

    def usable_shape(self, shape: Shape) -> Shape:
        """The first link's, made smaller until the rest takes all of what that link gives."""
        first, rest = self.of[0], compose(*self.of[1:])
        shape = first.usable_shape(shape)
        out = tuple(first.measurement_shape(shape))
        usable = tuple(rest.usable_shape(out))
        return shape if usable == out else first.image_shape(usable)

    def observed(self, shape: Shape) -> torch.Tensor | None:
        """What the last part measures: entries that a mask at the end loses are place-holders."""
        return self.parts[-1].observed(self._before_last(shape))

    def _before_last(self, shape: Shape) -> Shape:
        """Shape of what the last part gets."""
        for part in self.parts[:-1]:
            shape = tuple(part.measurement_shape(shape))
        return shape

    @property
    def _carried(self) -> float | None:
        """c of all parts but the last together, if each of them is tight."""
        scales = [part.tight for part in self.parts[:-1]]
        return None if None in scales else math.prod(scale for scale in scales if scale is not None)

    @property
    def tight(self) -> float | None:
        carried, last = self._carried, self.parts[-1].tight
        return None if carried is None or last is None else carried * last

    @property
    def right_basis(self) -> str | None:
        return self.parts[0].right_basis if len(self.parts) == 1 else None

    @property
    def has_svd(self) -> bool:
        return self._carried is not None and self.parts[-1].has_svd

    def svd(self, shape: Shape) -> SVD:
        c = self._carried
        if c is None or not self.has_svd:
            return super().svd(shape)
        self.measurement_shape(shape)
        last = self.parts[-1].svd(self._before_last(shape))
        if len(self.parts) == 1:
            return last

        def V(z: torch.Tensor) -> torch.Tensor:
            x = last.V(z)
            for part in reversed(self.parts[:-1]):
                x = part.A_adjoint(x)
            return x / c

        def V_adjoint(x: torch.Tensor) -> torch.Tensor:
            for part in self.parts[:-1]:
                x = part.A(x)
            return last.V_adjoint(x / c)

        return SVD(c * last.singular_values, last.U, last.U_adjoint, V, V_adjoint)

    @property
    def remedy(self) -> str:
        return self.parts[-1].remedy

    @property
    def spec(self) -> str:
        """Text that builds it again, e.g. "gaussian_blur:sigma=1 | downsample"."""
        return " | ".join(enclosed(link) for link in self.of)
