"""A Problem goes in, a Solution comes out: the choice of a solver, the batches, and the loop that runs every solver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invdiff.specs.faces import face

if TYPE_CHECKING:
    from invdiff.restoration.api import restore, states
    from invdiff.restoration.solution import Solution

__getattr__, __dir__ = face(
    __name__,
    {
        "Solution": "invdiff.restoration.solution",
        "restore": "invdiff.restoration.api",
        "states": "invdiff.restoration.api",
    },
)
__all__ = ["Solution", "restore", "states"]
