"""invdiff: recover an image X from Y = A(X) + sigma_y Z with a trained diffusion model as the prior.

The public names are imported when first used, so that `import invdiff` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from invdiff import operators, priors, solvers
    from invdiff.errors import InvdiffError, UsageError
    from invdiff.evaluation.api import evaluate
    from invdiff.operator import Operator
    from invdiff.priors import load_prior
    from invdiff.priors.base import Prior
    from invdiff.problem import Problem
    from invdiff.restoration import degrade, restore, states
    from invdiff.schedule import Schedule
    from invdiff.solution import Solution

_PUBLIC = {
    "InvdiffError": "invdiff.errors",
    "UsageError": "invdiff.errors",
    "Operator": "invdiff.operator",
    "Prior": "invdiff.priors.base",
    "Problem": "invdiff.problem",
    "Schedule": "invdiff.schedule",
    "Solution": "invdiff.solution",
    "degrade": "invdiff.restoration",
    "evaluate": "invdiff.evaluation.api",
    "load_prior": "invdiff.priors",
    "restore": "invdiff.restoration",
    "states": "invdiff.restoration",
}
_MODULES = ("operators", "priors", "solvers")

__all__ = [
    "InvdiffError", "Operator", "Prior", "Problem", "Schedule", "Solution", "UsageError", "degrade", "evaluate", "load_prior",
    "operators", "priors", "restore", "solvers", "states",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"invdiff.{name}")
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'invdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC, *_MODULES])
