"""Declared parameters: what None means."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from invdiff.errors import UsageError
from invdiff.specs.parameters import declarations, parameter, parse_spec, validate, whole


def text(value: object) -> str:
    """text of any object"""
    if value is None:
        raise TypeError("nothing")
    return str(value)


@dataclass(frozen=True)
class Thing:
    count: int = parameter(kind=whole, low=1, help="how many")
    label: str = parameter(kind=text, help="what it is called")
    width: float | None = parameter(None, unit="px", above=0, help="how wide")
    depth: float = parameter(2.0, unit="px", above=0, help="how deep")

    def __post_init__(self) -> None:
        validate(self, "thing")


def test_none_is_only_for_what_may_be_left_out() -> None:
    assert Thing(1, "a").width is None and Thing(1, "a", None).width is None
    with pytest.raises(UsageError, match=r"thing: count=None is not a whole number"):
        Thing(None, "a")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"thing: label=None is not a text of any object"):
        Thing(1, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"thing: depth=None is not a number"):
        Thing(1, "a", depth=None)  # type: ignore[arg-type]


def test_which_are_required() -> None:
    assert [d.required for d in declarations(Thing)] == [True, True, False, False]


def test_a_forgotten_bar_is_told() -> None:
    with pytest.raises(UsageError, match=r"write a bar between them: \.\.\. 1 \| downsample:\.\.\."):
        parse_spec("gaussian_blur:sigma=1 downsample:factor=4")
    assert parse_spec("inpaint:mask=my mask.png")[1] == {"mask": "my mask.png"}
    assert parse_spec("inpaint:mask=C: a.png")[1] == {"mask": "C: a.png"}
