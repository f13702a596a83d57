"""The numbers of a training over its steps: log.csv, the loss between its rows, the loss per noise level, the speed."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from invdiff.errors import CheckpointError
from invdiff.training.checkpoint import replacing
from invdiff.training.config import TrainingConfig

BINS = 20
"""Noise levels are averaged in this many bins of t."""
MEMORY = 500
"""Steps after which a loss per level counts e times less."""


class Curves:
    """Rows of log.csv. Those beyond the step of the checkpoint (a killed run wrote them, and the resumed one will write
    them again) are dropped, and so is a last row that was cut short. Raises CheckpointError for a file that is no table.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if step > 0 and path.is_file():
            self.rows = [row for row in read_rows(path) if int(row["step"]) <= step]

    def append(self, row: dict[str, Any]) -> None:
        """Add a row (its "step" first) and write the file, whole or not at all: it stays small."""
        self.rows = [*(known for known in self.rows if int(known["step"]) < row["step"]), row]
        columns = list(dict.fromkeys(key for known in self.rows for key in known))
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a log.csv, as text. Raises CheckpointError for a file that cannot be read as a table."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise CheckpointError(f"cannot read {path}: {error}; move it away, and a new one is begun") from error
    return [row for row in rows if None not in row.values() and str(row.get("step")).isdecimal()]


def column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """One column as numbers, NaN where a row has none (it was written before there was this column)."""
    return np.array([_number(row.get(name)) for row in rows], dtype=np.float64)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


class LevelAverages:
    """The mean noise error at each noise level, over about the last MEMORY steps.

    Bin k of BINS holds the t with floor(BINS sqrt(t / T)) = k: fine at low noise, where the error falls steeply with t,
    and filled evenly by the draws of a training. With n_k errors of sum s_k in a step, and d = exp(-1 / MEMORY),

        S_k <- d S_k + s_k,   N_k <- d N_k + n_k,   mean_k = S_k / N_k,

    so every error of one step counts the same, and a mean is unbiased from its first error on.
    """

    counts: np.ndarray
    sums: np.ndarray

    def __init__(self, schedule_steps: int) -> None:
        self.schedule_steps = schedule_steps
        # isqrt of whole numbers: the square root in floating point would put some edges into the wrong bin.
        self._bin = np.array([math.isqrt(BINS**2 * t // schedule_steps) for t in range(schedule_steps)])
        self.sums, self.counts = np.zeros(BINS), np.zeros(BINS)

    def add(self, t: np.ndarray, errors: np.ndarray) -> None:
        """Take one step's timesteps (n,) and mean squared noise errors (n,)."""
        errors = np.asarray(errors, dtype=np.float64)
        # A gradient scaler (float16) steps over infinities and goes on; one of them in a mean would stay for ever.
        finite = np.isfinite(errors)
        bins = self._bin[np.asarray(t)[finite]]
        decay = math.exp(-1 / MEMORY)
        self.sums = decay * self.sums + np.bincount(bins, errors[finite], BINS)
        self.counts = decay * self.counts + np.bincount(bins, minlength=BINS)

    def means(self) -> dict[int, float]:
        """The mean error by the lowest t of its bin; NaN where none was drawn yet. Where T is small, some bins hold no
        t and are left out."""
        bins, first = np.unique(self._bin, return_index=True)
        means = np.divide(self.sums, self.counts, out=np.full(BINS, np.nan), where=self.counts > 0)
        return dict(zip(first.tolist(), means[bins].tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {"sums": self.sums.tolist(), "counts": self.counts.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError for what is no such state."""
        sums, counts = (np.array(state[name], dtype=np.float64) for name in ("sums", "counts"))
        if sums.shape != (BINS,) or counts.shape != (BINS,):
            raise ValueError(f"the averages by noise level are {BINS} numbers")
        self.sums, self.counts = sums, counts


class History:
    """(step, loss, learning rate) for the whole training in at most `limit` points, each a mean over as many steps.

    When they become too many, neighbours are joined two by two: a training of any length has a curve of some hundred
    points, in constant memory, and it does not depend on where the training was interrupted.
    """

    width: int

    def __init__(self, limit: int = 512) -> None:
        self.limit: int = limit - limit % 2
        self.width = 1
        self.points: list[list[float]] = []
        self._open = [0.0, 0.0, 0.0]  # steps in it, sum of their losses, sum of their learning rates

    def add(self, step: int, loss: float, lr: float) -> None:
        self._open = [self._open[0] + 1, self._open[1] + loss, self._open[2] + lr]
        if self._open[0] < self.width:
            return
        self.points.append([float(step), self._open[1] / self._open[0], self._open[2] / self._open[0]])
        self._open = [0.0, 0.0, 0.0]
        if len(self.points) == self.limit:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [[b[0], (a[1] + b[1]) / 2, (a[2] + b[2]) / 2] for a, b in pairs]
            self.width *= 2

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(steps, losses, learning rates); what is still being averaged is left out."""
        table = np.array(self.points, dtype=np.float64).reshape(-1, 3)
        return table[:, 0], table[:, 1], table[:, 2]

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {"width": self.width, "points": [list(point) for point in self.points], "open": list(self._open)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError for what is no such state."""
        points = [[float(value) for value in point] for point in state["points"]]
        remainder = [float(value) for value in state["open"]]
        if len(remainder) != 3 or any(len(point) != 3 for point in points):
            raise ValueError("points of a history hold three numbers")
        self.width, self.points, self._open = int(state["width"]), points, remainder


class Speed:
    """Images a second and the time that remains, averaged over about the last fifty and five hundred steps.

    The first leaves pauses (validations) out, because it tells how fast the machine trains; the second counts them.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self._last: float | None = None
        self._paused = False
        self._images = self._pixels = self._active = self._steps = self._all = 0.0
        self._step, self._seconds = 0, 0.0

    def add(self, step: int, images: int, seconds: float, pixels: int = 0) -> None:
        """A step of so many images, with so many pixels together, was finished after so many seconds of training."""
        self._step, self._seconds = step, seconds
        if self._last is not None:
            taken = seconds - self._last
            self._steps, self._all = 0.998 * self._steps + 1, 0.998 * self._all + taken
            if not self._paused:
                self._images, self._active = 0.98 * self._images + images, 0.98 * self._active + taken
                self._pixels = 0.98 * self._pixels + pixels
        self._last, self._paused = seconds, False

    def pause(self) -> None:
        """What happens until the next step is no training."""
        self._paused = True

    @property
    def images_per_second(self) -> float:
        """NaN before the second step."""
        return self._images / self._active if self._active > 0 else math.nan

    @property
    def pixels_per_second(self) -> float:
        """NaN before the second step."""
        return self._pixels / self._active if self._active > 0 else math.nan

    @property
    def remaining(self) -> float:
        """Seconds until config.steps or config.minutes is used up, whichever is first; NaN before the second step."""
        if not self._steps:
            return math.nan
        by_steps = max(0.0, (self.config.steps - self._step) * self._all / self._steps)
        return min(by_steps, max(0.0, 60 * self.config.minutes - self._seconds)) if self.config.minutes else by_steps
