"""The settings of one training, validated when built and written beside the result."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from invdiff.diffusion.parameterization import PREDICTIONS
from invdiff.diffusion.weighting import WEIGHTINGS
from invdiff.errors import UsageError, unknown
from invdiff.machine.device import PRECISIONS

ORIENTATIONS = ("all", "flip", "none")
OPTIMIZERS = ("adamw", "muon")
DECAYS = ("cosine", "linear", "constant")
FEEDS = ("auto", "host")

# What a resumed training has to keep: the network, what it predicts, which images it may see, the optimiser's state.
FIXED = (
    "channels",
    "widths",
    "blocks",
    "groups",
    "schedule",
    "schedule_steps",
    "prediction",
    "weighting",
    "value_range",
    "optimizer",
    "init",
    "holdout",
    "seed",
)


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what is learned. Images are drawn by folder weight, then uniformly inside the folder."""

    channels: int = 3
    """1 (grey), 3 (colour), or as many as the images have."""
    widths: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of each level of the U-Net; each level halves the resolution."""
    blocks: int = 1
    """Residual blocks a level."""
    groups: int = 8
    """Groups of the GroupNorm layers: few, wide groups have statistics that vary little from crop to crop."""
    schedule: str = "linear"
    schedule_steps: int = 1000
    prediction: str = "epsilon"
    """What the network outputs: epsilon, sample (x_0) or v_prediction."""
    weighting: str = "simple"
    """How much each noise level counts: see invdiff.diffusion.weighting."""
    gamma: float = 5.0
    """For weighting min_snr: the signal-to-noise ratio from which on levels count no more than at this one."""
    sigma_data: float = 0.5
    """For weighting edm: standard deviation of the images on [-1, 1]."""
    crops: tuple[int, ...] = (64, 64, 96, 128, 192)
    """Crop sides in pixels, one drawn for each step; repeat one to draw it more often."""
    pixels: int = 16 * 64 * 64
    """Pixels in the batch of one process and micro-step: small crops come in larger batches, so each costs the same."""
    accumulate: int = 1
    """Micro-steps whose gradients are averaged before the optimiser moves."""
    downscale: float = 0.5
    """Share of crops taken from a larger window (up to three times the side) and reduced: hides JPEG artefacts."""
    orientations: str = "all"
    """Crops are turned and mirrored at random: all (eight ways), flip (left and right only) or none."""
    value_range: tuple[float, float] | None = None
    """Values of the images that become 0 and 1, for instance -1000, 2000 for CT in HU. None: the full scale of 8- and
    16-bit files; float files are then taken as they are, in [0, 1]."""
    low_noise: float = 0.5
    """Share of timesteps drawn as T u^3, towards low noise; the others are uniform."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Sampling weight of each sub-folder (1 where not named)."""
    steps: int = 20_000
    minutes: float | None = None
    """Wall-clock budget: training ends, and the learning rate reaches zero, at steps or minutes, whichever is first."""
    optimizer: str = "adamw"
    """adamw, or muon: orthogonalised momentum for the inner convolutions, AdamW for everything else."""
    lr: float = 4e-4
    """AdamW's learning rate at its highest."""
    muon_lr: float = 3e-3
    """Muon's learning rate at its highest, in units of AdamW's (updates are scaled to the same root mean square)."""
    warmup: int = 200
    """Steps of linear warm-up."""
    decay: str = "cosine"
    """Learning-rate schedule after the warm-up: to zero along half a cosine or a line, or constant until the cool-down."""
    cooldown: float = 0.2
    """For decay constant: the last share of the budget, in which the learning rate falls to zero along a line."""
    weight_decay: float = 1e-4
    clip: float = 1.0
    """Gradient norm above which gradients are scaled down."""
    ema: tuple[float, ...] = (0.999,)
    """Decays of the exponential moving averages of the weights, per step; they ramp up from zero. All are validated, the
    best is exported."""
    precision: str = "auto"
    """Arithmetic of the network: auto (bf16 where the hardware has it), fp32, bf16 or fp16."""
    feed: str = "auto"
    """Where crops are cut and noise is drawn: auto (on a GPU, if the 8-bit images fit in a quarter of its free memory) or
    host (by the processor, with the same numbers on every device)."""
    compile: bool = False
    """Compile the network with torch.compile: minutes at the start, faster steps after that."""
    init: str | None = None
    """A prior to start from instead of random weights."""
    validate_every: int = 500
    """Steps between validations."""
    save_minutes: float = 5.0
    """Minutes between checkpoints."""
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
        for valid, name, rule in self._rules():
            if not valid:
                raise UsageError(f"training setting {name}={getattr(self, name)!r}: must be {rule}")
        for name, known in _NAMES.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if self.schedule != type(self).schedule:  # the default needs no numpy, so `invdiff train --help` stays fast
            from invdiff.diffusion.schedule import Schedule

            Schedule.named(self.schedule, self.schedule_steps)  # raises for a name that does not exist

    def _rules(self) -> list[tuple[bool, str, str]]:
        """(whether it holds, setting, what it must be) of everything that the types do not say."""
        factor = self.downsampling
        fits = bool(self.crops) and all(c > 0 and c % factor == 0 for c in self.crops)
        decays = bool(self.ema) and all(0 <= d < 1 for d in self.ema) and len(set(self.ema)) == len(self.ema)
        span = self.value_range
        return [
            (self.channels >= 1, "channels", "at least 1"),
            (bool(self.widths) and min(self.widths) > 0, "widths", "one or more positive numbers"),
            (self.groups > 0 and all(w % self.groups == 0 for w in self.widths), "groups", "a divisor of every width"),
            (self.blocks > 0, "blocks", "at least 1"),
            (self.schedule_steps > 0, "schedule_steps", "at least 1"),
            (self.gamma > 0, "gamma", "more than 0"),
            (self.sigma_data > 0, "sigma_data", "more than 0"),
            (fits, "crops", f"multiples of {factor}"),
            (self.pixels >= min(self.crops, default=1) ** 2, "pixels", "at least one crop of the smallest size"),
            (self.accumulate >= 1, "accumulate", "at least 1"),
            (0 <= self.downscale <= 1, "downscale", "between 0 and 1"),
            (0 <= self.low_noise <= 1, "low_noise", "between 0 and 1"),
            (span is None or (len(span) == 2 and span[0] < span[1]), "value_range", "two numbers, the lower one first"),
            (all(w >= 0 for w in self.weights.values()), "weights", "zero or more each"),
            (self.steps > 0, "steps", "at least 1"),
            (self.minutes is None or self.minutes > 0, "minutes", "more than 0"),
            (self.lr > 0, "lr", "more than 0"),
            (self.muon_lr > 0, "muon_lr", "more than 0"),
            (self.warmup >= 0, "warmup", "zero or more"),
            (0 <= self.cooldown <= 1, "cooldown", "between 0 and 1"),
            (self.weight_decay >= 0, "weight_decay", "zero or more"),
            (self.clip > 0, "clip", "more than 0"),
            (decays, "ema", "one or more different numbers, each at least 0 and below 1"),
            (self.validate_every >= 1, "validate_every", "at least 1"),
            (self.save_minutes > 0, "save_minutes", "more than 0"),
            (self.holdout >= 1, "holdout", "at least 1"),
            (self.seed >= 0, "seed", "zero or more"),
        ]

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


