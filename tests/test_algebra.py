"""Chains, sums, multiples and stacks: what is special to them beyond the laws, and what a user reads when they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from invdiff import operators
from invdiff.cli.main import main
from invdiff.errors import UsageError
from invdiff.operator.chain import Composition
from invdiff.operator.contract import Operator, Shape
from invdiff.operators.tools.cosine import CosineFilter
from invdiff.operators.tools.fourier import CircularFilter
from invdiff.operators.tools.separable import SeparableFilter
from invdiff.restoration.recommendation import family

ROUNDING = 1e-12  # a few hundred products of numbers of size 1
CIRCULAR = "gaussian_blur:sigma=1,boundary=circular"
MOTION = "motion_blur:length=5,angle=30,boundary=circular"


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def plainly(chain: Operator, x: torch.Tensor) -> torch.Tensor:
    """One link after the other."""
    assert isinstance(chain, Composition)
    for link in chain.of:
        x = link.A(x)
    return x


class Gamma(Operator):
    """y = x^2, pixel by pixel."""

    name = "gamma"
    linear = False
    family = "tone"

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x**2


# Fast forms


@pytest.mark.parametrize(
    ("spec", "engine", "shape"),
    [
        (f"{CIRCULAR} | {MOTION}", CircularFilter, (2, 20, 17)),
        (f"{CIRCULAR} | downsample:factor=2", CircularFilter, (2, 20, 18)),
        (f"{MOTION} | downsample:factor=2,kernel=bicubic,boundary=circular | {MOTION}", CircularFilter, (2, 20, 18)),
        (f"{MOTION} | downsample:factor=2 | {MOTION} | downsample:factor=2", CircularFilter, (1, 32, 28)),
        # Wider together than the image.
        (" | ".join(["uniform_blur:size=9,boundary=circular"] * 3), CircularFilter, (1, 9, 10)),
        (" | ".join(["uniform_blur:size=9"] * 3), CosineFilter, (1, 9, 10)),
        ("gaussian_blur:sigma=1 | identity | uniform_blur:size=3", CosineFilter, (2, 20, 17)),
        ("gaussian_blur:sigma=1 | downsample:factor=4", SeparableFilter, (2, 20, 16)),
        ("gaussian_blur:sigma=1,boundary=zero | uniform_blur:size=3,boundary=valid", SeparableFilter, (2, 20, 17)),
        (f"{CIRCULAR} | downsample:factor=2,kernel=bicubic", SeparableFilter, (1, 20, 16)),
    ],
)
def test_filters_become_one_filter_that_equals_the_chain(spec: str, engine: type, shape: Shape) -> None:
    chain, x = operators.get(spec), normal(*shape)
    (part,) = chain.parts
    assert isinstance(part._engine(shape), engine) and chain.has_svd
    assert gap(chain.A(x), plainly(chain, x)) < ROUNDING
    y = normal(*chain.measurement_shape(shape), seed=1)
    back = y
    for link in reversed(chain.of):
        back = link.A_adjoint(back)
    assert gap(chain.A_adjoint(y), back) < ROUNDING and torch.equal(chain.H.A(y), chain.A_adjoint(y))
    # The twin: links that do not commute, in the other order, are another operator.
    turned = operators.get(f"{CIRCULAR} | {MOTION.replace('30', '60')}")
    assert gap(turned.A(x), plainly(operators.get(f"{CIRCULAR} | {MOTION}"), x)) > 1e-3


def test_decimation_and_a_blur_of_few_pixels_do_not_commute() -> None:
    """Mutation twin of the repeated transfer function: the small grid's filter taken on the large grid is another one."""
    x = normal(1, 32, 28)
    blur = "gaussian_blur:sigma=0.5,boundary=circular"
    before = operators.get(f"{MOTION} | {blur} | downsample:factor=2")
    after = operators.get(f"{MOTION} | downsample:factor=2 | {blur}")
    assert gap(after.A(x), plainly(after, x)) < ROUNDING < 1e-3 < gap(after.A(x), before.A(x))


