"""The HTML pages of a run and of the comparison of two runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invdiff.evaluation.report import comparing, gallery, results
from invdiff.evaluation.report.rows import Group, Row
from invdiff.evaluation.store import Run
from invdiff.files.pages.rendering import data_uri, render

MARK = "invdiff report"
"""Text near a page's beginning, by which a later run knows that it may replace the page."""

HERE = Path(__file__).parent
POINTS = 200_000
"""The most PSNRs that a page holds for its plots image by image; more would make it slow."""


@dataclass(frozen=True)
class Plot:
    """A figure as the page shows it. `kind` is cost or calibration, `name` that of its files."""

    kind: str
    title: str
    name: str
    png: bytes
    svg: bytes

    @property
    def words(self) -> str:
        """What it shows, as a text for those who do not see it."""
        return {"cost": "PSNR against network calls and seconds", "calibration": "calibration"}.get(
            self.kind, self.kind
        )

    @property
    def uri(self) -> str:
        """The SVG as a data URI."""
        return data_uri(self.svg, "image/svg+xml")


def report(
    run: Run,
    groups: Sequence[Group],
    plots: Sequence[Plot],
    notes: Sequence[str],
    undrawn: str,
    versions: Mapping[str, str],
) -> str:
    """The page of one run."""
    cards, gallery_notes = gallery.cards(run, groups)
    calibration, points = results.calibration_table(groups), _points(groups)
    several = sum(sum("psnr" in row.scores for row in group.rows) > 1 for group in groups)
    failures = [
        (image, row.label, group.title, error)
        for group in groups
        for row in group.rows
        for image, error in row.failures.items()
    ]
    sections = [("protocol", "Protocol"), ("results", "Results"), ("cost", "Quality against cost")]
    sections += [("images", "Image by image"), ("pictures", "Pictures")]
    sections += [("calibration", "Calibration")] if calibration else []
    simulations = results.simulation_table(run)
    sections += [("simulations", "Images of the prior")] if simulations else []
    skipped = [(str(one["what"]), str(one["reason"])) for one in run.record.get("skipped") or []]
    sections += [("failed", "Failed images")] if failures else []
    sections += [("skipped", "Left out")] if skipped else []
    sections += [("provenance", "Provenance")]
    return render(
        HERE / "report.html",
        MARK,
        side=gallery.SIDE,
        brightest=gallery.BRIGHTEST,
        title=f"Evaluation {run.record.get('name') or run.folder.name}",
        summary=summary(run, groups),
        sections=sections,
        notes=notes,
        protocol=run.record.get("protocol_text") or [],
        table=results.table(groups),
        plots=plots,
        undrawn=undrawn,
        cards=cards,
        gallery_notes=gallery_notes,
        calibration=calibration,
        simulations=simulations,
        failures=failures,
        skipped=skipped,
        provenance=provenance(run, versions),
        unscattered=f"Of {several} groups {len(points)} are at hand." if len(points) < several else "",
        data={"groups": points, "compares": False},
    )


def comparison(
    a: Run, b: Run, pairs: Sequence[comparing.Pair], differences: Sequence[tuple[str, str, str]], notes: Sequence[str]
) -> str:
    """The page of two runs."""
    groups = [Group({}, [pair.first, pair.second]) for pair in pairs]
    points = _points(groups, [f"{pair.name}: {pair.title}" for pair in pairs], ("A", "B"))
    return render(
        HERE / "comparison.html",
        MARK,
        title=f"{a.record.get('name')} (A) and {b.record.get('name')} (B)",
        summary=f"A: {a.folder}. B: {b.folder}. {len(pairs)} cells in common.",
        notes=notes,
        table=comparing.table(pairs),
        differences=differences,
        data={"groups": points, "compares": True},
    )


def summary(run: Run, groups: Sequence[Group]) -> str:
    """What was run, in a line."""
    rows = [row for group in groups for row in group.rows]
    done, failed = sum(len(row.images) for row in rows), sum(len(row.failures) for row in rows)
    parts = [f"{len(rows)} cells in {len(groups)} comparable groups", f"{done} results", f"{failed} failed"]
    seconds = sum(row.seconds * len(row.images) for row in rows if row.seconds is not None)
    hours = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
    parts += [f"{hours} of restoring"] if seconds else []
    return ", ".join([*parts, f"started {run.record.get('started')}"])


def provenance(run: Run, versions: Mapping[str, str]) -> list[tuple[str, str]]:
    """What is needed to repeat the run, as (name, text)."""
    record = run.record
    facts = [("command", str(record.get("command"))), ("settings hash", str(record.get("hash")))]
    facts += [("seed", ", ".join(sorted({str(cell["seed"]) for cell in run.cells})))]
    for name in ("versions", "priors", "data", "protocol"):
        facts += [(f"{name}: {key}", text) for key, text in comparing.flat(record.get(name) or {})]
    for key in ("device", "host", "batch"):
        if found := sorted({str(one[key]) for one in run.timings.values() if key in one}):
            facts.append((key, ", ".join(found)))
    return [*facts, ("this page", ", ".join(f"{name} {number}" for name, number in versions.items()))]


def _points(
    groups: Sequence[Group], titles: Sequence[str] | None = None, names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """PSNR by image and row of the groups with two rows or more, the best row first, as far as POINTS go."""
    found, left = [], POINTS
    for index, group in enumerate(groups):
        rows = [row for row in group.rows if row.values.get("psnr")]
        images = group.images
        left -= len(rows) * len(images)
        if len(rows) < 2 or left < 0:
            continue
        if names is None:
            rows.sort(key=lambda row: -row.scores["psnr"].mean)
        shown = [
            {"name": names[at] if names else row.label, "psnr": [_finite(row, image) for image in images]}
            for at, row in enumerate(rows)
        ]
        found.append({"title": titles[index] if titles else group.title, "images": images, "rows": shown})
    return found


def _finite(row: Row, image: str) -> float | None:
    value = row.values["psnr"].get(image, math.nan)
    return round(value, 3) if math.isfinite(value) else None
