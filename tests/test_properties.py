"""Laws of specs, shapes and sizes over drawn parameters (hypothesis): every operator, noise model, sampler and solver."""

from __future__ import annotations

import contextlib
import math
import shlex
import string
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from invdiff import noise, operators, samplers, solvers
from invdiff.errors import UsageError
from invdiff.operator.arrays import complex_file_or_array, file_or_array
from invdiff.operators.blur import deviations, odd
from invdiff.operators.inpaint import Box, box
from invdiff.specs.parameters import (
    Declaration,
    declarations,
    fraction,
    join_spec,
    parse_spec,
    shape,
    split_links,
    truth,
    whole,
)

REGISTRIES: dict[str, Mapping[str, Any]] = {
    "operator": operators.REGISTRY, "noise": noise.REGISTRY, "sampler": samplers.REGISTRY, "solver": solvers.REGISTRY,
}  # fmt: skip
BUILD: dict[str, Callable[[str], Any]] = {
    "operator": operators.get, "noise": partial(noise.noise_model, zero=True), "sampler": samplers.get, "solver": solvers.get,
}  # fmt: skip
METHODS = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry]
ROUNDING = 1e3 * torch.finfo(torch.float64).eps

# A kernel has as many pixels as its parameters say, however small the image is: a large value means gigabytes. Chains
# compute those of their links.
LARGEST = {"varying_blur": 9.0}
# Values without what has a meaning in a spec: a comma ends one, a bar ends a link of a chain.
words = st.text(string.ascii_letters + string.digits + "._-/+", min_size=1, max_size=12)
FILES = ("k.npy", "a kernel.npy", "k(1).npy", "k=0.5_+.npy", "folder/k.npy")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A working folder with FILES in it, each a 3 x 3 array."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("files"))
        Path("folder").mkdir()
        for name in FILES:
            np.save(name, np.arange(1.0, 10).reshape(3, 3) / 45)
        yield


def numbers(declared: Declaration, largest: float) -> st.SearchStrategy[float]:
    low = declared.above if declared.low is None else declared.low
    return st.floats(
        -largest if low is None else low,
        min(largest, math.inf if declared.high is None else declared.high),
        exclude_min=declared.above is not None,
    )


def values(declared: Declaration, largest: float = 1e9) -> st.SearchStrategy[Any]:
    """Values that the declaration of one parameter allows, at most `largest`."""
    positive = st.floats(0, largest, exclude_min=True)
    bounds = 0 if declared.low is None else int(declared.low), int(min(largest, declared.high or largest))
    kinds: dict[Any, st.SearchStrategy[Any]] = {
        whole: st.integers(*bounds),
        odd: st.integers(0, int(largest) // 2).map(lambda half: 2 * half + 1),
        truth: st.booleans(),
        shape: st.lists(st.integers(1, 9), min_size=2, max_size=3).map(tuple),
        deviations: st.tuples(positive, positive),
        noise.gaussian.deviations: st.lists(positive, min_size=1, max_size=4).map(tuple),
        box: st.builds(Box, st.integers(1, 9), st.integers(1, 9), st.none() | st.tuples(*[st.integers(0, 9)] * 2)),
        file_or_array: st.sampled_from(FILES),
        complex_file_or_array: st.sampled_from(FILES),
        str: words,
    }
    if declared.choices:
        return st.sampled_from(declared.choices)
    return kinds.get(declared.kind) or numbers(declared, largest)


@st.composite
def methods(draw: st.DrawFn, kind: str, name: str, largest: float = 1e9) -> Any:
    """An object of this name with some of its parameters given; those that do not go together are drawn again."""
    cls = REGISTRIES[kind][name]
    declared = {d.name: values(d, LARGEST.get(name, largest)) for d in declarations(cls)}
    needed = {d.name for d in declarations(cls) if d.required}
    chosen = needed | draw(st.sets(st.sampled_from(sorted(declared)), max_size=4)) if declared else set()
    try:
        return cls(**{key: draw(declared[key]) for key in sorted(chosen)})
    except UsageError:
        reject()


@pytest.mark.parametrize(("kind", "name"), METHODS)
@given(data=st.data())
def test_a_spec_builds_its_object_again(kind: str, name: str, data: st.DataObject) -> None:
    one = data.draw(methods(kind, name))
    again = BUILD[kind](one.spec)
    assert again == one and hash(again) == hash(one) and again.spec == one.spec
    parsed, texts = parse_spec(one.spec)
    assert parsed == name and REGISTRIES[kind][name](**texts) == one
    # Blanks around the parts of a spec mean nothing.
    loose = f"  {name} : " + " , ".join(f"{key} = {text}" for key, text in texts.items()) if texts else f" {name} "
    assert BUILD[kind](loose.replace(" : ", ":").strip()) == one


@given(data=st.data(), names=st.lists(st.sampled_from(list(operators.REGISTRY)), min_size=2, max_size=3))
def test_a_chain_is_its_links(data: st.DataObject, names: list[str]) -> None:
    links = [data.draw(methods("operator", name, largest=9)) for name in names]
    spec = " | ".join(link.spec for link in links)
    assert split_links(spec) == [link.spec for link in links]
    try:
        chain = operators.get(spec)
    except UsageError:
        reject()
    assert operators.get(chain.spec) == chain and operators.get(spec.replace(" | ", "|")) == chain


@given(name=words, pairs=st.dictionaries(words, words, max_size=4))
def test_parsing_takes_apart_what_joining_put_together(name: str, pairs: dict[str, str]) -> None:
    assume(".py" not in name)
    text = join_spec(name, [f"{key}={value}" for key, value in pairs.items()])
    assert parse_spec(text) == (name, pairs)


@given(st.text(max_size=40))
def test_any_text_is_a_spec_or_is_refused_in_words(text: str) -> None:
    for get in BUILD.values():
        try:
            built = get(text)
        except UsageError as error:
            assert str(error)
        else:
            assert built.spec


@given(
    st.lists(st.lists(st.sampled_from(["a", "b:x=1", "f.py:C(m=2|3)", "(a|b)"]), min_size=1).map(" ".join), min_size=1)
)
def test_bars_outside_of_brackets_part_links(links: list[str]) -> None:
    assert split_links(" | ".join(links)) == links
    assert split_links("|".join(links)) == links


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(1e-9, 1e9))
def test_a_fraction_is_its_quotient(top: float, bottom: float) -> None:
    assert fraction(top) == fraction(str(top)) == top
    assert fraction(f" {top} / {bottom} ") == fraction(f"{top}/{bottom}") == top / bottom


