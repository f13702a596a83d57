"""A package with one operator, to start from: `invdiff operators new NAME`."""

from __future__ import annotations

import keyword
import os
import re
import secrets
import shutil
from pathlib import Path
from string import Template

from invdiff.errors import UsageError
from invdiff.machine.versions import __version__
from invdiff.operators import REGISTRY

# What the operator file imports, which a class of that name would hide.
_TAKEN = ("Operator", "ClassVar", "UsageError")

PYPROJECT = """\
[build-system]
requires = ["setuptools>=61"]
build-backend = "setuptools.build_meta"

[project]
name = "invdiff-$dashed"
version = "0.1.0"
description = "The forward operator $name for invdiff"
readme = "README.md"
requires-python = ">=3.10"
dependencies = ["invdiff>=$version"]

[project.optional-dependencies]
test = ["pytest"]

# How invdiff finds it. The name on the left is the one that specs use, and that the class calls itself.
[project.entry-points."invdiff.operators"]
$name = "invdiff_$name:$cls"

[tool.setuptools]
py-modules = ["invdiff_$name"]
"""

README = """\
# $name

A forward operator for invdiff, in `invdiff_$name.py`.

    pip install --no-deps -e .              # beside an installed invdiff; edits count at once
    invdiff operators show $name
    invdiff operators check $name           # the laws of an operator; python -m pytest runs them too
    invdiff degrade photo.png -o y.tiff --operator $name --noise 0.02
    invdiff restore y.tiff -o x.png --operator $name --noise 0.02
"""

OPERATOR = '''\
"""$title: what is measured, in a line. Replace the example by your instrument."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.errors import UsageError
from invdiff.operator import Operator
from invdiff.specs.parameters import parameter, whole


@dataclass(frozen=True, eq=False)
class $cls(Operator):
    """y = the mean of each group of neighbouring rows. (C, H, W) -> (C, H / rows, W).

    Raises UsageError if the height is not a whole number of groups.
    """

    # The same name as in pyproject.toml.
    name: ClassVar[str] = "$name"
    # For an A that is not linear, say so; then leave A_adjoint out:
    # linear: ClassVar[bool] = False

    # Everything a user may set, declared: specs, --help, range checks, error messages and records follow from this line.
    # kind: float if not given; also whole, str, truth, or a function of your own from text. low, high: allowed; above: not.
    rows: int = parameter(2, kind=whole, unit="px", low=1, help="rows of the image in one row of y")

    def A(self, x: torch.Tensor) -> torch.Tensor:
        """The measurement without noise. x: (B, C, H, W) in [0, 1]; keep its dtype and device, and each sample to itself."""
        self.measurement_shape(tuple(x.shape[1:]))
        return x.unflatten(-2, (-1, self.rows)).mean(-2)

    # The shape maps, without the batch. Leave all three out if y has the shape of x.

    def measurement_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of y for an image of this shape. Refuse here what A cannot take."""
        channels, height, width = shape
        if height % self.rows:
            fits = height - height % self.rows
            raise UsageError(f"$name: {height} rows are no whole number of {self.rows}; crop the image to {fits}")
        return (channels, height // self.rows, width)

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of x for a measurement of this shape."""
        channels, height, width = shape
        return (channels, height * self.rows, width)

    def usable_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The largest shape up to this one that A takes: `invdiff degrade` crops to it."""
        channels, height, width = shape
        return (channels, height - height % self.rows, width)

    # Optional. Without it the adjoint comes from automatic differentiation, which is as exact and costs a little more.

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """A^T y: each value goes back to the rows it came from, with the weight it had."""
        return y.repeat_interleave(self.rows, -2) / self.rows
'''

TEST = '''\
"""Run with `python -m pytest`, once the package is installed."""

import pytest
import torch

from invdiff import doctor, operators
from invdiff.errors import UsageError


@pytest.mark.parametrize("spec", ["$name", "$name:rows=3"])
@pytest.mark.parametrize("shape", [(3, 12, 10), (1, 6, 7)])
def test_the_laws(spec, shape):
    report = doctor.check(operators.get(spec), shape=shape)
    assert report.passed, str(report)


def test_a_measurement_by_hand():
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])[None, None]
    assert operators.get("$name").A(x).tolist() == [[[[2.0, 4.0]]]]


def test_what_is_refused():
    with pytest.raises(UsageError, match="rows='0' must be >= 1"):
        operators.get("$name:rows=0")
    with pytest.raises(UsageError, match="crop the image to 4"):
        operators.get("$name").measurement_shape((3, 5, 5))
'''

FILES = {
    "pyproject.toml": PYPROJECT,
    "README.md": README,
    "invdiff_$name.py": OPERATOR,
    "tests/test_$name.py": TEST,
}


def new_package(name: str, folder: Path) -> Path:
    """Write the package as folder/name, whole or not at all, and give its path.

    Raises UsageError for a name that cannot be an operator's or is one, and for a folder that is missing or taken.
    """
    cls = _class_name(name)
    target = folder / name
    if os.path.lexists(target):
        raise UsageError(f"{target} exists; choose another NAME or another --dir")
    if not folder.is_dir():
        raise UsageError(f"--dir {folder} is not a folder; make it first: mkdir -p {folder}")
    words = {"name": name, "dashed": name.replace("_", "-"), "cls": cls, "version": __version__}
    words["title"] = name.replace("_", " ").capitalize()
    # Made beside its place, which it takes at the end.
    temporary = folder / f".{name}-{secrets.token_hex(4)}"
    try:
        for path, text in FILES.items():
            file = temporary / Template(path).substitute(words)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(Template(text).substitute(words), encoding="utf-8")
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _class_name(name: str) -> str:
    """coded_aperture -> CodedAperture. Raises UsageError for a name that is taken, or is not one."""
    cls = "".join(part.capitalize() for part in name.split("_"))
    if not re.fullmatch(r"[a-z]([a-z0-9_]*[a-z0-9])?", name) or keyword.iskeyword(name) or keyword.iskeyword(cls):
        close = re.sub(r"\W+|__+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).strip("_").lower()
        raise UsageError(
            f"NAME {name!r} must be lower-case letters, digits and underscores, begin with a letter, and be no word of "
            f"Python's, such as {close if re.fullmatch(r'[a-z][a-z0-9_]*', close) and close != name else 'coded_aperture'}"
        )
    if name in REGISTRY:
        raise UsageError(
            f"there is an operator called {name!r} already; `invdiff operators list` shows all: choose another"
        )
    if cls in _TAKEN:
        raise UsageError(f"NAME {name!r} would give a class called {cls}, which invdiff has; choose another")
    return cls
