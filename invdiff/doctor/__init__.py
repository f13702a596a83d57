"""The doctor: examines a forward operator and says, for each law it has to obey, pass or fail, by how much, and why.

    report = invdiff.doctor.check("gaussian_blur:sigma=2")        invdiff operators check gaussian_blur:sigma=2
    assert report.passed, report

It knows nothing of how an operator is made: built-ins, plug-ins, compositions and deepinv's physics are all examined through
the same methods. Everything is tried on random images of one shape; what cannot be told from numbers is not said.
"""

from __future__ import annotations

import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from invdiff.errors import UsageError
from invdiff.machine.device import choose_device
from invdiff.operator.contract import Operator, Shape
from invdiff.operator.deepinv_physics import as_operator
from invdiff.operators import resolve_operator

from . import basics, contract, inverses, linearity
from .findings import FAIL, Line, Report, failed, not_applicable
from .subject import Mismatch, Subject, choose_shape

__all__ = ["Line", "Report", "check"]

Check = Callable[[Subject], Line]
# Each check with those that have to be right for its numbers to mean anything.
REAL = ("real numbers",)
REPEATABLE = (*REAL, "deterministic")
MAPS = (*REPEATABLE, "shape map", "linear")
INVERSES = (*MAPS, "adjoint", "decomposition")
CHECKS: dict[str, tuple[Check, tuple[str, ...]]] = {
    "shape map": (basics.shape_map, ()),
    "real numbers": (basics.real_numbers, ()),
    "dtype and device": (basics.dtype_and_device, (*REAL, "shape map")),
    "finite": (basics.finite, (*REAL, "shape map")),
    "deterministic": (basics.deterministic, REAL),
    "batch": (basics.batch, REPEATABLE),
    "random state": (basics.random_state, REAL),
    "input kept": (basics.input_kept, (*REAL, "shape map")),
    "linear": (linearity.linear, REPEATABLE),
    "adjoint": (linearity.adjoint, MAPS),
    "gradient": (linearity.gradient, (*MAPS, "adjoint")),
    "A_jvp": (linearity.forward, (*MAPS, "adjoint", "gradient")),
    "decomposition": (inverses.decomposition, (*MAPS, "adjoint")),
    "pseudo-inverse": (inverses.pseudo_inverse, INVERSES),
    "prox_l2": (inverses.prox_l2, (*INVERSES, "gradient", "A_jvp")),
    "solve_data": (inverses.solve_data, INVERSES),
    "norm": (inverses.norm, INVERSES),
    "observed mask": (contract.observed, (*REPEATABLE, "shape map")),
    "spec": (contract.spec, REPEATABLE),
    "pickle": (contract.pickled, REPEATABLE),
    "parameters": (contract.parameters, ()),
    "cost": (contract.cost, REAL),
    "solvers": (contract.solvers, ()),
}
# What an exception's text says about its cause.
EXCEPTIONS = {
    "does not require grad": "A leaves torch (numpy, .detach()): write A_adjoint, or compute with torch alone",
    "Can't call numpy()": "A leaves torch: write A_adjoint and A_vjp, or compute with torch alone",
    "expected scalar type": "a table keeps its own dtype: cast it with .to(x)",
    "same dtype": "a table keeps its own dtype: cast it with .to(x)",
    "should be the same": "a table keeps its own dtype or device: cast it with .to(x)",
    "on the same device": "a table stays on its own device: move it with .to(x)",
    "forward mode AD": "A calls a torch.autograd.Function without a jvp: write one, or write A_jvp",
    "jvp": "A calls a torch.autograd.Function without a jvp: write one, or write A_jvp",
    "in-place operation": "A writes into its input: work on a new tensor",
}


def check(operator: Any, shape: Shape | None = None, *, device: str = "cpu", cost: bool = False) -> Report:
    """Examine an Operator, a name or spec, or a deepinv Physics.

    shape: of the images, (C, H, W), cut to what the operator can take; default 3x64x64, or what it takes instead.
    device: where; cost: also time A and A^T at 256 x 256 beside one call of the shipped prior's network (seconds more).
    Raises UsageError for an unknown operator, a value out of range or a shape that the operator refuses. Whatever the
    operator itself raises during a check is that check's failure, and the others go on.
    """
    start = time.perf_counter()
    built = resolve_operator(operator) if isinstance(operator, (str, Operator)) else as_operator(operator, shape)
    subject = Subject(built, choose_shape(built, shape), choose_device(device))
    lines: dict[str, Line] = {}
    for name, (examine, after) in CHECKS.items():
        if name == "cost":
            examine = partial(contract.cost, network=cost)
        broken = [other for other in after if lines[other].status == FAIL]
        lines[name] = (
            not_applicable(f"waits for: {', '.join(broken)}") if broken else guarded(examine, subject, lines)
        ).named(name)
    try:
        out = subject.out
    except Exception:
        out = None
    found = tuple(lines.values())
    seconds = time.perf_counter() - start
    return Report(str(built), subject.shape, out, str(subject.device), subject.epsilon, found, seconds)


def guarded(examine: Check, subject: Subject, before: dict[str, Line]) -> Line:
    """The line of a check; an exception of the operator's as a failure, with its own frames the first time it is seen."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return examine(subject)
    except Mismatch as error:
        return failed(str(error), error.cause)
    except Exception as error:
        text = f"raises {type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(": ")
        if isinstance(error, UsageError):
            text = f"refuses: {' '.join(str(error).split())}"
        earlier = next((name for name, line in before.items() if line.text == text), None)
        if earlier is not None:
            return failed(f"raises the same as in '{earlier}'")
        cause = next((words for part, words in EXCEPTIONS.items() if part in str(error)), "")
        if isinstance(error, NotImplementedError) and not str(error):
            cause = "the method is not written"
        return Line(FAIL, text, cause, where=tuple(frames(error)))


def frames(error: BaseException) -> Iterator[str]:
    """The frames of the traceback that are the operator author's; those of invdiff itself if there are no others."""
    stack = [f for f in traceback.extract_tb(error.__traceback__) if Path(__file__).parent != Path(f.filename).parent]
    stack = [f for f in stack if "site-packages" not in f.filename and not f.filename.startswith(sys.base_prefix)]
    package = Path(__file__).resolve().parents[1]
    inside = (package, package.parent / "operators")
    own = [f for f in stack if not any(Path(f.filename).resolve().is_relative_to(folder) for folder in inside)]
    for frame in own or stack[-2:]:
        yield f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}: {frame.line}"
