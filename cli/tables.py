"""Plain-text tables, and parameter declarations as people read them."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from invdiff.specs.parameters import join_spec

if TYPE_CHECKING:
    from invdiff.specs.parameters import Declaration


def table(head: Sequence[str], rows: Sequence[Sequence[str]], wrapped: int = 1) -> str:
    """Left-aligned columns under a rule; the column number `wrapped` takes several lines where the screen is narrow."""
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    room = shutil.get_terminal_size((100, 24)).columns - sum(widths) + widths[wrapped] - 2 * (len(head) - 1)
    widths[wrapped] = min(widths[wrapped], max(24, room))
    lines = [_line(head, widths), "  ".join("-" * width for width in widths)]
    for row in rows:
        parts = textwrap.wrap(row[wrapped], widths[wrapped], break_long_words=False) or [""]
        for number, part in enumerate(parts):
            cells = [part if k == wrapped else cell if number == 0 else "" for k, cell in enumerate(row)]
            lines.append(_line(cells, widths))
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def duration(seconds: float | None) -> str:
    """3.2 s, 45 s, 4.3 minutes, 2.1 hours; ? where it is not known."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} minutes" if seconds < 5400 else f"{seconds / 3600:.3g} hours"


def parameters(declared: Sequence[Declaration]) -> str:
    """The declared parameters of an operator or solver: name, kind, unit, allowed range, default, help."""
    if not declared:
        return "It takes no parameters."
    rows = [
        (d.name, d.kind_name, d.unit, d.allowed, "required" if d.required else _text(d.default), d.help)
        for d in declared
    ]
    return table(("parameter", "kind", "unit", "allowed", "default", "what it is"), rows, wrapped=5)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def example(name: str, declared: Sequence[Declaration], optional: bool = False) -> str:
    """A spec to start from: required parameters as place-holders, else the first default; optional: the last one, too."""
    required = [f"{d.name}={d.kind_name.split()[0].strip(',').upper()}" for d in declared if d.required]
    usual = [d for d in declared if not (d.required or d.default is None or isinstance(d.default, bool))]
    defaults = [f"{d.name}={_text(d.default)}" for d in usual]
    parts = required or defaults[:1]
    if optional and len(defaults) > 1:
        parts = [defaults[0], defaults[-1]]
    return join_spec(name, parts)


def docstring(cls: type) -> str:
    """The cleaned docstring of a class. A dataclass without one has its signature there, which is not shown."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return "(no docstring says what it does)" if not text or text.startswith(f"{cls.__name__}(") else text


def first_line(cls: type) -> str:
    """The first sentence of a class's docstring."""
    text = " ".join(docstring(cls).split("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".")
