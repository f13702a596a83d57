"""Watching a training: the validation's numbers against formulas, the averages, the files, and what happens when they
cannot be written."""

from __future__ import annotations

import csv
import itertools
import logging
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff.diffusion.schedule import Schedule
from invdiff.errors import CheckpointError
from invdiff.priors.prior import Prior, per_sample
from invdiff.training.config import TrainingConfig
from invdiff.training.watch import curves, validation
from invdiff.training.watch import plots as report
from invdiff.training.watch.curves import BINS, MEMORY, Curves, History, LevelAverages, Speed
from invdiff.training.watch.validation import SIGMAS, denoising_psnr, denoising_scores, validate, validation_loss
from invdiff.training.watch.watch import WINDOW, PictureSettings, Watch, superfluous

SCHEDULE = Schedule.named("linear")
QUICK = PictureSettings(samples=2, side=16, steps=2, kept=4)


def must_fail(check, *arguments):
    """The mutation twin: the same check has to notice a wrong value."""
    with pytest.raises(AssertionError):
        check(*arguments)


def noise_images(*sizes, channels=3, deviation=0.05, seed=0):
    """White Gaussian images of mean 1/2: (C, h, w) each."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(0.5 + deviation * rng.standard_normal((channels, h, w))).float() for h, w in sizes]


class WhitePrior(Prior):
    """The exact denoiser of those images: E[x_0 | x] = 1/2 + s^2 / (s^2 + sigma^2) (x - 1/2)."""

    def __init__(self, deviation=0.05, channels=None):
        self.deviation, self.channels, self.schedule = deviation, channels, SCHEDULE
        self.pixels = 0

    def denoise(self, x, sigma):
        self.pixels += x.shape[0] * x.shape[-2] * x.shape[-1]
        variance = self.deviation**2
        return 0.5 + variance / (variance + per_sample(sigma, x) ** 2) * (x - 0.5)


class OffsetPrior(Prior):
    """Returns what it is given plus `strength` / (its side): an answer that depends on the size of the window alone."""

    def __init__(self, strength):
        self.strength = strength

    def denoise(self, x, sigma):
        return x + self.strength / x.shape[-1]


# Validation


def check_sizes(strength, sizes, images, scored, scores):
    """The scores of OffsetPrior by numpy, in float64, on the central `scored` pixels."""
    for side in sizes:
        for sigma in SIGMAS:
            values = []
            for index, image in enumerate(images):
                if min(image.shape[-2:]) < sizes[-1]:
                    continue
                noise = np.random.default_rng([0, index]).standard_normal(tuple(image.shape), dtype=np.float32)
                top, left = ((extent - scored) // 2 for extent in image.shape[-2:])
                inner = np.s_[:, top : top + scored, left : left + scored]
                truth = image.double().numpy()[inner]
                answer = (truth + sigma * noise[inner].astype(np.float64) + strength / side).clip(0, 1)
                values.append(-10 * np.log10(np.mean((answer - truth) ** 2)))
            # float32 has 7 digits of values of about 1; errors of at least 0.02 keep 5: 1e-4 dB.
            assert scores[side, sigma] == pytest.approx(np.mean(values), abs=1e-3), (side, sigma)


def test_all_sizes_score_the_same_pixels_with_the_same_noise():
    images = noise_images((128, 140), (129, 128), (70, 200))
    still, moving = (denoising_scores(OffsetPrior(strength), images) for strength in (0.0, 2.0))
    assert {side for side, _ in still} == {None, 64, 128}  # half of the images have 128 pixels a side
    check_sizes(0.0, (64, 128), images, 32, still)
    check_sizes(2.0, (64, 128), images, 32, moving)
    must_fail(check_sizes, 2.0 * math.sqrt(2), (64, 128), images, 32, moving)
    must_fail(check_sizes, 2.0, (64, 128), images, 30, moving)
    for sigma in SIGMAS:
        assert still[64, sigma] == pytest.approx(still[128, sigma], abs=1e-5)  # what changes nothing scores the same
        assert moving[64, sigma] < moving[128, sigma] - 1e-3


def test_whole_images_are_scored_as_before():
    images = noise_images((70, 64), (40, 90))
    prior = WhitePrior()
    scores = denoising_scores(prior, images)
    assert {sigma: scores[None, sigma] for sigma in SIGMAS} == denoising_psnr(prior, images)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [([256, 256, 100], [64, 128, 256]), ([256, 100, 100], [64]), ([256, 128], [64, 128, 256]), ([63], []), ([], [])],
)
def test_sizes_are_those_that_half_of_the_images_have(sides, expected):
    images = [torch.zeros(1, side, side + 7) for side in sides]
    assert validation.fitting_sizes(images) == expected


def test_a_window_as_large_as_the_image_is_not_denoised_twice():
    images = noise_images((256, 256))
    prior = WhitePrior()
    row = validate(prior, images, SCHEDULE)
    assert prior.pixels / (len(SIGMAS) * 256 * 256) <= 1.4
    columns = [f"psnr_{level}" for level in (5, 15, 25, 50, 100)]
    by_size = [f"psnr_{level}_at_{side}" for level in (5, 15, 25, 50, 100) for side in (64, 128, 256)]
    assert list(row)[:5] == columns and set(row) == {*columns, *by_size, "val_loss"}
    small = WhitePrior()
    assert set(validate(small, noise_images((32, 40)), SCHEDULE)) == {*columns, "val_loss"}
    assert small.pixels / (len(SIGMAS) * 32 * 40) <= 1.4


def fixed_times(count, draws):
    """t_j = floor(T (j + u_i) / draws) with u_i = frac(i (sqrt 5 - 1) / 2): the documented times, (count, draws)."""
    u = np.arange(count)[:, None] * (math.sqrt(5) - 1) / 2 % 1
    return np.floor(len(SCHEDULE) * (np.arange(draws) + u) / draws).astype(int)


def check_loss(deviation, loss, t, values):
    """The exact denoiser's noise error at t is f(t) = s^2 / (s^2 + sigma_t^2) in the mean, sigma_t on [0, 1].

    The residual n - E[n | x] is Gaussian with that variance, so a mean over `values` of them has the standard error
    sqrt(2 mean f^2 / values).
    """
    f = deviation**2 / (deviation**2 + (SCHEDULE.sigmas[t] / 2) ** 2)
    assert loss == pytest.approx(f.mean(), abs=5 * math.sqrt(2 * np.mean(f**2) / values))


def test_the_validation_loss_is_the_mean_noise_error_over_all_levels():
    images, t = noise_images(*[(128, 128)] * 16, deviation=0.2), fixed_times(16, 2)
    loss, values = validation_loss(WhitePrior(0.2), images, SCHEDULE), 16 * 2 * 3 * 64 * 64
    check_loss(0.2, loss, t, values)
    must_fail(check_loss, 0.2 * math.sqrt(2), loss, t, values)
    must_fail(check_loss, 0.2, loss, t + 20, values)
    # Uniform over all t: the empirical distribution of the times lies within a few hundredths of that of all t.
    ranks = (np.arange(32) + 0.5) / 32
    assert np.abs(np.sort(t.ravel()) / len(SCHEDULE) - ranks).max() < 0.06
    assert validation_loss(WhitePrior(0.2), images, SCHEDULE) == loss
    assert validation_loss(WhitePrior(0.2), images, SCHEDULE, seed=1) != loss
    # Without a denoiser the noise is taken to be zero, and the error is its variance, 1.
    assert validation_loss(OffsetPrior(0.0), images, SCHEDULE) == pytest.approx(1, abs=5 * math.sqrt(2 / values))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(channels, tmp_path):
    images = noise_images((64, 72), (64, 64), channels=channels)
    row = validate(WhitePrior(channels=channels), images, SCHEDULE)
    assert all(math.isfinite(value) for value in row.values()) and "psnr_25_at_64" in row
    picture = validation.sample_picture(
        WhitePrior(channels=channels), images, shape=(channels, 16, 16), count=6, steps=2
    )
    assert picture.shape[0] == 3 and torch.isfinite(picture).all()


def test_what_pictures_show_of_a_channel():
    planes = torch.rand(5, 4, 4)
    assert torch.equal(validation.as_rgb(planes), planes[:3])
    assert torch.equal(validation.as_rgb(planes[:1]), planes[[0, 0, 0]])
    red_green = validation.as_rgb(planes[:2])
    assert torch.equal(red_green[:2], planes[:2]) and not red_green[2].any()


def test_the_picture_holds_the_held_back_images_and_their_scores():
    images = noise_images((100, 100), (100, 90))
    picture = validation.sample_picture(WhitePrior(), images, shape=(3, 64, 64), count=8, steps=2)
    assert picture.shape[2] == 8 * 72 + 8  # both rows are equally wide
    rows = picture[:, -8 - 88 : -8]
    top, left = ((extent - 88) // 2 for extent in images[0].shape[-2:])
    assert torch.equal(rows[:, :, 8:96], images[0][:, top : top + 88, left : left + 88].clamp(0, 1))
    top, left = ((extent - 88) // 2 for extent in images[1].shape[-2:])
    assert torch.equal(rows[:, :, 8 + 3 * 96 : 3 * 96 + 96], images[1][:, top : top + 88, left : left + 88].clamp(0, 1))


# Averages


@pytest.mark.parametrize("steps", [1, 7, 20, 400, 1000, 4000])
def test_a_level_lies_in_the_bin_of_its_square_root(steps):
    table = LevelAverages(steps)._bin
    assert len(table) == steps
    for t, k in enumerate(table.tolist()):  # k <= BINS sqrt(t / T) < k + 1, in whole numbers
        assert k * k * steps <= BINS * BINS * t < (k + 1) ** 2 * steps and 0 <= k < BINS
    firsts = list(LevelAverages(steps).means())
    assert firsts == [t for t in range(steps) if t == 0 or table[t] != table[t - 1]]


def check_averages(memory, drawn, averages):
    """The definition as one weighted mean: an error of age a counts exp(-a / memory)."""
    last = max(step for step, _, _ in drawn)
    for first, mean in averages.means().items():
        k = averages._bin[first]
        chosen = [(step, e) for step, t, e in drawn if averages._bin[t] == k and math.isfinite(e)]
        weights = np.exp([(step - last) / memory for step, _ in chosen])
        expected = np.sum(weights * [e for _, e in chosen]) / weights.sum() if chosen else math.nan
        assert mean == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_the_averages_by_level():
    rng = np.random.default_rng(0)
    averages, drawn = LevelAverages(1000), []
    assert all(math.isnan(mean) for mean in averages.means().values())
    for step in range(300):
        t, errors = rng.integers(0, 900, 4), rng.random(4) + step / 100
        errors[0] = [errors[0], math.nan, math.inf][step % 3]
        averages.add(t, errors.astype(np.float64))
        drawn += [(step, int(a), float(b)) for a, b in zip(t, errors, strict=True)]
    check_averages(MEMORY, drawn, averages)
    must_fail(check_averages, MEMORY * math.sqrt(2), drawn, averages)
    again = LevelAverages(1000)
    again.restore(averages.state())
    assert again.state() == averages.state()


def test_the_history_is_short_and_keeps_every_step():
    rng = np.random.default_rng(0)
    losses = rng.random(1000)
    history = History(limit=16)
    for step, loss in enumerate(losses, start=1):
        history.add(step, loss, 2 * loss)
        assert len(history.points) < 16
        if step == 333:  # interrupted and resumed
            state = history.state()
            history = History(limit=16)
            history.restore(state)
    steps, means, rates = history.arrays()
    edges = [0, *steps.astype(int)]
    assert len(set(np.diff(edges))) == 1 and edges[-1] > 1000 - history.width
    expected = [losses[a:b].mean() for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(means, expected, rtol=1e-12)
    np.testing.assert_allclose(rates, 2 * means, rtol=1e-12)


def test_speed_and_the_time_that_remains():
    speed = Speed(TrainingConfig(steps=100))
    assert math.isnan(speed.images_per_second) and math.isnan(speed.remaining)
    for step in range(1, 11):
        speed.add(step, images=8, seconds=100 + 2.0 * step)  # a resumed training does not begin at zero
    assert speed.images_per_second == pytest.approx(4) and speed.remaining == pytest.approx(180)
    speed.pause()
    speed.add(11, images=8, seconds=100 + 2.0 * 11 + 50)  # a validation of 50 seconds
    assert speed.images_per_second == pytest.approx(4)
    weights = 0.998 ** np.arange(9, -1, -1)  # ten intervals, the last of 52 seconds
    mean = np.sum(weights * [*[2] * 9, 52]) / weights.sum()
    assert speed.remaining == pytest.approx(89 * mean)
    timed = Speed(TrainingConfig(steps=10**6, minutes=3))
    for step in (1, 2, 3):
        timed.add(step, images=1, seconds=20.0 * step)
    assert timed.remaining == pytest.approx(180 - 60)


# The watch


def config(**changes):
    return TrainingConfig(**{"steps": 60, "crops": (16,), "widths": (8, 16), "groups": 4} | changes)


def learn(watch, first, last, losses=None):
    """Steps first .. last of a training whose numbers depend on the step alone."""
    for step in range(first, last + 1):
        rng = np.random.default_rng(step)
        loss = float(rng.random()) if losses is None else losses[step]
        t, errors = rng.integers(0, 1000, 4), rng.random(4).astype(np.float32)
        watch.step(step, loss=loss, lr=1e-3 / step, images=4, seconds=0.5 * step, t=t, errors=errors)


def row(step, **more):
    return {"step": step, "seconds": step // 2, "loss": 0.5, "psnr_25": 30.0 + step / 100, "val_loss": 0.1} | more


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_rows_of_the_logs(tmp_path):
    with Watch(tmp_path, config(), drawing=None) as watch:
        learn(watch, 1, 4)
        watch.validated(row(4))
        learn(watch, 5, 8)
        watch.validated(row(8))
        means = watch.levels.means()
    logged = rows_of(tmp_path / "log.csv")
    assert [r["step"] for r in logged] == ["4", "8"]
    assert list(logged[0]) == ["step", "seconds", "loss", "psnr_25", "val_loss", "lr", "images_per_second"]
    assert logged[1]["lr"] == "0.000125" and float(logged[1]["images_per_second"]) == pytest.approx(8)
    levels = rows_of(tmp_path / "levels.csv")[1]
    assert list(levels) == ["step", *(f"t_{first:04d}" for first in means)]
    read = [float(value) if value else math.nan for value in list(levels.values())[1:]]
    assert read == pytest.approx(list(means.values()), rel=1e-5, nan_ok=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["levels.csv", "log.csv"]


def test_a_resumed_watch_goes_on_as_if_it_had_not_stopped(tmp_path):
    from invdiff.priors.stored.tensor_files import load_tensors

    unbroken = Watch(tmp_path / "unbroken", config(), drawing=None)
    learn(unbroken, 1, 17)
    killed = Watch(tmp_path / "killed", config(), drawing=None)
    learn(killed, 1, 13)
    torch.save({"watch": killed.state()}, tmp_path / "state.pt")
    killed.validated(row(13))
    learn(killed, 14, 20)
    killed.validated(row(20))  # beyond the checkpoint
    state = load_tensors(tmp_path / "state.pt", torch.device("cpu"))["watch"]  # weights_only
    resumed = Watch(tmp_path / "killed", config(), step=13, state=state, drawing=None)
    learn(resumed, 14, 17)
    assert resumed.state() == unbroken.state() != killed.state()
    learn(resumed, 18, 33)
    resumed.validated(row(33))
    for name in ("log.csv", "levels.csv"):
        assert [r["step"] for r in rows_of(tmp_path / "killed" / name)] == ["13", "33"]


@pytest.mark.parametrize("state", [{"levels": {}}, {"levels": {"sums": [1.0], "counts": [1.0]}}, {"other": 1}])
def test_a_state_that_does_not_fit_is_a_warning(tmp_path, caplog, state):
    watch = Watch(tmp_path, config(), step=5, state=state, drawing=None)
    assert "could not go on with the averages" in caplog.text
    assert watch.state() == Watch(tmp_path, config(), drawing=None).state()


@pytest.mark.parametrize("content", [b"step,loss\n\xff\xfe,1\n", b"step,loss\n1,\x00\n2,\r\n\x00", "folder"])
def test_a_log_that_is_no_table_is_one_error(tmp_path, content):
    path = tmp_path / "log.csv"
    if content == "folder":
        path.mkdir()
        assert Curves(path, step=5).rows == []
        with pytest.raises(CheckpointError, match=r"cannot write .*log\.csv"):
            Curves(path, step=5).append({"step": 6})
        return
    path.write_bytes(content)
    try:
        assert all(int(r["step"]) <= 5 for r in Curves(path, step=5).rows)
    except CheckpointError as error:
        assert "log.csv" in str(error) and "move it away" in str(error)


def test_steps_cost_next_to_nothing(tmp_path):
    watch = Watch(tmp_path, config(), drawing=None)
    t, errors = np.arange(0, 960, 15), np.ones(64)
    taken = []
    for _ in range(3):
        start = time.process_time()
        for step in range(1, 501):
            watch.step(step, loss=1.0, lr=1.0, images=64, seconds=float(step), t=t, errors=errors)
        taken.append((time.process_time() - start) / 500)
    assert min(taken) < 2e-4  # 1 percent of a step of 20 ms; 1e-5 was measured


# Pictures


def test_pictures_at_validations(tmp_path):
    from PIL import Image

    images, watch = noise_images((40, 48)), Watch(tmp_path, config(), drawing=QUICK)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002  to see it untouched
    learn(watch, 1, 2)
    watch.validated(row(2) | validate(WhitePrior(), images, SCHEDULE))
    watch.pictures(WhitePrior(), images)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    with Image.open(tmp_path / "samples" / "step-000002.png") as picture:
        assert picture.mode == "RGB" and picture.width >= 2 * 24 + 8
    with Image.open(tmp_path / "loss_per_level.png") as picture:
        assert picture.size == (600, 450)
    first = (tmp_path / "samples" / "step-000002.png").read_bytes()
    learn(watch, 3, 4)
    watch.pictures(WhitePrior(), images)  # the same noise: the same network gives the same picture
    assert (tmp_path / "samples" / "step-000004.png").read_bytes() == first
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {"step-000002.png", "step-000004.png"}


def drawn(out):
    return sorted(int(p.stem[5:]) for p in (out / "samples").glob("step-*.png") if p.stem[5:].isdigit())


def test_the_number_of_pictures_is_bounded_and_those_of_a_killed_run_go(tmp_path):
    def draw(watch, step):
        learn(watch, step, step)
        watch._draw_samples(WhitePrior(), [])

    watch = Watch(tmp_path, config(), drawing=PictureSettings(samples=1, side=8, steps=1, kept=6))
    for step in range(2, 21, 2):
        draw(watch, step)
        assert len(drawn(tmp_path)) == min(step // 2, 6) and drawn(tmp_path)[0] == 2 and drawn(tmp_path)[-1] == step
    (tmp_path / "samples" / "step-mine.png").write_bytes(b"not ours")
    before, start = [drawn(tmp_path)[i] for i in (0, 1)], drawn(tmp_path)[1] + 1
    beyond = drawn(tmp_path)[2:]
    resumed = Watch(tmp_path, config(), step=start, drawing=QUICK)
    draw(resumed, beyond[0] + 1)  # one of the killed run lies before this, others behind it
    assert drawn(tmp_path) == [*before, beyond[0] + 1]
    draw(resumed, beyond[0] + 3)
    assert drawn(tmp_path) == [*before, beyond[0] + 1, beyond[0] + 3]
    assert (tmp_path / "samples" / "step-mine.png").exists()


def test_the_pictures_that_stay_are_spread_evenly():
    kept = []
    for step in range(1, 1501):
        kept.append(step)
        for other in superfluous(kept, 22):
            kept.remove(other)
        assert len(kept) == min(step, 22) and kept[0] == 1 and kept[-1] == step
    gaps = np.diff(kept)[:-1]
    assert gaps.max() / gaps.min() < 3


@pytest.mark.parametrize("obstacle", ["file", "nan", "memory"])
def test_a_picture_that_fails_is_one_warning(tmp_path, caplog, obstacle):
    class Broken(WhitePrior):
        def denoise(self, x, sigma):
            if obstacle == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory")
            return x * (math.nan if obstacle == "nan" else 1)

    if obstacle == "file":
        (tmp_path / "samples").write_text("in the way")
    watch = Watch(tmp_path, config(), drawing=QUICK)
    for step in (1, 2):
        learn(watch, step, step)
        watch.validated(row(step))
        watch.pictures(Broken(), noise_images((20, 20)))
    watch.finish()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and warnings[0].startswith("could not draw samples: ")
    reason = {"file": "cannot write", "nan": "NaN", "memory": "OutOfMemoryError: CUDA out of memory"}[obstacle]
    assert reason in warnings[0]
    assert (tmp_path / "report.png").exists()


def test_an_interrupt_is_not_swallowed(tmp_path):
    class Interrupted(WhitePrior):
        def denoise(self, x, sigma):
            raise KeyboardInterrupt

    watch = Watch(tmp_path, config(), drawing=QUICK)
    learn(watch, 1, 1)
    with pytest.raises(KeyboardInterrupt):
        watch.pictures(Interrupted(), [])


def test_a_full_disk_stops_the_log_and_not_the_pictures_quietly(tmp_path):
    watch = Watch(tmp_path / "out", config(), drawing=None)
    (tmp_path / "out").write_text("a file where the folder should be")
    learn(watch, 1, 1)
    with pytest.raises(CheckpointError, match="cannot write"):
        watch.validated(row(1))


# Report


ROWS = [
    row(2, psnr_5=35.0, psnr_5_at_64=34.9, psnr_5_at_128=35.0),
    row(4, psnr_5=36.0, psnr_5_at_64=35.5, psnr_5_at_128=35.75, **{"psnr_ema_0.99": 33.0}),
]
LEVELS = [{"step": 2, "t_0000": 0.5, "t_0100": 0.1}, {"step": 4, "t_0000": 0.4, "t_0100": ""}]
HISTORY = (np.array([1.0, 2, 3, 4]), np.array([0.4, 0.3, 0.2, 0.1]), np.array([1e-3, 2e-3, 2e-3, 0]))
NO_HISTORY = (np.zeros(0), np.zeros(0), np.zeros(0))


def panels(*arguments):
    figure = report.report_figure("title", *arguments)
    return dict(zip(("loss", "psnr", "sizes", "levels", "rate", "samples"), figure.axes, strict=True))


def lines(axes):
    return {str(line.get_label()): np.asarray(line.get_xydata(), dtype=float).tolist() for line in axes.get_lines()}


def test_the_report_shows_the_numbers():
    shown = panels(ROWS, LEVELS, HISTORY, None)
    loss = lines(shown["loss"])
    assert loss["training"] == [[1, 0.4], [2, 0.3], [3, 0.2], [4, 0.1]] and shown["loss"].get_yscale() == "log"
    assert [[2, 0.1], [4, 0.1]] in loss.values()
    psnr = list(lines(shown["psnr"]).values())
    assert psnr == [[[2, 30.02], [4, 30.04]], [[2, 35.0], [4, 36.0]]]  # psnr_ema_0.99 is no noise level
    assert [text.get_text() for text in shown["psnr"].texts] == ["25/255\n30.04 dB", "5/255\n36.00 dB"]
    assert lines(shown["sizes"])["5/255"] == [[0, -0.25], [1, 0.0]]
    assert [label.get_text() for label in shown["sizes"].get_xticklabels()] == ["64", "128"]
    levels = lines(shown["levels"])
    assert levels == {"step 2": [[1, 0.5], [101, 0.1]], "step 4": [[1, 0.4]]}
    assert shown["levels"].get_xscale() == shown["levels"].get_yscale() == "log"
    assert list(lines(shown["rate"]).values()) == [[[1, 1e-3], [2, 2e-3], [3, 2e-3], [4, 0]]]


def test_a_loss_below_zero_is_drawn_on_a_linear_axis():
    shown = panels(ROWS, LEVELS, (HISTORY[0], HISTORY[1] - 0.25, HISTORY[2]), None)  # validation's stays above zero
    assert shown["loss"].get_yscale() == "linear"


def test_the_report_of_an_older_log_takes_the_loss_from_it():
    shown = panels(ROWS, [], NO_HISTORY, None)
    assert lines(shown["loss"])["training"] == [[2, 0.5], [4, 0.5]]
    assert [text.get_text() for text in shown["levels"].texts] == ["no validation yet"]
    assert [text.get_text() for text in shown["rate"].texts] == ["not recorded"]


@pytest.mark.parametrize(
    ("rows", "levels", "history"),
    [
        ([], [], NO_HISTORY),
        (ROWS[:1], LEVELS[:1], HISTORY),
        ([row(2, psnr_25=math.nan, loss=-1.0)], LEVELS, (HISTORY[0], -HISTORY[1], HISTORY[2])),
        ([{"step": "7", "seconds": "3", "loss": "", "psnr_25": "inf"}], [{"step": "7"}], NO_HISTORY),
    ],
)
def test_a_report_of_little_or_strange_numbers(tmp_path, rows, levels, history):
    from PIL import Image

    title = report.report_title("costs 5$ or 6{$ é", config(), rows, 7, 5000.0)
    report.save(report.report_figure(title, rows, levels, history, None), tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.size == (1800, 960)


def test_the_title_tells_the_facts():
    rows = [row(7, images_per_second="12.5")]
    first, second = report.report_title("mine", config(), rows, 7, 5400.0).splitlines()
    assert first.split("   ") == ["mine", "7 steps", "1.50 hours", "30.07 dB at 25/255", "12.5 images/s"]
    assert second.startswith("widths 8-16   blocks 1   channels 3   predicts epsilon   weighting simple")


def test_reports_are_drawn_in_threads_alike(tmp_path):
    def draw(index):
        report.save(report.report_figure("title", ROWS, LEVELS, HISTORY, None), tmp_path / f"{index}.png")

    threads = [threading.Thread(target=draw, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(tmp_path / f"{index}.png").read_bytes() for index in range(3)}) == 1


def test_the_end_writes_a_report(tmp_path):
    watch = Watch(tmp_path, config(), drawing=QUICK)
    watch.finish()
    assert not (tmp_path / "report.png").exists()  # not a step was done
    learn(watch, 1, 3)
    watch.validated(row(3))
    watch.pictures(WhitePrior(), noise_images((20, 20)))
    watch.finish()
    assert (tmp_path / "report.png").stat().st_size > 10_000
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".") or path.suffix == ".part"]


def test_without_matplotlib_there_is_a_warning_and_a_result(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    watch = Watch(tmp_path, config(), drawing=QUICK)
    for step in (1, 2):
        learn(watch, step, step)
        watch.validated(row(step))
        watch.pictures(WhitePrior(), [])
    watch.finish()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2 and all("matplotlib" in text for text in warnings)  # loss_per_level.png, report.png
    assert len(rows_of(tmp_path / "log.csv")) == 2 and drawn(tmp_path) == [1, 2]


def test_heavy_packages_are_imported_when_they_are_used(tmp_path):
    code = (
        "import sys, pathlib, numpy as np; from invdiff.training.watch.watch import *\n"
        f"w = Watch(pathlib.Path({str(tmp_path)!r}), TrainingConfig())\n"
        "w.step(1, loss=1.0, lr=1.0, images=1, seconds=1.0, t=np.array([3]), errors=np.array([1.0]))\n"
        "w.validated({'step': 1})\n"
        "assert not {'matplotlib', 'tensorboard', 'diffusers', 'deepinv'} & set(sys.modules)\n"
        "w.finish()\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    root = Path(curves.__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=120)


# TensorBoard


def events_of(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def test_tensorboard_reads_the_numbers_and_pictures_back(tmp_path):
    pytest.importorskip("tensorboard")
    losses = np.random.default_rng(0).random(40)
    with Watch(tmp_path, config(), tensorboard=True, drawing=QUICK) as watch:
        learn(watch, 1, 30, losses)
        watch.validated(row(30, ema="0.99"))
        watch.pictures(WhitePrior(), noise_images((20, 20)))
        events = events_of(tmp_path / "tensorboard")  # before the file is closed: a kill -9 would find the same
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    expected = [(step, losses[step - WINDOW + 1 : step + 1].mean()) for step in (10, 20, 30)]
    assert [step for step, _ in scalars["training/loss"]] == [10, 20, 30]
    assert [v for _, v in scalars["training/loss"]] == pytest.approx([v for _, v in expected], rel=1e-6)
    assert scalars["training/images_per_second"][-1][1] == pytest.approx(8)
    assert scalars["validation/psnr_25"] == [(30, pytest.approx(30.3))]
    assert "validation/ema" not in scalars  # a word
    means = {f"level/t_{first:04d}": mean for first, mean in watch.levels.means().items() if math.isfinite(mean)}
    assert {tag: v[0][1] for tag, v in scalars.items() if tag.startswith("level/")} == pytest.approx(means, rel=1e-5)
    (picture,) = events.Images("samples")
    assert picture.step == 30
    assert picture.encoded_image_string == (tmp_path / "samples" / "step-000030.png").read_bytes()


def test_tensorboard_goes_on_over_resumes_without_repeating_a_step(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    for start, end, clock in (
        (0, 45, 2000.0),
        (13, 38, 1000.0),
        (38, 60, 1000.0),
    ):  # killed at 45 and 38; clock set back
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        watch = Watch(tmp_path, config(), step=start, tensorboard=True, drawing=None)
        learn(watch, start + 1, end, {step: float(start) for step in range(70)})
        watch.validated(row(end))
    monkeypatch.undo()
    events = events_of(tmp_path / "tensorboard")
    assert [(e.step, e.value) for e in events.Scalars("training/loss")] == [
        (10, 0.0),
        (20, 13.0),
        (30, 13.0),
        (40, 38.0),
        (50, 38.0),
        (60, 38.0),
    ]
    assert [e.step for e in events.Scalars("validation/psnr_25")] == [38, 60]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3


def test_without_the_package_there_is_one_warning_that_tells_how_to_install_it(tmp_path, monkeypatch, caplog):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with Watch(tmp_path, config(), tensorboard=True, drawing=None) as watch:
        learn(watch, 1, 20)
        watch.validated(row(20))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "pip install tensorboard" in warnings[0]
    assert not (tmp_path / "tensorboard").exists() and len(rows_of(tmp_path / "log.csv")) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_ends_tensorboards_log_with_one_warning(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    watch = Watch(tmp_path, config(), tensorboard=True, drawing=None)
    watch._events._records._writer.close()
    full = watch._events._records._writer = open("/dev/full", "wb")  # noqa: SIM115
    learn(watch, 1, 40)
    watch.validated(row(40))
    watch.finish()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "could not log for TensorBoard" in warnings[0] and "No space left" in warnings[0]
    assert len(rows_of(tmp_path / "log.csv")) == 1
    assert full.closed  # or the interpreter tries once more to write what it holds, and complains


def test_an_unwritable_folder_is_no_reason_to_stop(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("in the way")
    with Watch(tmp_path, config(), tensorboard=True, drawing=None) as watch:
        learn(watch, 1, 10)
    assert [r.levelno for r in caplog.records] == [logging.WARNING] and "could not log" in caplog.text
