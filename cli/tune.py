"""`invdiff tune`: search for the settings of a solver on a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from invdiff.errors import UsageError

from . import errors, options, tables

if TYPE_CHECKING:
    from invdiff.evaluation.tuning.outcome import Outcome, Part
    from invdiff.evaluation.tuning.search import Trial

EXAMPLES = """
# better settings of diffpir for this blur, on pictures of your own kind; then restore with them
invdiff tune --data photos/ --operator gaussian_blur:sigma=2 --noise 0.05 --solver diffpir --steps 20 \\
    --limit 12 --crop 128 -o blur.yaml
invdiff restore blurred.png -o out.png --operator gaussian_blur:sigma=2 --noise 0.05 --preset blur.yaml

# only two of its settings, by the CRPS of four samples
invdiff tune --data photos/ --operator inpaint:keep=0.3 --noise 0.05 --solver ddrm --steps 20 \\
    --only eta --only eta_b --metric crps -o holes.yaml
"""


@click.command("tune", cls=options.Command, epilog=EXAMPLES)
@click.option("--data", metavar="DIR", required=True, help="Folder of clean pictures, none of them of a test set.")
@options.operator_option
@click.option("--noise", metavar="SIGMA|SPEC", required=True, help="Noise of the measurements, as for `degrade`.")
@click.option("--solver", metavar="SPEC", required=True, help="Solver: NAME, or NAME:key=value,..., whose values stay.")
@options.count("--steps", help="Its steps; every trial makes as many network calls.")
@click.option(
    "--fix",
    "fixed",
    type=options.KEY_VALUE,
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting that stays as it is; repeatable.",
)
@click.option(
    "--only", metavar="KEY", multiple=True, help="Search this setting alone; repeatable.  [default: docs/tuning.md]"
)
@options.count("--trials", default=50, help="Settings to try, in all.")
@click.option(
    "--metric",
    type=click.Choice(["psnr", "ssim", "crps"]),
    default="psnr",
    help="crps: the samples' spread counts too.",
)
@options.count("--samples", help="Samples for each picture, whose mean is scored.  [default: 1; 4 for crps]")
@click.option("--limit", type=click.IntRange(min=2), metavar="N", help="Use the first N pictures.")
@options.count("--crop", metavar="S", help="Use the middle S x S pixels of each.")
@options.prior_option
@options.seed_option
@options.hardware_options
@click.option("-o", "--out", metavar="FILE.yaml", required=True, help="The preset; beside it FILE.journal, the trials.")
@click.option(
    "--suite",
    "suites",
    metavar="NAME|FILE|RUN",
    multiple=True,
    help="Also refuse pictures of this suite's or run's data.",
)
@click.option("--allow-test-set", is_flag=True, help="Warn of pictures of a test set instead of refusing them.")
@click.option("--restart", is_flag=True, help="Throw the trials in FILE.journal away.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file that is no preset.")
@options.quiet_option
def tune(
    data: str,
    operator: str,
    noise: str,
    solver: str,
    steps: int | None,
    fixed: tuple[tuple[str, str], ...],
    only: tuple[str, ...],
    trials: int,
    metric: str,
    samples: int | None,
    limit: int | None,
    crop: int | None,
    prior: str,
    seed: int,
    device: str,
    precision: str,
    out: str,
    suites: tuple[str, ...],
    allow_test_set: bool,
    restart: bool,
    overwrite: bool,
    quiet: bool,
) -> int:
    """Search for settings of a solver that restore better than its defaults.

    The pictures are degraded once, and every trial restores them with the same random numbers; poor trials stop after a few
    pictures. Of eight pictures or more, a quarter is held back from the search. The preset holds the best settings if they
    beat the defaults on both parts, and otherwise the defaults, with `better: false`.

    Every trial is kept in FILE.journal: after Ctrl-C the same command goes on, and with more --trials it goes further.
    Needs optuna: pip install 'invdiff[tune]'.
    """
    from invdiff import solvers
    from invdiff.evaluation.measured_folder import read_pictures
    from invdiff.evaluation.tuning import guard as sets
    from invdiff.evaluation.tuning import outcome, search
    from invdiff.noise import noise_model
    from invdiff.operator.from_file import absolute
    from invdiff.operators import resolve_operator
    from invdiff.restoration.api import resolve_prior

    search.import_optuna()
    target = _target(out, overwrite)
    journal = target.with_suffix(".journal")
    reason = sets.refuse_test_sets(data, suites, allow=allow_test_set)
    if reason:
        click.echo(f"warning: {reason}: no number measured there with this preset means anything", err=True)
    settings = options.unique(fixed, "--fix")
    chosen, held = outcome.prepare(solver, steps, settings)
    A, model = resolve_operator(operator), noise_model(noise)
    solvers.check(chosen, A)
    network = resolve_prior(prior, device, precision)
    judge = search.Judge(A, model, network, metric, samples or (4 if metric == "crps" else 1), seed)
    pictures = read_pictures(data, A, model, network, crop=crop, limit=limit, seed=seed, fewest=2)
    for path, why in pictures.failed:
        click.echo(errors.about(Path(path), why), err=True)
    if restart:
        journal.unlink(missing_ok=True)

    def advance(trial: Trial, best: Trial | None) -> None:
        if not quiet:
            click.echo(_line(trial, best, trials))

    try:
        result = outcome.tune(
            judge, pictures, chosen, trials=trials, fixed=held, only=only, journal=journal, advance=advance
        )
    except KeyboardInterrupt:
        click.echo(f"stopped; the finished trials are in {journal}, and the same command goes on", err=True)
        raise
    command = options.repeat_command(
        operator=absolute(operator), samples=judge.samples, out=target, allow_test_set=bool(reason), restart=None
    )
    result.preset(command, reason or None).save(target)
    if not quiet:
        click.echo(_report(result))
        click.echo(f"written: {target}")
    return 1 if pictures.failed else 0


def _target(out: str, overwrite: bool) -> Path:
    """The preset's path, checked before anything is computed."""
    from invdiff.files.atomic import has_mark
    from invdiff.restoration.presets import KIND

    path = Path(out)
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise UsageError(f"-o {out}: a preset is a .yaml file, e.g. -o {path.with_suffix('.yaml')}")
    if path.is_dir():
        raise UsageError(f"-o {out}: is a folder; name a file in it")
    if path.exists() and not overwrite and not has_mark(path, KIND):
        raise UsageError(f"{path} exists and is no preset; choose another -o, or use --overwrite")
    return path