_NAMES = {
    "prediction": PREDICTIONS,
    "weighting": WEIGHTINGS,
    "orientations": ORIENTATIONS,
    "optimizer": OPTIMIZERS,
    "decay": DECAYS,
    "feed": FEEDS,
    "precision": PRECISIONS,
}


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _number(value: Any) -> float:
    if isinstance(value, bool | str) or not math.isfinite(value):
        raise TypeError
    return float(value)


def _numbers(values: Any) -> tuple[float, ...]:
    """One number is a list of one: recipes of the first version have a single decay."""
    if isinstance(values, str | Mapping):
        raise TypeError
    return tuple(map(_number, values)) if hasattr(values, "__iter__") else (_number(values),)


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


# Type of a setting -> (from what a caller or a JSON file gives, what to say where that fails).
_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "int": (_whole, "a whole number"),
    "float": (_number, "a finite number"),
    "float | None": (lambda value: None if value is None else _number(value), "a finite number, or none"),
    "str": (_word, "a name"),
    "str | None": (lambda value: None if value is None else _word(value), "a name, or none"),
    "bool": (_truth, "true or false"),
    "tuple[int, ...]": (lambda values: tuple(_whole(value) for value in values), "a list of whole numbers"),
    "tuple[float, ...]": (_numbers, "a list of finite numbers"),
    "tuple[float, float] | None": (
        lambda values: None if values is None else _numbers(values),
        "two finite numbers, or none",
    ),
    "Mapping[str, float]": (
        lambda values: {_word(folder): _number(weight) for folder, weight in dict(values).items()},
        "folder names with finite numbers",
    ),
}
