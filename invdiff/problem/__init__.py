"""An inverse problem Y = A(X) + noise: measured, simulated, read from a file, whitened. What all solvers are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invdiff.specs.faces import face

if TYPE_CHECKING:
    from invdiff.problem.problem import Problem
    from invdiff.problem.simulation import degrade

__getattr__, __dir__ = face(__name__, {"Problem": "invdiff.problem.problem", "degrade": "invdiff.problem.simulation"})
__all__ = ["Problem", "degrade"]
