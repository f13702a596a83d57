"""Verification: exact denoisers and the shipped prior, with right and wrong labels; every wrong label is named."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from invdiff.cli.main import main
from invdiff.diffusion.parameterization import PREDICTIONS
from invdiff.diffusion.schedule import Schedule
from invdiff.errors import NumericalError, UsageError
from invdiff.files.images import write_image
from invdiff.priors import NetworkPrior, load_prior
from invdiff.priors.stored.loading import CHECKPOINTS
from invdiff.priors.stored.pictures import builtin_pictures, read_pictures
from invdiff.priors.stored.verify import _RANGES, MARGIN, Reading, calls, verify_prior

SIDE = 32
SCHEDULES = {
    "linear": Schedule.named("linear"),
    "cosine (squaredcos_cap_v2)": Schedule.named("cosine"),
}


def spectrum():
    """Variances of the Fourier coefficients (orthonormal) of a random field with a 1/f^2 spectrum, pixel variance 0.04."""
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    power = 1 / (f + 1 / SIDE) ** 2
    return torch.from_numpy(0.04 * power / power.mean())


def field(count, channels=1, seed=0):
    """Pictures with mean 1/2 of that law: what the networks below denoise exactly."""
    noise = np.random.default_rng(seed).standard_normal((count, channels, SIDE, SIDE))
    coefficients = torch.fft.fft2(torch.from_numpy(noise), norm="ortho") * spectrum().sqrt()
    return (0.5 + torch.fft.ifft2(coefficients, norm="ortho").real).float()


class Exact(torch.nn.Module):
    """The optimal network for `field`, with images in [low, 1] inside, as one that predicts epsilon, x_0 or v.

    E[x_0 | x] is Wiener's filter: each Fourier coefficient times S / (S + sigma^2).
    """

    def __init__(self, reading, prediction_of=None):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))  # a prior asks for a parameter's device
        self.reading = reading
        self.schedule = SCHEDULES[reading.schedule]

    def denoise(self, x, sigma):
        power = spectrum().to(x)
        coefficients = torch.fft.fft2(x - 0.5, norm="ortho") * (power / (power + sigma**2))
        return 0.5 + torch.fft.ifft2(coefficients, norm="ortho").real

    def forward(self, x_t, t):
        low, high = _RANGES[self.reading.range]
        sigma_net = float(self.schedule.sigma(np.clip(float(t[0]), 0, 999)))
        abar = 1 / (1 + sigma_net**2)
        x = (x_t / abar**0.5 - low) / (high - low)
        clean = low + (high - low) * self.denoise(x, sigma_net / (high - low))
        epsilon = (x_t - abar**0.5 * clean) / (1 - abar) ** 0.5
        velocity = abar**0.5 * epsilon - (1 - abar) ** 0.5 * clean
        return {"epsilon": epsilon, "sample": clean, "v_prediction": velocity}[self.reading.prediction]


def prior_of(network, prediction, schedule, channels=1):
    return NetworkPrior(network, SCHEDULES[schedule], channels=channels, prediction=prediction)


PICTURES = field(16)
TRUTHS = [Reading(p, s, r) for p, s, r in itertools.product(PREDICTIONS, SCHEDULES, ("[-1, 1]", "[0, 1]"))]
STATED = [Reading(p, s, "[-1, 1]") for p, s in itertools.product(PREDICTIONS, SCHEDULES)]


class TestExactDenoisers:
    @pytest.mark.parametrize("truth", TRUTHS, ids=lambda r: f"{r.prediction}-{r.schedule}-{r.range}")
    def test_a_right_label_passes_and_a_wrong_one_is_named(self, truth):
        """Statements that are true, and those with one mistake in them: what comes out is the truth."""
        for stated in STATED:
            mistakes = truth.changes(stated)
            if len(mistakes) > 1:
                continue
            found = verify_prior(prior_of(Exact(truth), stated.prediction, stated.schedule), PICTURES, stated.schedule)
            assert found.best == truth, stated
            assert list(found.problems) == mistakes
            assert found.passed == (truth == stated) == (found.lead == 0)

    def test_the_sentences_name_both_sides(self):
        truth = Reading("v_prediction", "cosine (squaredcos_cap_v2)", "[0, 1]")
        found = verify_prior(prior_of(Exact(truth), "epsilon", "linear"), PICTURES, "linear")
        prediction, schedule, span = found.problems
        assert "behaves as prediction=v_prediction, but its scheduler says epsilon" in prediction
        assert "behaves as schedule=cosine (squaredcos_cap_v2), but its scheduler says linear" in schedule
        assert "behaves as one for images in [0, 1], but it is given images in [-1, 1]" in span

    def test_the_numbers_are_those_of_the_prior(self):
        """denoised is the PSNR of prior.denoise on the same noise; and it is Wiener's: MSE = mean of S s^2 / (S + s^2)."""
        pictures = field(40, seed=1)
        prior = prior_of(Exact(TRUTHS[0]), "epsilon", "linear")
        found = verify_prior(prior, pictures, "linear", seed=3)
        power = spectrum()
        for level, sigma in enumerate(found.sigmas):
            noise = np.random.default_rng([3, level]).standard_normal(pictures.shape, dtype=np.float32)
            errors = ((prior.denoise(pictures + sigma * torch.from_numpy(noise), sigma) - pictures) ** 2).mean(
                (1, 2, 3)
            )
            expected = float((-10 * torch.log10(errors.double())).mean())
            assert found.denoised[level] == pytest.approx(expected, abs=1e-4)
            wiener = float((power * sigma**2 / (power + sigma**2)).mean())
            standard_error = float(errors.std()) / 40**0.5
            assert abs(float(errors.mean()) - wiener) < 5 * standard_error
            assert abs(float(errors.mean()) - 2**0.5 * wiener) > 5 * standard_error
        # 10 log10(1 / sigma^2) of white noise; the relative standard error of its mean square is sqrt(2 / n).
        spread = 5 * 10 / math.log(10) * (2 / pictures.numel()) ** 0.5
        for sigma, noisy in zip(found.sigmas, found.noisy, strict=True):
            assert noisy == pytest.approx(-20 * math.log10(sigma), abs=spread + 0.02)  # 0.02: mean of logs, per picture

    def test_calls_are_counted(self):
        asked = []
        prior = prior_of(Exact(TRUTHS[0]), "epsilon", "linear")
        verify_prior(prior, field(2), "linear", advance=lambda: asked.append(1))
        assert len(asked) == calls(prior) == 5 * 2 * 4

    def test_a_schedule_of_ones_own_is_right_where_it_is_stated(self):
        """Betas that no name stands for: they pass, and the usual ones under the same name denoise worse."""
        own = Schedule.named("linear", 1000, 1e-4, 0.2)
        network = Exact(TRUTHS[0])
        network.schedule = own
        right = verify_prior(NetworkPrior(network, own, channels=1), PICTURES, "linear")
        assert right.passed and right.best.schedule == "linear"
        other = verify_prior(prior_of(network, "epsilon", "linear"), PICTURES, "linear")
        assert np.mean(other.denoised) < np.mean(right.denoised) - 0.5

    def test_two_tables_that_are_nearly_one_pass_for_each_other(self):
        """sigma(t) of cosine and of scaled_linear: what is documented as not told apart costs less than the margin."""
        truth = Reading("epsilon", "cosine (squaredcos_cap_v2)", "[-1, 1]")
        prior = NetworkPrior(
            Exact(Reading("sample", truth.schedule, truth.range)),
            Schedule.named("scaled_linear"),
            channels=1,
            prediction="sample",
        )
        found = verify_prior(prior, PICTURES, "scaled_linear")
        exact = verify_prior(
            prior_of(Exact(Reading("sample", truth.schedule, truth.range)), "sample", truth.schedule), PICTURES
        )
        assert found.passed and exact.passed
        assert 0 < np.mean(exact.denoised) - np.mean(found.denoised) < MARGIN