def _line(trial: Trial, best: Trial | None, trials: int) -> str:
    """The line of one trial: "12/50  +0.123 on 6 images  lam=0.43, zeta=0.8"."""
    said = ", ".join(f"{key}={value}" for key, value in trial.settings.items())
    if trial.state == "impossible":
        told = f"impossible: {trial.error}"
    else:
        told = f"{trial.gain:+.4f} on {len(trial.scores)} images{', given up' if trial.state == 'pruned' else ''}"
    mark = "  <- best" if best is not None and trial.number == best.number else ""
    return f"{trial.number}/{trials}  {told}  {said}{mark}"


def _report(result: Outcome) -> str:
    """The scores of the defaults and of the tuned settings, image by image."""
    unit = {"psnr": "PSNR, dB", "ssim": "SSIM", "crps": "CRPS, less is better"}[result.judge.metric]
    lines = ["", f"default: {result.solver.spec}", f"tuned:   {result.tuned.spec}", ""]
    parts: list[tuple[str, Part]] = [("searched on", result.searched)]
    parts += [("held back", result.held_back)] if result.held_back else []
    rows = []
    for name, part in parts:
        means = part.record()
        every = [(key, part.defaults[key], part.tuned[key], gain) for key, gain in part.gains.items()]
        every += [(f"mean, {part.wins} better", means["default"], means["tuned"], part.gain)]
        rows += [(name, key, f"{before:.4f}", f"{after:.4f}", f"{gain:+.4f}") for key, before, after, gain in every]
    lines += [tables.table(("pictures", "image", f"default ({unit})", "tuned", "gain"), rows), ""]
    for name, part in parts if result.found.best else []:
        if len(part.gains) > 1:
            low, high = part.interval.low, part.interval.high
            lines.append(f"gain on the pictures {name}: {part.gain:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}")
    if best := result.found.best:
        lines.append(f"seconds an image: default {result.found.seconds:.2f}, tuned {best.seconds:.2f}")
    if result.found.best is None:
        lines.append("\nNo trial beat the defaults: the preset holds the defaults (better: false).")
    elif not result.better:
        lines.append("\nNo gain on the pictures held back: the preset holds the defaults (better: false).")
    elif result.held_back is None:
        lines.append(
            "\nToo few pictures to hold some back: the gain is measured on the pictures searched on, and is too large."
        )
    return "\n".join(lines)