@pytest.mark.parametrize(
    ("spec", "parts", "svd"),
    [
        ("identity | identity", ["identity"], True),
        (f"{CIRCULAR} | grayscale", ["grayscale", CIRCULAR], True),
        (f"{CIRCULAR} | identity | grayscale | inpaint", ["grayscale", CIRCULAR, "inpaint"], False),
        ("downsample:factor=2 | motion_blur:angle=30", ["downsample:factor=2", "motion_blur:angle=30"], False),
        (f"downsample:factor=2 | {MOTION}", ["downsample:factor=2", MOTION], True),
        ("grayscale | downsample:factor=2 | inpaint", ["grayscale", "downsample:factor=2", "inpaint"], True),
        (f"{MOTION} | inpaint", [MOTION, "inpaint"], False),
        ("motion_blur:angle=30 | gaussian_blur", ["motion_blur:angle=30", "gaussian_blur"], False),
    ],
)
def test_what_a_chain_computes(spec: str, parts: list[str], svd: bool) -> None:
    chain = operators.get(spec)
    assert [part.spec for part in chain.parts] == parts and chain.has_svd == svd
    assert gap(chain.A(normal(3, 64, 64)), plainly(chain, normal(3, 64, 64))) < ROUNDING


def test_multiples_do_not_break_a_chain_apart() -> None:
    chain = (2 * operators.get(CIRCULAR)).then(-1 * operators.get(MOTION), "downsample:factor=2")
    x = normal(1, 20, 16)
    assert len(chain.parts) == 1 and chain.has_svd and gap(chain.A(x), plainly(chain, x)) < ROUNDING
    assert (3 * operators.get("identity") * 2).spec == "6 * identity"


def test_the_adjoint_of_a_chain_is_the_chain_of_adjoints() -> None:
    A, B = operators.get(CIRCULAR), operators.get("downsample:factor=2")
    y = normal(1, 10, 8)
    turned = B.H.then(A.H)
    assert gap(A.then(B).H.A(y), turned.A(y)) < ROUNDING and turned.has_svd and len(turned.parts) == 1


def test_a_mask_at_the_end_leaves_place_holders() -> None:
    chain = operators.get("gaussian_blur:sigma=1 | inpaint:box=4x4+2+2")
    mask = chain.observed((3, 12, 10))
    assert mask is not None and int(mask.sum()) == 12 * 10 - 16 and not mask[..., 2:6, 2:6].any()
    assert chain.measured_count((3, 12, 10)) == 3 * (12 * 10 - 16)
    assert operators.get("inpaint:keep=0.5 | gaussian_blur:sigma=1").observed((3, 12, 10)) is None


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("gaussian_blur | downsample", "downsampling"),
        ("downsample:kernel=bicubic | identity", "downsampling"),
        ("gaussian_blur:boundary=zero | motion_blur", "motion"),
        ("gaussian_blur | inpaint", "inpainting"),
        ("gaussian_blur | uniform_blur", "blur"),
        ("grayscale | gaussian_blur", "colour"),
        ("identity | identity", "denoising"),
    ],
)
def test_family_of_a_chain(spec: str, kind: str) -> None:
    assert family(operators.get(spec), (3, 64, 64)) == kind


def test_chains_with_a_nonlinear_link() -> None:
    chain = operators.get("gaussian_blur:sigma=1").then(Gamma(), "downsample:factor=2")
    x, v = normal(1, 16, 16), normal(1, 8, 8, seed=1)
    assert not chain.linear and not chain.has_svd and chain.differentiable and chain.family == "tone"
    leaf = x.clone().requires_grad_(True)
    (exact,) = torch.autograd.grad(plainly(chain, leaf), leaf, v)
    assert gap(chain.A_vjp(x, v), exact) < ROUNDING
    stacked = chain.stack(2 * chain)
    assert gap(stacked.A_vjp(x, torch.cat([v, v], 1)), 3 * exact) < ROUNDING
    assert gap((chain + 2 * chain).A_vjp(x, v), 3 * exact) < ROUNDING
    for whole in (chain, 2 * chain, chain + chain, stacked):
        with pytest.raises(UsageError, match="is not linear, so it has no"):
            whole.A_dagger(whole.A(x))


# Stacks and sums


def test_a_stack_holds_its_measurements() -> None:
    A, B = operators.get("grayscale"), operators.get(MOTION)
    x = normal(3, 9, 8)
    op = A.stack(B)
    y = op.A(x)
    assert y.shape == (2, 4, 9, 8) and torch.equal(y, torch.cat([A.A(x), B.A(x)], 1))
    assert all(map(torch.equal, op.split(y), [A.A(x), B.A(x)])) and not op.has_svd
    assert A.stack(B).stack("identity") == A.stack(B.stack("identity"))
    flat = A.stack("downsample:factor=2", shape=(3, 8, 8))
    parts = flat.split(flat.A(normal(3, 8, 8)))
    assert [tuple(part.shape) for part in parts] == [(2, 1, 8, 8), (2, 3, 4, 4)]
    assert flat.measurement_shape((3, 8, 8)) == (64 + 48,)