@given(st.text("0123456789.eE+-/ ", max_size=12))
def test_a_fraction_is_a_number_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(fraction(text), float)


@given(st.sampled_from(METHODS).flatmap(lambda method: methods(*method)))
def test_a_shell_gives_back_a_quoted_spec(one: Any) -> None:
    assert shlex.split(shlex.join(["--operator", one.spec])) == ["--operator", one.spec]


# Specs of operators on small images, and the parameters that are drawn for them.
SIZED = [name for name in operators.REGISTRY if not any(d.required for d in declarations(operators.REGISTRY[name]))]


@st.composite
def sized(draw: st.DrawFn, name: str) -> Any:
    cls = operators.REGISTRY[name]
    plain = {
        d.name: values(d, largest=9) for d in declarations(cls) if d.kind not in (file_or_array, complex_file_or_array)
    }
    plain.pop("key", None)
    chosen = draw(st.sets(st.sampled_from(sorted(plain)), max_size=3)) if plain else set()
    try:
        return cls(**{key: draw(plain[key]) for key in sorted(chosen)})
    except UsageError:
        reject()


@pytest.mark.parametrize("name", SIZED)
@settings(max_examples=25)
@given(data=st.data(), image=st.tuples(st.integers(1, 4), st.integers(1, 17), st.integers(1, 17)))
def test_shapes_agree_and_the_adjoint_is_one(name: str, data: st.DataObject, image: tuple[int, int, int]) -> None:
    """What usable_shape gives is usable; A and measurement_shape agree; image_shape leads back; <A x, y> = <x, A^T y>."""
    operator = data.draw(sized(name))
    try:
        usable = operator.usable_shape(image)
        out = operator.measurement_shape(usable)
    except UsageError:
        reject()
    assert operator.usable_shape(usable) == usable and all(0 < u <= i for u, i in zip(usable, image, strict=True))
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(2, *usable, generator=draws, dtype=torch.float64)
    y = operator.A(x)
    assert tuple(y.shape) == (2, *out) and y.dtype == x.dtype
    assert operator.image_shape(out) == usable
    if operator.linear:
        y = torch.randn(2, *out, generator=draws, dtype=torch.float64)
        back = operator.A_adjoint(y)
        assert back.shape == x.shape
        gap = (operator.A(x) * y).sum() - (x * back).sum()
        assert abs(float(gap)) <= ROUNDING * (1 + float(operator.A(x).norm() * y.norm()))


@pytest.mark.parametrize(
    "spec",
    [
        "gaussian_blur:sigma=TINY",
        "anisotropic_blur:sigma=TINYxTINY,angle=30",
        "defocus_blur:radius=TINY",
        "motion_blur:length=TINY,angle=30",
        "varying_blur:radius=TINY,corner=TINY,grid=2x2",
    ],
)
@pytest.mark.parametrize("tiny", ["1e-3", "1e-200", "5e-324"])
def test_a_blur_that_is_narrower_than_a_pixel_changes_nothing(spec: str, tiny: str) -> None:
    """Also where the square of its width is 0 in floating point."""
    x = torch.rand(1, 1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(operators.get(spec.replace("TINY", tiny)).A(x), x, rtol=1e-12, atol=0)


def test_varying_blur_says_before_it_measures_that_an_image_has_too_few_pixels() -> None:
    with pytest.raises(UsageError, match="5x5 tiles are more than 4x9 pixels"):
        operators.get("varying_blur:radius=0.4,corner=0.4").measurement_shape((1, 4, 9))


def test_a_narrow_gaussian_between_pixels_takes_the_nearest() -> None:
    x = torch.rand(1, 1, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    narrow = operators.get("downsample:factor=2,kernel=gaussian,sigma=0.05")
    torch.testing.assert_close(narrow.A(x), operators.get("downsample:factor=2").A(x))
