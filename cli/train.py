"""`invdiff train`: a prior from a folder of images."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import click

from invdiff.errors import CheckpointError, UsageError
from invdiff.training.config import TrainingConfig

from . import options

EXAMPLES = """
# an hour on this machine
invdiff train --data photos/ --out runs/mine --minutes 60

# two sources, one drawn twice as often; larger crops
invdiff train --data photos/ --data textures.tar --weight photos=2 --out runs/mine --crop 64 --crop 128 --steps 50000

# stopped with Ctrl-C? go on, for longer
invdiff train --data photos/ --out runs/mine --resume --minutes 120

invdiff restore blurred.png -o out.png --operator gaussian_blur:sigma=2 --noise 0.05 --prior runs/mine
"""

DEFAULTS = TrainingConfig()


def _listed(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))


@click.command(cls=options.Command, epilog=EXAMPLES)
@click.option(
    "--data", metavar="DIR|TAR", multiple=True, required=True, help="A folder (with sub-folders) or a tar; repeatable."
)
@click.option("--out", "-o", metavar="DIR", required=True, help="Where the prior goes, as a diffusers folder.")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help=f"Optimiser steps.  [default: {DEFAULTS.steps}]")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MIN",
    help="Wall-clock budget; training ends at --steps or --minutes, whichever is first.",
)
@click.option(
    "--crop",
    "crops",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="PX",
    help=f"Side of the square crops; repeatable, one is drawn for each step.  [default: {_listed(DEFAULTS.crops)}]",
)
@click.option(
    "--batch-pixels",
    "pixels",
    type=click.IntRange(min=1),
    metavar="PX",
    help=f"Pixels in a batch: small crops come in larger batches.  [default: {DEFAULTS.pixels}]",
)
@click.option(
    "--widths",
    type=options.Numbers(),
    metavar="N,N,...",
    help=f"Channels of the network's levels.  [default: {_listed(DEFAULTS.widths)}]",
)
@click.option("--channels", type=click.Choice(["1", "3"]), help=f"Grey or colour.  [default: {DEFAULTS.channels}]")
@click.option(
    "--weight",
    "weights",
    type=options.KeyValue(),
    multiple=True,
    metavar="FOLDER=W",
    help="How often a folder is drawn, relative to the others; repeatable.  [default: 1 each]",
)
@click.option(
    "--lr",
    type=click.FloatRange(min=0, min_open=True),
    metavar="RATE",
    help=f"Learning rate at its highest.  [default: {DEFAULTS.lr:g}]",
)
@click.option(
    "--ema",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="DECAY",
    help=f"Decay per step of the averaged weights.  [default: {DEFAULTS.ema:g}]",
)
@click.option(
    "--holdout",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Images held back for validation.  [default: {DEFAULTS.holdout}]",
)
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help=f"Random seed.  [default: {DEFAULTS.seed}]")
@click.option("--recipe", metavar="FILE", help="Settings from the recipe.json of another training; options win.")
@click.option("--resume", is_flag=True, help="Go on with the training in --out, with its settings.")
@click.option(
    "--save-minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MIN",
    default=5.0,
    help="Time between checkpoints.",
)
@click.option(
    "--validate-every", type=click.IntRange(min=1), metavar="STEPS", default=500, help="Steps between validations."
)
@options.hardware_options
@options.quiet_option
def train(
    data: tuple[str, ...],
    out: str,
    recipe: str | None,
    resume: bool,
    save_minutes: float,
    validate_every: int,
    device: str,
    precision: str,
    quiet: bool,
    **given: Any,
) -> int:
    """Train a diffusion prior on a folder of images.

    The result is a diffusers folder, and `--prior DIR` uses it. Ctrl-C saves a checkpoint and stops (exit code 130);
    --resume goes on from there.
    """
    if recipe and resume:
        raise UsageError("--resume takes its settings from the recipe.json in --out; leave out --recipe")
    config = TrainingConfig.from_dict(stored_settings(recipe, out, resume) | given_settings(given))

    from invdiff.device import choose_device, choose_precision
    from invdiff.priors.environment import explain_import_failure
    from invdiff.training.engine import train as run

    where = choose_device(device)
    arithmetic = choose_precision(precision, where)
    with explain_import_failure(), Progress(quiet) as progress:
        run(
            config,
            data,
            out,
            resume=resume,
            device=where,
            precision=arithmetic,
            save_minutes=save_minutes,
            validate_every=validate_every,
            report=progress.report,
        )
    if progress.fraction < 1 and (progress.step or progress.stopped):
        when = f"at step {progress.step}" if progress.step else "before the first step"
        click.echo(f"stopped {when}, saved in {out}; go on with --resume", err=True)
        return 130
    if not progress.step:
        click.echo(f"{out}: its budget was used up already; go on with a larger --steps or --minutes", err=True)
    elif not quiet:
        click.echo(f"{out}  {progress.step} steps; try: invdiff sample --prior {out} -o sample.png")
    return 0


def stored_settings(recipe: str | None, out: str, resume: bool) -> dict[str, Any]:
    """The settings of a recipe.json: the one given, or with `resume` the one in OUT."""
    path = Path(out) / "recipe.json" if resume else Path(recipe) if recipe else None
    if path is None:
        return {}
    if not path.is_file():
        fix = "nothing to resume; leave out --resume to start a new training" if resume else "no such file"
        raise CheckpointError(f"{path}: {fix}")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no settings; it should look like the recipe.json of a trained prior")
    return content


def given_settings(given: dict[str, Any]) -> dict[str, Any]:
    """The settings among the command line's options, as TrainingConfig takes them."""
    settings = {key: value for key, value in given.items() if value not in (None, ())}
    if "channels" in settings:
        settings["channels"] = int(settings["channels"])
    if "weights" in settings:
        settings["weights"] = {}
        for folder, text in options.unique(given["weights"], "--weight").items():
            try:
                settings["weights"][folder] = float(text)
            except ValueError:
                raise click.UsageError(f"--weight {folder}={text}: {text!r} is not a number.") from None
    return settings