@pytest.mark.parametrize(
    ("first", "second", "svd"),
    [
        (CIRCULAR, MOTION, True),
        (f"{CIRCULAR} | {MOTION}", MOTION, True),
        ("gaussian_blur:sigma=1", "uniform_blur:size=3", True),
        ("inpaint:keep=0.2", "random_subsample:keep=0.3", True),
        ("identity", "inpaint:keep=0.2", True),
        (CIRCULAR, "gaussian_blur:sigma=1", False),
        (f"{CIRCULAR} | downsample:factor=2", f"{MOTION} | downsample:factor=2", False),
    ],
)
def test_stacks_that_share_a_basis_have_a_decomposition(first: str, second: str, svd: bool) -> None:
    op = operators.get(first).stack(second)
    assert op.has_svd == svd
    if svd:
        x = normal(3, 10, 9)
        found = op.svd((3, 10, 9))
        assert gap(found.U(found.singular_values * found.V_adjoint(x)), op.A(x)) < ROUNDING


def test_two_blurs_pass_what_each_alone_stops() -> None:
    """Means over 3 and over 5 pixels stop different frequencies of 15 pixels: together they lose nothing."""
    one, two = (operators.KernelBlur(kernel=np.ones((1, n)), boundary="circular") for n in (3, 5))
    x = normal(1, 4, 15)
    both = one.stack(two)
    assert gap(both.A_dagger(both.A(x)), x) < ROUNDING
    assert min(gap(op.A_dagger(op.A(x)), x) for op in (one, two)) > 0.1


