"""invdiff: recover an image X from Y = A(X) + sigma_y Z with a trained diffusion model as the prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invdiff.specs.faces import face

if TYPE_CHECKING:
    from invdiff import noise, operators, priors, samplers, solvers
    from invdiff.diffusion.schedule import Schedule
    from invdiff.errors import InvdiffError, UsageError
    from invdiff.evaluation.api import evaluate
    from invdiff.machine.versions import __version__
    from invdiff.operator import Operator
    from invdiff.priors import Prior, load_prior
    from invdiff.problem import Problem, degrade
    from invdiff.restoration import Solution, restore, states

__getattr__, __dir__ = face(
    __name__,
    {
        "doctor": "", "noise": "", "operators": "", "priors": "", "samplers": "", "solvers": "",
        "InvdiffError": "invdiff.errors", "UsageError": "invdiff.errors",
        "Operator": "invdiff.operator.contract", "Prior": "invdiff.priors.prior", "Problem": "invdiff.problem.problem",
        "Schedule": "invdiff.diffusion.schedule", "Solution": "invdiff.restoration.solution",
        "degrade": "invdiff.problem.simulation", "evaluate": "invdiff.evaluation.api",
        "load_prior": "invdiff.priors.stored.loading", "restore": "invdiff.restoration.api",
        "states": "invdiff.restoration.api", "__version__": "invdiff.machine.versions",
    },
)  # fmt: skip
__all__ = [
    "InvdiffError", "Operator", "Prior", "Problem", "Schedule", "Solution", "UsageError", "__version__", "degrade",
    "evaluate", "load_prior", "noise", "operators", "priors", "restore", "samplers", "solvers", "states",
]  # fmt: skip
