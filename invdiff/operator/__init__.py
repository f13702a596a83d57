"""What a forward operator is: its contract, and what is made of operators (chains, sums, stacks, inverses by iteration)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invdiff.specs.faces import face

if TYPE_CHECKING:
    from invdiff.operator.contract import Map, Operator, Shape
    from invdiff.operator.deepinv_physics import as_operator
    from invdiff.operator.svd import SVD
    from invdiff.specs.parameters import parameter

__getattr__, __dir__ = face(
    __name__,
    {
        "Map": "invdiff.operator.contract", "Operator": "invdiff.operator.contract", "SVD": "invdiff.operator.svd",
        "Shape": "invdiff.operator.contract", "as_operator": "invdiff.operator.deepinv_physics",
        "parameter": "invdiff.specs.parameters",
    },
)  # fmt: skip
__all__ = ["SVD", "Map", "Operator", "Shape", "as_operator", "parameter"]
