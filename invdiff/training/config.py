"""The settings of one training, validated when built and written beside the result."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from invdiff.errors import UsageError, unknown

# What a resumed training has to keep: the shape of the network, what it predicts, which images it may see.
FIXED = ("channels", "widths", "blocks", "groups", "schedule", "schedule_steps", "holdout", "seed")


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what is learned. Images are drawn by folder weight, then uniformly inside the folder."""

    channels: int = 3
    """1 (grey) or 3 (colour)."""
    widths: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of each level of the U-Net; each level halves the resolution."""
    blocks: int = 1
    """Residual blocks a level."""
    groups: int = 8
    """Groups of the GroupNorm layers: few, wide groups have statistics that vary little from crop to crop."""
    schedule: str = "linear"
    schedule_steps: int = 1000
    crops: tuple[int, ...] = (64, 64, 96, 128, 192)
    """Crop sides in pixels, one drawn for each step; repeat one to draw it more often."""
    pixels: int = 16 * 64 * 64
    """Pixels in a batch: small crops come in larger batches, so every step costs the same."""
    downscale: float = 0.5
    """Share of crops taken from a larger window (up to three times the side) and reduced: hides JPEG artefacts."""
    low_noise: float = 0.5
    """Share of timesteps drawn as T u^3, towards low noise; the others are uniform."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Sampling weight of each sub-folder (1 where not named)."""
    steps: int = 20_000
    minutes: float | None = None
    """Wall-clock budget: training ends, and the learning rate reaches zero, at steps or minutes, whichever is first."""
    lr: float = 4e-4
    warmup: int = 200
    weight_decay: float = 1e-4
    clip: float = 1.0
    """Gradient norm above which gradients are scaled down."""
    ema: float = 0.999
    """Decay of the exponential moving average of the weights, per step; it ramps up from zero."""
    holdout: int = 16
    """Images held back for validation."""
    seed: int = 0

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            read, rule = _READERS[str(item.type)]
            value = getattr(self, item.name)
            try:
                object.__setattr__(self, item.name, read(value))
            except (TypeError, ValueError, OverflowError):
                raise UsageError(f"training setting {item.name}={value!r}: must be {rule}") from None
        factor = self.downsampling
        fits = bool(self.crops) and all(c > 0 and c % factor == 0 for c in self.crops)
        checks = [
            (self.channels in (1, 3), "channels", "1 or 3"),
            (bool(self.widths) and min(self.widths) > 0, "widths", "one or more positive numbers"),
            (self.groups > 0 and all(w % self.groups == 0 for w in self.widths), "groups", "a divisor of every width"),
            (self.blocks > 0, "blocks", "at least 1"),
            (self.schedule_steps > 0, "schedule_steps", "at least 1"),
            (fits, "crops", f"multiples of {factor}"),
            (self.pixels >= min(self.crops, default=1) ** 2, "pixels", "at least one crop of the smallest size"),
            (0 <= self.downscale <= 1, "downscale", "between 0 and 1"),
            (0 <= self.low_noise <= 1, "low_noise", "between 0 and 1"),
            (all(w >= 0 for w in self.weights.values()), "weights", "zero or more each"),
            (self.steps > 0, "steps", "at least 1"),
            (self.minutes is None or self.minutes > 0, "minutes", "more than 0"),
            (self.lr > 0, "lr", "more than 0"),
            (self.warmup >= 0, "warmup", "zero or more"),
            (self.weight_decay >= 0, "weight_decay", "zero or more"),
            (self.clip > 0, "clip", "more than 0"),
            (0 <= self.ema < 1, "ema", "at least 0 and below 1"),
            (self.holdout >= 1, "holdout", "at least 1"),
            (self.seed >= 0, "seed", "zero or more"),
        ]
        for valid, name, rule in checks:
            if not valid:
                raise UsageError(f"training setting {name}={getattr(self, name)!r}: must be {rule}")
        if self.schedule != type(self).schedule:  # the default needs no numpy, so `invdiff train --help` stays fast
            from invdiff.schedule import Schedule

            Schedule.named(self.schedule, self.schedule_steps)  # raises for a name that does not exist

    @property
    def downsampling(self) -> int:
        """How many pixels one pixel of the deepest level covers, per side."""
        return 1 << max(0, len(self.widths) - 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """From plain data. Raises UsageError for a key that is not a setting."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise unknown("training setting", key, known)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written to recipe.json."""
        return dataclasses.asdict(self)

    def check_continues(self, earlier: TrainingConfig, where: str) -> None:
        """Raises UsageError that names each setting of FIXED that differs from those of the `earlier` training."""
        changed = [name for name in FIXED if getattr(self, name) != getattr(earlier, name)]
        if changed:
            facts = ", ".join(f"{name}={getattr(earlier, name)!r} (now {getattr(self, name)!r})" for name in changed)
            others = ", ".join(f.name for f in dataclasses.fields(self) if f.name not in FIXED)
            raise UsageError(
                f"{where} was trained with {facts}; a resumed training keeps this: leave it out, "
                f"or start a new training in another --out. A resume may change {others}"
            )


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _number(value: Any) -> float:
    if isinstance(value, bool | str) or not math.isfinite(value):
        raise TypeError
    return float(value)


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


# Type of a setting -> (from what a caller or a JSON file gives, what to say where that fails).
_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "int": (_whole, "a whole number"),
    "float": (_number, "a finite number"),
    "float | None": (lambda value: None if value is None else _number(value), "a finite number, or none"),
    "str": (_word, "a name"),
    "tuple[int, ...]": (lambda values: tuple(_whole(value) for value in values), "a list of whole numbers"),
    "Mapping[str, float]": (
        lambda values: {_word(folder): _number(weight) for folder, weight in dict(values).items()},
        "folder names with finite numbers",
    ),
}
