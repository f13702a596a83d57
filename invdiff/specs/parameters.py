"""Declared parameters: one declaration gives parsing, range checks, help, documentation and error messages.

Operators, solvers and samplers are frozen dataclasses whose fields are made by `parameter(...)`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from invdiff.errors import UsageError, unknown


def parameter(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    kind: Callable[[Any], Any] = float,
    unit: str = "",
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    search: bool = True,
) -> Any:
    """A dataclass field with its declaration.

    kind: converts text or a Python value (float, int, str, or a function such as `size`); raises ValueError if it cannot.
    low, high: inclusive bounds; above: exclusive lower bound. A default of None means "not given" and is not checked.
    search: whether `invdiff tune` tries other values of it when no grid names it.
    """
    declaration = Declaration(
        "", default, default is dataclasses.MISSING, help, kind, unit, low, above, high, tuple(choices), search
    )
    return dataclasses.field(default=default, metadata={"declaration": declaration})


def whole(value: Any) -> int:
    """int, refusing fractions (int("2.5") and int(2.5) differ otherwise)."""
    if isinstance(value, str):
        return int(value)
    if int(value) != value:
        raise ValueError("not a whole number")
    return int(value)


def truth(value: Any) -> bool:
    """bool from a bool or from true/false, yes/no, on/off, 1/0."""
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    return words[str(value).strip().lower()] if str(value).strip().lower() in words else _refuse("not true or false")


def shape(value: Any) -> tuple[int, ...]:
    """A shape such as 3x64x64 (or a sequence of whole numbers)."""
    parts = value.lower().split("x") if isinstance(value, str) else list(value)
    numbers = tuple(whole(part) for part in parts)
    return numbers if numbers and all(n > 0 for n in numbers) else _refuse("not a shape of positive whole numbers")


def fraction(value: Any) -> float:
    """A number, or a quotient such as 12.75/255."""
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9.eE+-]+\s*/\s*[0-9.eE+-]+\s*", value):
        top, bottom = value.split("/")
        return float(top) / float(bottom) if float(bottom) else _refuse("division by zero")
    return float(value)


def _refuse(reason: str) -> Any:
    raise ValueError(reason)


_KIND_NAMES = {
    float: "number",
    whole: "whole number",
    str: "text",
    truth: "true or false",
    shape: "shape such as 3x64x64",
    fraction: "number or quotient such as 12.75/255",
}


@dataclasses.dataclass(frozen=True)
class Declaration:
    """One parameter as help, documentation and error messages show it."""

    name: str
    default: Any
    required: bool  # whether there is no default
    help: str
    kind: Callable[[Any], Any]
    unit: str
    low: float | None
    above: float | None
    high: float | None
    choices: tuple[str, ...]
    search: bool

    @property
    def kind_name(self) -> str:
        if self.choices:
            return "|".join(self.choices)
        return _KIND_NAMES.get(self.kind, (self.kind.__doc__ or self.kind.__name__).splitlines()[0].rstrip("."))

    @property
    def allowed(self) -> str:
        """The range in words, empty if anything goes."""
        bounds = [
            f"{sign} {value:g}"
            for sign, value in ((">", self.above), (">=", self.low), ("<=", self.high))
            if value is not None
        ]
        return " and ".join(bounds)

    def convert(self, value: Any, owner: str) -> Any:
        """The checked value. Raises UsageError naming owner, parameter, value, allowed range and unit."""
        if value is None and self.default is None:
            return None
        unit = f" {self.unit}" if self.unit else ""
        try:
            result = self.kind(value)
        except (TypeError, ValueError, KeyError) as error:
            detail = f" ({error})" if self.kind not in _KIND_NAMES else ""
            raise UsageError(f"{owner}: {self.name}={value!r} is not a {self.kind_name}{detail}") from None
        if self.choices and result not in self.choices:
            raise unknown(f"{self.name} of {owner}", str(value), self.choices)
        if isinstance(result, (int, float)) and not isinstance(result, bool):
            outside = (
                (self.low is not None and result < self.low)
                or (self.above is not None and result <= self.above)
                or (self.high is not None and result > self.high)
            )
            if outside or not math.isfinite(result):
                raise UsageError(f"{owner}: {self.name}={value!r} must be {self.allowed or 'finite'}{unit}")
        return result


def is_plain(declaration: Declaration) -> bool:
    """Whether the parameter's values are numbers, words or texts and never name a file."""
    return bool(declaration.choices) or declaration.kind in (int, *_KIND_NAMES)