class TestUselessNetworks:
    def constant(self, value):
        class Constant(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.anchor = torch.nn.Parameter(torch.zeros(1))

            def forward(self, x_t, t):
                return value(x_t)

        return Constant()

    @pytest.mark.parametrize("prediction", PREDICTIONS)
    def test_an_untrained_network_is_no_denoiser(self, prediction):
        found = verify_prior(prior_of(self.constant(torch.zeros_like), prediction, "linear"), field(4), "linear")
        assert not found.passed and "does not remove noise" in found.problems[0]

    def test_noise_is_not_a_denoiser(self):
        generator = torch.Generator().manual_seed(0)
        network = self.constant(lambda x: torch.randn(x.shape, generator=generator))
        assert (
            "does not remove noise"
            in verify_prior(prior_of(network, "epsilon", "linear"), field(4), "linear").problems[0]
        )

    def test_levels_where_it_harms_are_named(self):
        class Smeared(Exact):
            def denoise(self, x, sigma):
                return super().denoise(x, max(sigma, 0.05))

        found = verify_prior(prior_of(Smeared(TRUTHS[0]), "epsilon", "linear"), field(4), "linear")
        assert "makes pictures worse at sigma = 0.02, where" in found.problems[0]

    def test_nan_is_an_error(self):
        network = self.constant(lambda x: x * float("nan"))
        with pytest.raises(NumericalError, match="NaN or infinity"):
            verify_prior(prior_of(network, "epsilon", "linear"), field(2), "linear")

    def test_pictures_of_other_channels(self):
        with pytest.raises(UsageError, match="1 channel"):
            verify_prior(prior_of(Exact(TRUTHS[0]), "epsilon", "linear"), field(2, channels=3), "linear")
        with pytest.raises(UsageError, match=r"must be \(B, C, H, W\)"):
            verify_prior(prior_of(Exact(TRUTHS[0]), "epsilon", "linear"), field(2)[0], "linear")


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


FAST = ("--device", "cpu", "--precision", "fp32", "--size", 32)


class TestShippedPrior:
    def test_is_what_it_says(self):
        result = invoke("prior", "verify", "natural", *FAST)
        assert result.exit_code == 0, result.output
        assert "natural: as its files say" in result.output and len(result.stdout.splitlines()) == 8

    @pytest.mark.parametrize(
        ("key", "wrong"),
        [
            ("prediction_type", "epsilon"),
            ("prediction_type", "sample"),
            ("prediction_type", "v_prediction"),
            ("beta_schedule", "linear"),
            ("beta_schedule", "squaredcos_cap_v2"),
        ],
    )
    def test_relabelled_is_found_out(self, tmp_path, key, wrong):
        folder = shutil.copytree(CHECKPOINTS / "natural", tmp_path / "copy")
        path = folder / "scheduler/scheduler_config.json"
        config = json.loads(path.read_text())
        right = config[key]
        if wrong == right:
            return  # the test above
        path.write_text(json.dumps(config | {key: wrong}))
        result = invoke("prior", "verify", folder, *FAST)
        named = {"squaredcos_cap_v2": "cosine (squaredcos_cap_v2)"}.get(right, right)
        what = "prediction" if key == "prediction_type" else "schedule"
        assert result.exit_code == 1
        assert f"behaves as {what}={named}, but its scheduler says {wrong}: set" in result.stderr
        assert "dB better" in result.stderr and len(result.stderr.splitlines()) == 1

    def test_in_another_range_is_found_out(self):
        """A network that has learned images in [0, 1], made of the shipped one: x_t' is x_t shifted, sigma' = sigma / 2."""
        natural = load_prior("natural", device="cpu", precision="fp32")

        class Unit(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = natural.network

            def forward(self, x_t, t):
                sigma = float(natural.schedule.sigma(float(t[0])))
                x = x_t * (1 + sigma**2) ** 0.5
                return (x - natural.denoise(x, sigma)) / sigma

        found = verify_prior(NetworkPrior(Unit(), natural.schedule, channels=3), builtin_pictures(3, 32))
        assert found.best == Reading("epsilon", "stated", "[0, 1]") and len(found.problems) == 1

    def test_json_and_quiet(self, tmp_path):
        pictures = builtin_pictures(3, 40)
        for k, picture in enumerate(pictures):
            write_image(tmp_path / f"{k}.png", picture)
        result = invoke("prior", "verify", "natural", "--data", tmp_path, "--count", 2, "--json", *FAST)
        facts = json.loads(result.stdout)
        assert facts["passed"] and facts["pictures"] == 2 and facts["size"] == 32 and len(facts["levels"]) == 5
        assert invoke("prior", "verify", "natural", "--quiet", *FAST, "--count", 1).output == ""


class TestPictures:
    def test_come_with_scikit_image(self):
        colour, grey = builtin_pictures(3, 48), builtin_pictures(1, 48)
        assert colour.shape == (8, 3, 48, 48) and grey.shape == (8, 1, 48, 48)
        assert 0 <= float(colour.min()) < float(colour.max()) <= 1 and float(colour.std()) > 0.1
        with pytest.raises(UsageError, match="no built-in pictures of 2 channels"):
            builtin_pictures(2, 48)
        with pytest.raises(UsageError, match="300 pixels or more"):
            builtin_pictures(3, 320)
        assert builtin_pictures(3, 300).shape[-1] == 300

    def test_of_a_folder_are_cut_alike(self, tmp_path):
        for k, side in enumerate((40, 50, 60)):
            write_image(tmp_path / f"{k}.png", torch.full((3, side, 64), k / 4))
        pictures = read_pictures(tmp_path, 1, 64, 16, 2)
        assert pictures.shape == (2, 1, 32, 32)
        torch.testing.assert_close(pictures.mean((1, 2, 3)), torch.tensor([0.0, 64 / 255]), rtol=0, atol=1e-6)

    def test_that_cannot_be_used_are_named(self, tmp_path):
        write_image(tmp_path / "a.png", torch.zeros(3, 8, 40))
        with pytest.raises(UsageError, match=r"a.png: 8 x 40 pixels; the network needs 16"):
            read_pictures(tmp_path, 3, 32, 16, 4)
        with pytest.raises(UsageError, match=r"a.png: .*cannot become 2 channels"):
            read_pictures(tmp_path, 2, 32, 8, 4)
        np.save(tmp_path / "b.npy", np.full((1, 40, 40), -1000.0, dtype=np.float32))
        with pytest.raises(UsageError, match=r"b.npy: its values go from -1000 to -1000; scale them"):
            read_pictures(Path(tmp_path) / "b.npy", 1, 32, 8, 4)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("natural", "--size", 36), 2, "needs a multiple of 8"),
        (("no-such",), 2, "unknown prior 'no-such'"),
        (("natural", "--data", "nowhere"), 1, "nowhere"),
        (("natural", "--count", 0), 2, "--count"),
    ],
)
def test_bad_input(arguments, code, says):
    result = invoke("prior", "verify", *arguments)
    assert result.exit_code == code and says in result.stderr