class Progress:
    """A bar on a terminal, a line a minute elsewhere; the log of the training on stderr."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.fraction, self.step = 0.0, 0
        self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        form = "{percentage:5.1f}%|{bar:24}| {elapsed}<{remaining}{postfix}"
        off = self.quiet or not sys.stderr.isatty()
        self._bar = tqdm(total=1.0, bar_format=form, disable=off, dynamic_ncols=True)
        self._handler = _AboveBar()
        self._handler.setFormatter(logging.Formatter("%(message)s"))
        logger = logging.getLogger("invdiff")
        self._level = logger.level
        logger.addHandler(self._handler)
        logger.setLevel(logging.WARNING if self.quiet else logging.INFO)
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
        logger = logging.getLogger("invdiff")
        logger.removeHandler(self._handler)
        logger.setLevel(self._level)

    @property
    def stopped(self) -> bool:
        """True once a signal asked the training to stop."""
        return self._handler.stopping

    def report(self, state: dict[str, Any]) -> None:
        """Take the engine's numbers after a step."""
        self.fraction, self.step = min(1.0, state["progress"]), state["step"]
        facts = f"step {state['step']}, loss {state['loss']:.4f}, learning rate {state['lr']:.2g}"
        if not self._bar.disable:
            self._bar.set_postfix_str(facts, refresh=False)
            self._bar.update(self.fraction - self._bar.n)
        elif not self.quiet and time.monotonic() - self._last_line > 60:
            self._last_line = time.monotonic()
            click.echo(f"{100 * self.fraction:.1f} %, {facts}", err=True)


class _AboveBar(logging.Handler):
    """Log lines on stderr that leave the progress bar in one piece."""

    stopping = False

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        # The only warning of that module is the one of its StopFlag; before the first step nothing else tells.
        self.stopping |= record.name == "invdiff.training.background" and record.levelno == logging.WARNING
        tqdm.write(self.format(record), file=sys.stderr)
