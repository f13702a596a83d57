"""What a check found, and all of them together: as objects, as text, as a record for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from invdiff.files.images import plain
from invdiff.operator.contract import Shape

PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "n/a"


@dataclass(frozen=True)
class Line:
    """The outcome of one check. status: "pass", "fail" or "n/a"; text: what was measured; numbers: the same as data.

    cause: the likely reason of a failure, only where numbers speak for it. where: the operator's own frames, if it raised.
    """

    status: str
    text: str
    cause: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    check: str = ""
    where: tuple[str, ...] = ()

    def named(self, check: str) -> Line:
        return replace(self, check=check)


def passed(text: str, **numbers: Any) -> Line:
    return Line(PASS, text, numbers=numbers)


def failed(text: str, cause: str = "", **numbers: Any) -> Line:
    return Line(FAIL, text, cause, numbers)


def not_applicable(text: str) -> Line:
    return Line(NOT_APPLICABLE, text)


def within(error: float, allowed: float, what: str, cause: str = "", **numbers: Any) -> Line:
    """Pass if error <= allowed (NaN is not). `what` ends in "to" or "by"."""
    numbers = {"error": error, "allowed": allowed, **numbers}
    if error <= allowed:
        return passed(f"{what} {error:.1e}", **numbers)
    return failed(f"{what} {error:.1e}, allowed {allowed:.1e}", cause, **numbers)


@dataclass(frozen=True)
class Report:
    """All checks of one operator on images of one shape. `str(report)` is the text for a person, `record()` for JSON."""

    operator: str
    shape: Shape
    measurement_shape: Shape | None
    device: str
    epsilon: float
    lines: tuple[Line, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """True if no check failed; those that do not apply do not count."""
        return not self.failures

    @property
    def failures(self) -> list[Line]:
        return [line for line in self.lines if line.status == FAIL]

    def line(self, check: str) -> Line:
        """The outcome of a check by its name, such as "adjoint"."""
        return next(line for line in self.lines if line.check == check)

    @property
    def heading(self) -> str:
        out = "?" if self.measurement_shape is None else by(self.measurement_shape)
        digits = "double" if self.epsilon < 1e-12 else "single"
        return f"{self.operator}: {by(self.shape)} -> {out}, {digits} precision, {self.device}"

    @property
    def summary(self) -> str:
        applied = [line for line in self.lines if line.status != NOT_APPLICABLE]
        rest = len(self.lines) - len(applied)
        beside = f" ({rest} n/a)" if rest else ""
        if self.passed:
            return f"All {len(applied)} checks pass{beside}; {self.seconds:.1f} s."
        names = ", ".join(line.check for line in self.failures)
        return f"{len(self.failures)} of {len(applied)} checks fail{beside}: {names}."

    def record(self) -> dict[str, Any]:
        """Plain data; numbers that JSON has no word for (NaN, infinity) as text."""
        return plain({**asdict(self), "passed": self.passed})

    def __str__(self) -> str:
        lines = [self.heading]
        for line in self.lines:
            lines.append(f"{line.status:5}{line.check}: {line.text}")
            lines += [f"     cause: {line.cause}"] if line.cause else []
            lines += [f"     {frame}" for frame in line.where]
        return "\n".join([*lines, self.summary])


def by(shape: Shape) -> str:
    """3x64x64."""
    return "x".join(map(str, shape)) or "()"