# What a user reads


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("gaussian_blur | | downsample", "link 2 of 'gaussian_blur | | downsample' is empty; write NAME:key=value |"),
        ("gaussian_blur |", "link 2 of"),
        ("| gaussian_blur", "link 1 of"),
        ("gaussian_blur | downsampel", "Did you mean 'downsample'"),
        ("gaussian_blur:sigma=-1 | downsample", "sigma='-1' must be > 0"),
    ],
)
def test_a_chain_that_cannot_be_read(spec: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        operators.get(spec)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_parameters_belong_to_one_link() -> None:
    with pytest.raises(UsageError, match=r"sigma=2 cannot be added to the chain .* as in identity:sigma=2"):
        operators.get("identity | gaussian_blur", sigma=2)


@pytest.mark.parametrize(
    ("spec", "shape", "words"),
    [
        ("gaussian_blur:sigma=1 | downsample:factor=4", (3, 16, 18), "link 2, downsample, does not take 3x16x18"),
        (
            "grayscale | grayscale",
            (3, 16, 18),
            "link 2, grayscale, does not take 1x16x18, which it gets for an image 3x",
        ),
        ("gaussian_blur:sigma=9 | downsample", (3, 16, 16), "link 1, gaussian_blur:sigma=9, does not take 3x16x16"),
    ],
)
def test_a_link_that_does_not_fit_is_named(spec: str, shape: Shape, words: str) -> None:
    chain = operators.get(spec)
    for ask in (lambda: chain.measurement_shape(shape), lambda: chain.A(torch.zeros(1, *shape))):
        with pytest.raises(UsageError) as caught:
            ask()
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_other_misfits() -> None:
    blur, small = operators.get("gaussian_blur:sigma=1"), operators.get("downsample:factor=2")
    with pytest.raises(
        UsageError, match=r"link 1, grayscale, does not give 3x8x8, which a measurement 3x8x8 asks of it"
    ):
        operators.get("grayscale | identity").image_shape((3, 8, 8))
    with pytest.raises(UsageError, match=r"gives 3x12x12 and downsample:factor=2 gives 3x6x6 for an image 3x12x12"):
        (blur + small).A(torch.zeros(1, 3, 12, 12))
    with pytest.raises(UsageError, match=r"give the image's shape, as in A\.stack\(B, shape="):
        blur.stack(small).A_adjoint(torch.zeros(1, 500))
    with pytest.raises(UsageError, match=r"made for images 3x8x8, got 3x12x12"):
        blur.stack(small, shape=(3, 8, 8)).A(torch.zeros(1, 3, 12, 12))
    for factor in (0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="must be a finite number that is not 0"):
            _ = factor * blur
    with pytest.raises(TypeError):
        _ = blur + 1  # type: ignore[operator]
    with pytest.raises(UsageError, match="neither an invdiff Operator nor a deepinv Physics"):
        blur.then(3)


def test_usable_shapes_reach_through_the_chain() -> None:
    """A valid blur leaves H - 8 rows, of which a whole number of blocks of 4 is taken."""
    chain = operators.get("gaussian_blur:sigma=1,boundary=valid | downsample:factor=4")
    assert chain.usable_shape((3, 31, 40)) == (3, 28, 40)
    assert chain.measurement_shape((3, 28, 40)) == (3, 5, 8) and chain.image_shape((3, 5, 8)) == (3, 28, 40)
    assert operators.get("downsample:factor=2").stack("downsample:factor=3").usable_shape((3, 20, 25)) == (3, 18, 24)


# Records and the command line


def test_records_list_the_links() -> None:
    spec = f"{CIRCULAR} | inpaint:box=4x4"
    record = json.loads(json.dumps(operators.get(f" {spec.replace(' ', '')} ").settings()))
    assert record["spec"] == spec and [one["name"] for one in record["of"]] == ["gaussian_blur", "inpaint"]
    assert (2 * operators.get(spec)).spec == f"2 * ({spec})" and operators.get(spec).H.spec == f"({spec}).H"


def test_a_chain_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny import picture, tiny_prior

    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "x.png", shape=(3, 24, 32))
    np.save("mask.npy", np.ones((12, 16)))
    prior, chain = tiny_prior(tmp_path / "prior"), "gaussian_blur:sigma=1 | downsample:factor=2|inpaint:mask=mask.npy"

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, list(arguments))
        assert result.exit_code == 0, result.output
        return result.output

    run("degrade", "x.png", "-o", "y.png", "--operator", chain, "--noise", "0.05")
    options = ["--prior", str(prior), "--steps", "3", "--precision", "fp32", "--device", "cpu", "--solver", "ddnm"]
    run("restore", "y.png", "-o", "z.png", "--operator", chain, "--noise", "0.05", *options)
    record = json.loads(Path("z.png.json").read_text())
    assert record["operator"]["spec"] == "gaussian_blur:sigma=1 | downsample:factor=2 | inpaint:mask=mask.npy"
    blind = ["--operator", chain, "--noise", "0"]
    refused = CliRunner().invoke(main, ["degrade", "x.png", "-o", "mask.npy", "--overwrite", *blind])
    assert refused.exit_code == 2 and "is an input and would be overwritten" in refused.output
    shown = run("operators", "show", chain)
    assert "link" in shown and "downsample:factor=2" in shown and "no singular value decomposition" in shown
    blurred = "gaussian_blur:sigma=1 | downsample:factor=4"
    assert "downsampling" in run("solvers", "recommend", "--operator", blurred, "--noise", "0.05")


def test_the_first_guess_of_what_is_not_linear_goes_back_link_by_link() -> None:
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    curve = operators.get("gamma:exponent=2.2")
    chain = operators.get("gamma:exponent=2.2 | gaussian_blur:sigma=0.5,size=3")
    # What the blur loses of the darkest values, the curve's root brings out.
    assert not chain.linear and gap(chain.first_guess(chain.A(x)), x) < 1e-9
    assert gap((2 * curve).first_guess(2 * curve.A(x)), x) < 1e-9
    both = curve.stack("identity")
    assert gap(both.first_guess(both.A(x)), x) < 1e-9 < gap(both.first_guess(2 * both.A(x)), x)


@pytest.mark.parametrize("boundary", ["circular", "reflect"])
def test_a_blur_that_varies_keeps_its_kernels_in_a_chain(boundary: str) -> None:
    """It has no one kernel to multiply with the neighbour's."""
    varying = f"varying_blur:radius=0.3,corner=2,grid=3x3,boundary={boundary}"
    even = f"gaussian_blur:sigma=0.8,boundary={boundary}"
    x = torch.rand(1, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for spec in (f"{varying} | {even}", f"{even} | {varying}"):
        chain = operators.get(spec)
        assert [part.name for part in chain.parts] == [link.name for link in chain.of]
        assert gap(chain.A(x), plainly(chain, x)) < ROUNDING
