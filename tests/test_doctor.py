"""The doctor passes every operator of ours and tells broken copies of them by what is wrong with them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import deepinv
import pytest
import torch
from click.testing import CliRunner, Result
from laws.builders import CASES, NONLINEAR, Case

from invdiff import doctor, operators
from invdiff.cli.main import main
from invdiff.errors import UsageError
from invdiff.operator.contract import Operator, Shape
from invdiff.operator.svd import SVD
from invdiff.specs.parameters import parameter

SHAPE = (3, 16, 16)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_every_operator_passes(case: Case) -> None:
    report = doctor.check(case.build(), case.shape)
    assert report.passed, report


class MissingScale(type(operators.get("downsample"))):
    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return super().A_adjoint(y) / 16


class Flipped(type(operators.get("motion_blur"))):
    """Convolves where it should correlate."""

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return super().A_adjoint(y.flip((-2, -1))).flip((-2, -1))


class Transposed(type(operators.get("motion_blur"))):
    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return super().A_adjoint(y).mT


class Border(type(operators.get("gaussian_blur"))):
    """A pads by reflection, its adjoint with zeros."""

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return operators.get(self, boundary="zero").A_adjoint(y) if self.boundary == "reflect" else super().A_adjoint(y)


class Identity(type(operators.get("identity"))):
    """Copies of the simplest operator, each broken in one place."""


class Affine(Identity):
    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.25


class BatchNorm(Identity):
    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.norm() * x[0].numel() ** 0.5


class BatchMean(Identity):
    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean()


class Random(Identity):
    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x * (torch.rand_like(x) > 0.5)


class Single(Identity):
    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x.float() * 1.0


class InPlace(Identity):
    def A(self, x: torch.Tensor) -> torch.Tensor:
        x *= 1.5
        return x


class Clamped(Identity):
    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(0, 1)


class Complex(Identity):
    def A(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft2(x)


class Raises(Identity):
    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the detector is off")


class Squared(type(operators.get("gaussian_blur"))):
    def svd(self, shape: Shape) -> SVD:
        svd = super().svd(shape)
        return replace(svd, singular_values=svd.singular_values**2)


class Scaled(type(operators.get("gaussian_blur"))):
    def svd(self, shape: Shape) -> SVD:
        svd = super().svd(shape)
        return replace(svd, singular_values=math.sqrt(2) * svd.singular_values)


class OffByOne(type(operators.get("uniform_blur"))):
    def measurement_shape(self, shape: Shape) -> Shape:
        channels, height, width = super().measurement_shape(shape)
        return channels, height + 1, width + 1


class HalfPull(type(operators.get("inpaint"))):
    """Takes the objective for |A x - y|^2 gamma + |x - z|^2 / 2."""

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        return super().prox_l2(z, y, 2 * gamma)


@dataclass(frozen=True, eq=False)
class Spectrum(Operator):
    """y = h F x for complex images as two channels. Its adjoint forgets to conjugate h."""

    name: ClassVar[str] = "spectrum"

    def _apply(self, x: torch.Tensor, inverse: bool) -> torch.Tensor:
        z = torch.complex(x[:, 0::2], x[:, 1::2])
        h = torch.polar(torch.ones_like(z.real), torch.linspace(0, 3, z.shape[-1]).to(x).expand(z.shape))
        out = torch.fft.ifft2(h * z, norm="ortho") if inverse else h * torch.fft.fft2(z, norm="ortho")
        return torch.stack((out.real, out.imag), 2).flatten(1, 2)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self._apply(x, False)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        flip = torch.tensor([1.0, -1.0]).to(y).reshape(2, 1, 1)
        # conj(M^H conj(y)) = M^T y
        z = torch.complex(y[:, 0], -y[:, 1])[:, None]
        h = torch.polar(torch.ones_like(z.real), torch.linspace(0, 3, z.shape[-1]).to(y).expand(z.shape))
        out = torch.fft.ifft2(h.conj() * z, norm="ortho")
        return flip * torch.cat((out.real, out.imag), 1)


BROKEN: list[tuple[Operator, str, str]] = [
    (MissingScale(factor=4), "adjoint", "factor 1/16: a missing scale in downsampling"),
    (
        Flipped(length=7, path="random", boundary="zero"),
        "adjoint",
        "convolution where correlation is meant, flip the kernel",
    ),
    (Transposed(length=7, angle=30.0), "adjoint", "rows and columns are exchanged"),
    (Border(sigma=0.5), "adjoint", "boundary: it is right for every x that vanishes within"),
    (Affine(), "linear", "affine, not linear: A(0) is not 0 (it is 0.25 everywhere): subtract the offset from y"),
    (BatchNorm(), "batch", "normalised by a norm, maximum or mean over dim 0"),
    (BatchMean(), "batch", "shifted by"),
    (Random(), "deterministic", "draw random numbers in the constructor from a seed"),
    (Random(), "random state", "torch.Generator().manual_seed(seed)"),
    (Single(), "dtype and device", "A answers in float32 whatever comes in"),
    (InPlace(), "input kept", "in-place operation"),
    (Clamped(), "linear", "linear for images in [0, 1] and not beyond: a clamp"),
    (Complex(), "real numbers", "as two channels"),
    (Squared(sigma=0.5), "decomposition", "squared, the eigenvalues of A^T A: take the square root"),
    (Scaled(sigma=0.5), "decomposition", "the singular values are 1.41421 times those of A"),
    (OffByOne(size=3, boundary="valid"), "shape map", "off by one"),
    (HalfPull(keep=0.5), "prox_l2", "right for 2 gamma"),
    (Spectrum(), "adjoint", "a conjugate is missing"),
]


@pytest.mark.parametrize(
    ("operator", "check", "words"), BROKEN, ids=[f"{type(op).__name__}-{check}" for op, check, _ in BROKEN]
)
def test_broken_copies_are_told_by_what_is_wrong(operator: Operator, check: str, words: str) -> None:
    report = doctor.check(operator, (2, 16, 16) if isinstance(operator, Spectrum) else SHAPE)
    assert not report.passed
    line = report.line(check)
    assert line.status == "fail" and words in line.cause, report


def test_what_an_operator_raises_is_shown_with_its_own_frames_and_the_rest_goes_on() -> None:
    report = doctor.check(Raises(), SHAPE)
    line = report.line("real numbers")
    assert line.status == "fail" and "RuntimeError: the detector is off" in line.text
    assert len(line.where) == 1 and "test_doctor.py" in line.where[0] and "in A_adjoint" in line.where[0]
    assert (
        report.line("shape map").status == report.line("pickle").status == "pass"
        or report.line("pickle").status == "n/a"
    )


def test_nonlinear_gradients_are_compared_with_differences() -> None:
    @dataclass(frozen=True, eq=False)
    class Intensity(Operator):
        name: ClassVar[str] = "intensity"
        linear: ClassVar[bool] = False
        power: float = parameter(2.0, above=0, help="of the absolute value")
        slope: float = parameter(1.0, above=0, help="what the gradient is multiplied by: 1 is right")

        def A(self, x: torch.Tensor) -> torch.Tensor:
            return x.abs() ** self.power

        def A_vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return self.slope * self.power * x.abs() ** (self.power - 1) * x.sign() * v

    good = doctor.check(Intensity(), SHAPE)
    assert good.line("gradient").status == "pass" and good.line("adjoint").status == "n/a"
    wrong = doctor.check(Intensity(slope=0.5), SHAPE).line("gradient")
    assert wrong.status == "fail" and "1/2 times the difference quotient" in wrong.cause


class Curve(type(operators.get("gamma"))):
    """Copies of a curve, each broken in what a solver for nonlinear operators uses."""


class HalfSlope(Curve):
    def A_jvp(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return super().A_jvp(x, u) / 2


class Exchanged(Curve):
    def A_jvp(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return super().A_jvp(u, x)


class Straight(Curve):
    def A_jvp(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return self.A(u)


class Cropped(Curve):
    def A_jvp(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return super().A_jvp(x, u)[..., 1:]


class LinearSlope(Identity):
    def A_jvp(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return x + u


class DoublePull(Curve):
    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        return super().prox_l2(z, y, 2 * gamma)


class Lazy(Curve):
    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        return z


class Overshooting(Curve):
    """One step down the gradient, of a length that suits no curve."""

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        return z + 8 * gamma * self.A_vjp(z, y - self.A(z))


class Short(Curve):
    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        return z + 0.2 * (super().prox_l2(z, y, gamma) - z)


@pytest.mark.parametrize(
    ("operator", "check", "words"),
    [
        (HalfSlope(), "A_jvp", "1/2 times what A_vjp is the transpose of"),
        (Exchanged(), "A_jvp", "x and u are exchanged"),
        (Straight(), "A_jvp", "A(u), as if A were linear"),
        (LinearSlope(), "A_jvp", "delete A_jvp"),
        (DoublePull(), "prox_l2", "right for 2 gamma"),
        (Lazy(), "prox_l2", "it answers z itself"),
        (Overshooting(), "prox_l2", "halve it until F falls"),
        (Short(), "prox_l2", "without its prox_l2 the default would go lower"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Operator) else "",
)
def test_broken_slopes_and_steps_are_told_by_what_is_wrong(operator: Operator, check: str, words: str) -> None:
    report = doctor.check(operator, SHAPE)
    assert [line.check for line in report.failures] == [check], report
    assert words in report.line(check).cause, report
    sound = doctor.check(operators.get("gamma"), SHAPE)
    assert sound.line("A_jvp").status == sound.line("prox_l2").status == "pass"


def test_a_slope_of_the_wrong_shape_is_told() -> None:
    line = doctor.check(Cropped(), SHAPE).line("A_jvp")
    assert line.status == "fail" and "A_jvp answers in the shape 3x16x15 for measurements of 3x16x16" in line.text


def test_the_steps_of_every_nonlinear_operator_pass() -> None:
    for case in NONLINEAR:
        report = doctor.check(case.build(), case.shape)
        assert report.passed and report.line("A_jvp").status == report.line("prox_l2").status == "pass", report


def test_a_function_without_a_forward_derivative_is_named() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return 2 * ctx.saved_tensors[0] * gradient

    @dataclass(frozen=True, eq=False)
    class Squared(Operator):
        name: ClassVar[str] = "squared"
        linear: ClassVar[bool] = False

        def A(self, x: torch.Tensor) -> torch.Tensor:
            return Square.apply(x)

    line = doctor.check(Squared(), SHAPE).line("A_jvp")
    assert line.status == "fail" and "write A_jvp" in line.cause, line


def test_a_deepinv_physics_is_examined_in_its_own_precision() -> None:
    physics = deepinv.physics.Downsampling(img_size=SHAPE, factor=2, filter="gaussian")
    report = doctor.check(physics, SHAPE)
    assert report.shape == SHAPE and report.epsilon == torch.finfo(torch.float32).eps
    assert report.line("adjoint").status == "pass"


def test_an_adjoint_is_examined_as_an_operator() -> None:
    assert doctor.check(operators.get("downsample:factor=2").H, (3, 8, 8)).passed


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["operators", "check", *map(str, arguments)])


def test_the_command_says_it_all_by_its_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    good = invoke("gaussian_blur:sigma=1", "--shape", "3x16x16")
    assert good.exit_code == 0 and "All 23 checks pass" in good.stdout
    assert max(map(len, good.stdout.splitlines())) <= 100
    monkeypatch.setattr(operators, "get", lambda text: MissingScale(factor=4))
    bad = invoke("downsample", "--json", "--shape", "3x16x16")
    assert bad.exit_code == 1
    record = json.loads(bad.stdout)
    (line,) = (line for line in record["lines"] if line["check"] == "adjoint")
    assert record["passed"] is False and line["status"] == "fail"
    assert line["numbers"]["factor"] == pytest.approx(1 / 16)


@pytest.mark.parametrize(
    "arguments", [("no_such",), ("identity", "--shape", "3xx"), ("grayscale", "--shape", "1x8x8"), ()], ids=str
)
def test_wrong_usage_is_status_two(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_an_odd_size_is_cut_to_what_the_operator_takes() -> None:
    report = doctor.check("downsample:factor=4", (1, 31, 47))
    assert report.passed and report.shape == (1, 28, 44)
    with pytest.raises(UsageError, match="3 channels"):
        doctor.check("grayscale", (1, 31, 47))
