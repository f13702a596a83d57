"""What operators made of one other share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from invdiff.operator.contract import Operator, Shape


@dataclass(frozen=True, eq=False)
class Wrapped(Operator):
    """An operator of A's shapes. A subclass says what it computes; `keeps`: the capabilities that it has as A has them."""

    keeps: ClassVar[tuple[str, ...]] = ("linear", "differentiable", "family")

    of: Operator

    def __post_init__(self) -> None:
        super().__post_init__()
        for capability in self.keeps:
            object.__setattr__(self, capability, getattr(self.of, capability))

    def measurement_shape(self, shape: Shape) -> Shape:
        return self.of.measurement_shape(shape)

    def image_shape(self, shape: Shape) -> Shape:
        return self.of.image_shape(shape)

    def usable_shape(self, shape: Shape) -> Shape:
        return self.of.usable_shape(shape)

    def observed(self, shape: Shape) -> torch.Tensor | None:
        return self.of.observed(shape)

    @property
    def remedy(self) -> str:
        return self.of.remedy

    def settings(self) -> dict[str, Any]:
        return {**self.of.settings(), "name": self.name, "spec": self.spec}
