"""`invdiff train`: a prior from a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from invdiff.errors import CheckpointError, UsageError
from invdiff.training.config import TrainingConfig
from invdiff.training.recipe import Recipe, check_recipe, overridden, read_recipe, shipped_recipes

from . import options
from .training_progress import Progress

EXAMPLES = """
# an hour on this machine
invdiff train --data photos/ --out runs/mine --minutes 60

# a recipe that comes with invdiff, or a file of your own (.yaml, .toml, .json), and what it should do otherwise
invdiff train small-cpu --data photos/ --out runs/small
invdiff train recipe.yaml --set lr=2e-4 --set weights.textures=0.5 --data photos/ --data textures.tar --out runs/mine

# go on from the shipped prior with images of your own
invdiff train --init natural --data microscope/ --out runs/fine --minutes 30 --lr 1e-4

# stopped with Ctrl-C? go on, for longer
invdiff train --out runs/mine --resume --minutes 120

# several GPUs: the same command after `accelerate launch --multi_gpu -m`
invdiff train large-gpu --data photos/ --out runs/large

invdiff restore blurred.png -o out.png --operator gaussian_blur:sigma=2 --noise 0.05 --prior runs/mine
"""

HELP = f"""Train a diffusion prior on images.

The result is a diffusers folder, and `--prior DIR` uses it. RECIPE holds the settings: a .yaml, .toml or .json file, or
one of {", ".join(shipped_recipes())} (see --list). Options go before it. Ctrl-C saves a checkpoint and stops (exit code
130); --resume goes on from there.
"""

DEFAULTS = TrainingConfig()


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(map(str, values))


def _print_recipes(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from .tables import table

        rows = [(name, read_recipe(name).description) for name in shipped_recipes()]
        click.echo(table(("recipe", "what it is for"), rows))
        ctx.exit()


@click.command(cls=options.Command, epilog=EXAMPLES, help=HELP)
@click.argument("recipe", metavar="[RECIPE]", required=False)
@click.option("--recipe", "recipe_option", metavar="FILE", hidden=True, help="The same as RECIPE.")
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_recipes,
    help="Show the recipes that come with invdiff.",
)
@click.option(
    "--data",
    metavar="DIR|TAR",
    multiple=True,
    help="A folder (with sub-folders), tar files (also part-{000..009}.tar), or a Hugging Face dataset on disk; repeatable.",
)
@click.option("--out", "-o", metavar="DIR", help="Where the prior goes, as a diffusers folder.")
@click.option(
    "--set",
    "assignments",
    type=options.KEY_VALUE,
    multiple=True,
    metavar="KEY=VALUE",
    help="Any setting of a recipe; repeatable.",
)
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
    type=options.NUMBERS,
    metavar="N,N,...",
    help=f"Channels of the network's levels.  [default: {_listed(DEFAULTS.widths)}]",
)
@click.option(
    "--channels",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Channels of the images: 1 is grey, 3 colour.  [default: {DEFAULTS.channels}]",
)
@click.option(
    "--weight",
    "weights",
    type=options.KEY_VALUE,
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
    multiple=True,
    metavar="DECAY",
    help=f"Decay per step of the averaged weights; repeatable, the best is used.  [default: {_listed(DEFAULTS.ema)}]",
)
@click.option(
    "--holdout",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Images held back for validation.  [default: {DEFAULTS.holdout}]",
)
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help=f"Random seed.  [default: {DEFAULTS.seed}]")
@click.option("--init", metavar="PRIOR", help="Start from the weights of this prior, as --prior takes it.")
@click.option("--resume", is_flag=True, help="Go on with the training in --out, with its settings and data.")
@click.option(
    "--save-minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MIN",
    help=f"Time between checkpoints.  [default: {DEFAULTS.save_minutes:g}]",
)
@click.option(
    "--validate-every",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help=f"Steps between validations.  [default: {DEFAULTS.validate_every}]",
)
@click.option("--tensorboard", is_flag=True, help="Also write the curves to OUT/tensorboard.")
@options.hardware_options
@options.quiet_option
@click.pass_context
def train(
    ctx: click.Context,
    recipe: str | None,
    recipe_option: str | None,
    data: tuple[str, ...],
    out: str | None,
    assignments: tuple[tuple[str, str], ...],
    resume: bool,
    tensorboard: bool,
    device: str,
    precision: str,
    quiet: bool,
    **given: Any,
) -> int:
    if recipe and recipe_option:
        raise click.UsageError("RECIPE is given twice, as an argument and with --recipe.")
    # Its default says no more than a recipe does.
    chosen = ctx.get_parameter_source("precision") is not ParameterSource.DEFAULT
    source = recipe or recipe_option
    wanted = read_recipe(source) if source else None
    out = out or (wanted.out if wanted else None)
    if not out:
        raise click.UsageError("Missing option '--out' / '-o': where does the prior go?")
    settings = dict(stored_settings(out).settings if resume else {}) | dict(wanted.settings if wanted else {})
    options_given = given_settings(given | {"precision": precision if chosen else None})
    pairs = options.unique(assignments, "--set")
    if twice := [name for name in pairs if name.partition(".")[0] in options_given]:
        raise click.UsageError(f"--set {twice[0]}=... is given twice, there is an option for it, too.")
    config = TrainingConfig.from_dict(overridden(settings | options_given, pairs.items()))
    return _run(config, _sources(data, wanted, out, resume), out, resume, device, tensorboard, quiet)


def _run(
    config: TrainingConfig,
    data: tuple[str, ...],
    out: str,
    resume: bool,
    device: str,
    tensorboard: bool,
    quiet: bool,
) -> int:
    from invdiff.machine.device import choose_device
    from invdiff.priors.stored.environment import explain_import_failure

    where = choose_device(device)
    with explain_import_failure():
        from invdiff.training import distributed, engine

        main = distributed.is_main()
        with Progress(quiet, silent=not main) as progress:
            engine.train(
                config, data, out, resume=resume, device=where, tensorboard=tensorboard, report=progress.report
            )
        distributed.leave()
    if not main:
        return 0
    if progress.fraction < 1 and (progress.step or progress.stopped):
        when = f"at step {progress.step}" if progress.step else "before the first step"
        click.echo(f"stopped {when}, saved in {out}; go on with --resume", err=True)
        return 130
    if not progress.step:
        click.echo(f"{out}: its budget was used up already; go on with a larger --steps or --minutes", err=True)
    elif not quiet:
        click.echo(f"{out}  {progress.step} steps; try: invdiff sample --prior {out} -o sample.png")
    return 0


def stored_settings(out: str) -> Recipe:
    """The settings of the training in OUT."""
    from invdiff.priors.stored.tensor_files import read_json

    path = Path(out) / "recipe.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: nothing to resume; leave out --resume to start a new training")
    return check_recipe(read_json(path), str(path))


def _sources(data: tuple[str, ...], recipe: Recipe | None, out: str, resume: bool) -> tuple[str, ...]:
    """The data of the command line, else of the recipe, else (to resume) of the training so far."""
    found = data or (recipe.data if recipe else ())
    if not found and resume:
        from invdiff.training.provenance import earlier_data

        found = earlier_data(Path(out))
    if not found:
        raise UsageError("no images to train on: give --data DIR (repeatable), or `data:` in the recipe")
    return found


def given_settings(given: dict[str, Any]) -> dict[str, Any]:
    """The settings among the command line's options, as TrainingConfig takes them."""
    settings = {key: value for key, value in given.items() if value not in (None, ())}
    if "weights" in settings:
        settings["weights"] = {}
        for folder, text in options.unique(given["weights"], "--weight").items():
            try:
                settings["weights"][folder] = float(text)
            except ValueError:
                raise click.UsageError(f"--weight {folder}={text}: {text!r} is not a number.") from None
    return settings