def declarations(cls: type) -> list[Declaration]:
    """The declared parameters of an operator or solver class, in order."""
    return [
        dataclasses.replace(field.metadata["declaration"], name=field.name)
        for field in dataclasses.fields(cls)
        if "declaration" in field.metadata
    ]


def validate(instance: Any, owner: str) -> None:
    """Convert and check every declared parameter of a frozen dataclass in place; call from __post_init__."""
    for declaration in declarations(type(instance)):
        value = declaration.convert(getattr(instance, declaration.name), owner)
        object.__setattr__(instance, declaration.name, value)


def build(cls: type, owner: str, values: Mapping[str, Any]) -> Any:
    """cls(**values). Raises UsageError for an unknown key (closest match shown) or a missing required one."""
    known = {d.name: d for d in declarations(cls)}
    for key in values:
        if key not in known:
            raise unknown(f"parameter of {owner}", key, known)
    missing = [d.name for d in known.values() if d.required and d.name not in values]
    if missing:
        example = join_spec(owner, [f"{missing[0]}=..."])
        raise UsageError(f"{owner} needs {', '.join(missing)}: {known[missing[0]].help}, e.g. {example}")
    return cls(**values)


def parse_spec(text: str) -> tuple[str, dict[str, str]]:
    """ "gaussian_blur:sigma=2,boundary=reflect" -> ("gaussian_blur", {"sigma": "2", "boundary": "reflect"}).

    Raises UsageError for anything not of the form NAME or NAME:key=value,key=value.
    """
    name, _, rest = text.strip().partition(":")
    values = parse_values(rest, text, "NAME:key=value,key=value")
    if not name:
        raise UsageError(f"{text!r} names nothing; write NAME or NAME:key=value,key=value")
    return name, values


def parse_values(part: str, text: str, form: str) -> dict[str, str]:
    """ "sigma=2,boundary=reflect" -> {"sigma": "2", "boundary": "reflect"}.

    part: the pairs. text, form: the whole text that holds them and the form that it must have, for the error messages.
    """
    values: dict[str, str] = {}
    for pair in part.split(",") if part else []:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise UsageError(f"cannot read {pair!r} in {text!r}; write {form}")
        if key.strip() in values:
            raise UsageError(f"{key.strip()!r} is given twice in {text!r}")
        if (glued := _GLUED.match(value)) is not None:
            raise UsageError(f"{text!r} holds two methods; write a bar between them: ... {glued[1]} | {glued[2]}...")
        values[key.strip()] = value.strip()
    return values


# Matches "1 downsample:" in "gaussian_blur:sigma=1 downsample:factor=4", a chain whose bar was forgotten.
_GLUED = re.compile(r"\s*(\S+)\s+([A-Za-z]\w*:)")


def join_spec(name: str, pairs: Sequence[str]) -> str:
    """NAME:key=value,key=value; for a class in a file, whose name is PATH.py:CLASS, PATH.py:CLASS(key=value,...)."""
    if not pairs:
        return name
    return f"{name}({','.join(pairs)})" if ".py" in name else f"{name}:{','.join(pairs)}"


def split_links(text: str) -> list[str]:
    """ "a:x=1 | b" -> ["a:x=1", "b"]: the parts between the bars that stand outside of brackets."""
    links, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "|" and depth <= 0:
            links.append("")
        else:
            links[-1] += character
    return [link.strip() for link in links]


def format_spec(name: str, instance: Any) -> str:
    """The spec that builds this instance again; parameters at their defaults are left out."""
    parts = []
    for declaration in declarations(type(instance)):
        value = getattr(instance, declaration.name)
        if value is None or (not declaration.required and value is declaration.default) or value == declaration.default:
            continue
        text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
        # No digit is rounded away, because the spec has to build the same operator.
        text = text.removesuffix(".0") if isinstance(value, float) else text
        parts.append(f"{declaration.name}={text}")
    return join_spec(name, parts)


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of the literature as a frozen dataclass of declared parameters: its name, its spec, its paper."""

    name: ClassVar[str] = "method"

    def __post_init__(self) -> None:
        validate(self, self.name)

    @property
    def spec(self) -> str:
        """Text that builds this method again, e.g. "diffpir:steps=20,zeta=0.3"."""
        return format_spec(self.name, self)

    def settings(self) -> dict[str, Any]:
        """All parameters, resolved, as plain data."""
        return {"name": self.name} | {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def paper(cls) -> str:
        """The header of the method's file: title, authors, year, equations, and how this code differs."""
        return (sys.modules[cls.__module__].__doc__ or "").strip()
