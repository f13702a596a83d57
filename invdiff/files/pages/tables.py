"""Tables with intervals and marks, and how they read as plain text, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MISSING = "–"
BEST, TIED, OFF = "best", "tied", "off"
"""Marks of an entry: the best of its group, not told apart from the best, not as it should be."""

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}", "–": "--"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}
# No ligatures (-- is a dash, '' a quote), and neither [ nor * right behind the end of a row, which would take them.
_LATEX |= {character: f"{{{character}}}" for character in "-'`[*"}


@dataclass(frozen=True)
class Entry:
    """One cell of a table. number: what its column is sorted by; spread: an interval; about: a remark."""

    text: str = MISSING
    number: float | None = None
    mark: str = ""
    spread: str = ""
    about: str = ""


@dataclass(frozen=True)
class Column:
    """The head of a column. about: what it holds, in a sentence."""

    key: str
    title: str
    about: str


@dataclass(frozen=True)
class Line:
    """A row: its name, an entry for each column, the command that repeats it, and its settings (facts)."""

    name: str
    entries: Sequence[Entry]
    command: str = ""
    facts: str = ""


@dataclass(frozen=True)
class Block:
    """Rows that may be compared with each other, under a title."""

    title: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Table:
    """first: head of the column of names; legend: explains the marks, with {best} and {tied} for how a kind of file shows
    them."""

    first: str
    columns: Sequence[Column]
    blocks: Sequence[Block]
    legend: str = ""


def number(value: float | None, digits: int, sign: str = "") -> Entry:
    """A number with so many decimals, an empty entry for None and NaN. sign: "+" to show that of positive numbers."""
    return Entry() if value is None or value != value else Entry(_text(value, digits, sign), float(value))


def interval(low: float, high: float, digits: int, sign: str = "") -> str:
    """[low, high], or nothing for NaN."""
    return "" if low != low or high != high else f"[{_text(low, digits, sign)}, {_text(high, digits, sign)}]"


def _text(value: float, digits: int, sign: str) -> str:
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # -0.001 is 0.00, not -0.00


def plain(table: Table) -> str:
    """For a terminal: each block under its title, numbers to the right; an asterisk marks what is off."""
    parts = []
    for block in table.blocks:
        columns = [[table.first, *(line.name for line in block.lines)]]
        for head, *entries in zip(table.columns, *(line.entries for line in block.lines), strict=True):
            marks = ["*" if entry.mark == OFF else "" for entry in entries]
            columns.append(
                [head.title, *(f"{e.text}{m:{max(map(len, marks))}}" for e, m in zip(entries, marks, strict=True))]
            )
        widths = [max(map(len, column)) for column in columns]
        (name, *heads), *rows = zip(*columns, strict=True)
        lines = [(name, *heads), tuple("-" * width for width in widths), *rows]
        shown = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
        ]
        parts.append("\n".join([block.title, *shown]))
    return "\n\n".join(parts)


def markdown(table: Table, heading: str, notes: Sequence[str]) -> str:
    """A Markdown document: the notes, the legend, and a table for each block."""
    parts = [f"# {_shown(heading)}", *map(_shown, notes), table.legend.format(best="Bold", tied="Italics")]
    for block in table.blocks:
        lines = [[table.first, *(_shown(column.title) for column in table.columns)]]
        lines += [[":--", *["--:"] * len(table.columns)]]
        lines += [[_shown(line.name), *map(_emphasised, line.entries)] for line in block.lines]
        parts += [f"## {_shown(block.title)}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _shown(text: Any) -> str:
    """Text of a user as Markdown that shows it: nothing in it formats, links or ends a table's cell."""
    return re.sub(r"([\\`*_{}\[\]<>|#~$&])", r"\\\1", " ".join(str(text).split()))


def _emphasised(entry: Entry) -> str:
    text = {BEST: f"**{entry.text}**", TIED: f"*{entry.text}*"}.get(entry.mark, entry.text)
    return f"{text} {entry.spread}".rstrip()


def latex(table: Table, heading: str, notes: Sequence[str]) -> str:
    r"""A tabular for each block under its title, to \input into a document; it needs no package."""
    said = [heading, *notes, table.legend.format(best="Bold", tied="Underlined")]
    parts = ["\n".join(f"% {' '.join(line.split())}" for line in said)]
    head = " & ".join(map(escaped, [table.first, *(column.title for column in table.columns)]))
    for block in table.blocks:
        lines = [r"\par\medskip\noindent", f"{escaped(block.title)}\\\\", r"\begin{tabular}{l%s}"]
        lines[-1] %= "r" * len(table.columns)
        lines += [r"\hline", head + r" \\", r"\hline"]
        lines += [" & ".join([escaped(line.name), *map(_typeset, line.entries)]) + r" \\" for line in block.lines]
        parts.append("\n".join([*lines, r"\hline", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def escaped(text: Any) -> str:
    """Text of a user as LaTeX that prints it."""
    return "".join(_LATEX.get(character, character) for character in " ".join(str(text).split()))


def _typeset(entry: Entry) -> str:
    text, spread = (escaped(part).replace("{-}", "$-$") for part in (entry.text, entry.spread))
    text = {BEST: rf"\textbf{{{text}}}", TIED: rf"\underline{{{text}}}"}.get(entry.mark, text)
    return rf"{text} {{\scriptsize {spread}}}" if spread else text


def csv_text(records: Iterable[Mapping[str, Any]]) -> str:
    """Records with equal keys as CSV; what is unknown or not a number stays empty."""
    file = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for record in records:
        if writer is None:
            writer = csv.DictWriter(file, list(record), lineterminator="\n")
            writer.writeheader()
        writer.writerow({key: None if value != value else value for key, value in record.items()})
    return file.getvalue()
