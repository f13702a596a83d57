"""Write a report: the page, and the plots and tables beside it, all of them or none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from invdiff.errors import UsageError
from invdiff.evaluation.report import comparing, figures, page, results
from invdiff.evaluation.report.page import MARK, Plot
from invdiff.evaluation.report.rows import Group, Row, groups
from invdiff.evaluation.store import Run, load
from invdiff.files.atomic import all_or_nothing, atomic_path, has_mark
from invdiff.files.pages import tables

PAGE = "report.html"
OWN_PLOT = re.compile(r"\d{2}-[a-z0-9-]*-(cost|calibration|image-by-image)\.(png|svg)")
DRAWN = 16
"""The most groups with plots of their own: each plot takes half a second and 100 kB of the page."""

Source = str | Path


def report(folder: Source, out: Source | None = None) -> list[Path]:
    """Write the report of a run into `out` (default: FOLDER/report) and return its files, the page first.

    Raises UsageError for a folder that is no run or has no results yet, and for an `out` that holds other files.
    """
    from invdiff.machine.versions import package_versions

    run = load(folder)
    _check_results(run)
    target = _target(out or run.folder / "report")
    found = groups(run)
    notes = _unfinished(run, found)
    looks = figures.styles(found)
    plots = [plot for index, group in enumerate(found[:DRAWN], start=1) for plot in _plots(index, group, looks)]
    undrawn = f"Plots are of the first {DRAWN} of {len(found)} groups." if len(found) > DRAWN else ""
    table, heading = results.table(found), str(run.record.get("name") or run.folder.name)
    lines = [str(line) for line in run.record.get("protocol_text") or []]
    files: dict[str, str | bytes] = {
        PAGE: page.report(run, found, plots, notes, undrawn, package_versions()),
        "results.csv": results.as_csv(found),
        "table.md": tables.markdown(table, heading, [*lines, *notes]),
        "table.tex": tables.latex(table, heading, [*lines, *notes]),
    }
    for plot in plots:
        files |= {f"plots/{plot.name}.png": plot.png, f"plots/{plot.name}.svg": plot.svg}
    return _write(target, files)


def comparison(folder: Source, other: Source, out: Source | None = None) -> list[Path]:
    """Write the comparison of two runs into `out` (default: FOLDER/report-OTHER), as `report` does.

    Raises UsageError as `report` does, and for two runs that share no cell.
    """
    a, b = load(folder), load(other)
    if a.folder.resolve() == b.folder.resolve():
        raise UsageError(f"{folder} and {other} are one run; give two, or one alone for its report")
    for run in (a, b):
        _check_results(run)
    target = _target(out or a.folder / f"report-{b.folder.resolve().name}")
    mine, theirs = groups(a), groups(b)
    pairs, notes = comparing.pairs(a, mine, b, theirs)
    differences = comparing.differences(a, b)
    if changed := [name for name, _, _ in differences if name.split(".")[0] == "protocol"]:
        notes.insert(0, f"The two protocols differ, so that their scores mean different things: {', '.join(changed)}")
    notes += [f"A: {note}" for note in _unfinished(a, mine)] + [f"B: {note}" for note in _unfinished(b, theirs)]
    table, heading = comparing.table(pairs), f"A: {a.folder}, B: {b.folder}"
    return _write(
        target,
        {
            PAGE: page.comparison(a, b, pairs, differences, notes),
            "results.csv": comparing.as_csv(pairs),
            "table.md": tables.markdown(table, heading, notes),
            "table.tex": tables.latex(table, heading, notes),
        },
    )


def _check_results(run: Run) -> None:
    if not run.results:
        raise UsageError(f"{run.folder} has no results yet; go on with the run: {run.record.get('command')}")


def _unfinished(run: Run, found: Sequence[Group]) -> list[str]:
    """A sentence about images without a result, so that a mean over a part of them is not taken for that of all.

    Where all rows of each data set have the same images, no others were asked for (--limit)."""
    done: dict[str, set[frozenset[str]]] = {}
    for row in (row for group in found for row in group.rows):
        done.setdefault(str(row.cell["data"]), set()).add(frozenset([*row.images, *row.failures]))
    sizes = {name: int(run.record["data"][name]["images"]) for name in done}
    parts = [(name, len(min(images, key=len)), sizes[name]) for name, images in done.items()]
    if all(part >= whole for _, part, whole in parts):
        return []
    if all(len(images) == 1 for images in done.values()):
        told = ", ".join(f"{part} of {whole} images of {name}" for name, part, whole in parts if part < whole)
        return [f"Every row is of {told}. For all of them go on, without --limit: {run.record.get('command')}"]
    results = sum(len(row.images) + len(row.failures) for group in found for row in group.rows)
    expected = sum(sizes[str(row.cell["data"])] for group in found for row in group.rows)
    return [
        f"The run is unfinished: {results} of {expected} results are there. Go on with: {run.record.get('command')}"
    ]


def _plots(index: int, group: Group, styles: Mapping[str, int]) -> list[Plot]:
    name = re.sub(r"[^a-z0-9]+", "-", f"{group.settings['data']} {group.settings['operator']}".lower()).strip("-")
    drawn = {"cost": figures.cost(group, styles), "calibration": figures.calibrated(group, styles)}
    best = sorted((row for row in group.rows if "psnr" in row.scores), key=_quality)[:2]
    drawn["image-by-image"] = figures.image_by_image(group, best[1], best[0]) if len(best) == 2 else None
    return [
        Plot(kind, group.title, f"{index:02d}-{name[:40]}-{kind}", *figures.render(figure))
        for kind, figure in drawn.items()
        if figure is not None
    ]


def _quality(row: Row) -> float:
    return -row.scores["psnr"].mean


def _target(out: Source) -> Path:
    """The folder of the report, refused where it holds files that no report wrote."""
    target = Path(out)
    if target.exists() and not target.is_dir():
        raise UsageError(f"--out {target} is a file; give a folder")
    if target.is_dir() and any(target.iterdir()) and not has_mark(target / PAGE, MARK):
        raise UsageError(f"--out {target} holds files that are not of a report; give a new folder")
    return target


def _write(target: Path, files: dict[str, str | bytes]) -> list[Path]:
    with all_or_nothing():
        for name, content in files.items():
            with atomic_path(target / name) as temporary:
                temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    for stale in (target / "plots").glob("[0-9][0-9]-*-*.*g"):  # of groups that an earlier report had
        if OWN_PLOT.fullmatch(stale.name) and f"plots/{stale.name}" not in files:
            stale.unlink(missing_ok=True)
    return [target / name for name in files]
