"""`invdiff report`: its numbers against others' arithmetic, its files, bad input, and the page in a browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import shutil
import statistics
import subprocess
import zlib
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from synthetic_run import IMAGES, METHODS, OPERATORS, Method, make_cell, write_lines, write_png, write_run

from invdiff.cli.main import main
from invdiff.errors import UsageError
from invdiff.evaluation.pictures import file_name
from invdiff.evaluation.report import comparing, figures, gallery, results, writing
from invdiff.evaluation.report.rows import groups
from invdiff.evaluation.store import load
from invdiff.files.pages import tables

NASTY = """<script>alert(1)</script>&"'|a_b%$#{}~^\\`*[x](y)"""
VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """Reads a page: that its elements are nested, their attributes, and the rows of its tables as text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._table: list[list[str]] | None = None
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = self.tables.setdefault(dict(attrs).get("id") or f"table {len(self.tables)}", [])
        elif tag == "tr" and self._table is not None:
            self._table.append([])
        elif tag in ("td", "th") and self._table is not None:
            self._table[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & set(self.open):
            return
        self.text += data
        if self._table and self._table[-1] and {"td", "th"} & set(self.open):
            self._table[-1][-1] += data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [str(found[name]) for kind, found in self.elements if kind == tag and name in found]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "first", failed=["coffee"])


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return writing.report(run)[0].read_text(encoding="utf-8")


def records(run: Path, name: str = "results.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def simple_run(folder: Path, scores: dict[str, Sequence[float | None]], **settings: Any) -> Path:
    """A run of one measurement: solver -> PSNR of each image, None where there is no result yet."""
    methods = [Method(solver, 20, 0.05) for solver in scores]
    count = max(map(len, scores.values()))
    write_run(folder, methods, OPERATORS[:1], ["coffee"], pictures=0, **settings)
    record = json.loads((folder / "run.json").read_text())
    record["data"]["photos"]["images"] = count
    (folder / "run.json").write_text(json.dumps(record))
    template = records(folder)[0] | {"ssim": 0.5}
    lines = [
        template | {"cell": cell["id"], "image": f"{at:02d}", "psnr": value}
        for cell in record["cells"]
        for at, value in enumerate(scores[cell["solver"]])
        if value is not None
    ]
    write_lines(folder / "results.jsonl", lines)
    return folder


def invoke(*words: Any) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, words)])


def marks(run: Path, key: str = "psnr") -> dict[str, str]:
    (group,) = groups(load(run))
    return {str(row.cell["solver"]): row.marks.get(key, "") for row in group.rows}


# The page


def test_the_page_is_one_file_that_names_no_other(html: str) -> None:
    page = Page(html)
    sources = page.attributes("img", "src") + page.attributes("a", "href")
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert not re.search(r"https?:", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert not page.attributes("script", "src")
    anchors = {found["id"] for _, found in page.elements if "id" in found}
    assert {link[1:] for link in page.attributes("a", "href")} <= anchors
    assert all(found.get("alt") is not None for tag, found in page.elements if tag == "img")


def test_the_parser_catches_wrong_nesting() -> None:
    for wrong in ("<p><b>x</p></b>", "<table><tr><td>x</td></tr>"):
        with pytest.raises(AssertionError):
            Page(wrong)


def test_the_table_holds_what_the_records_say(run: Path, html: str) -> None:
    """Every number of the table, computed once more from the lines of the files."""
    head, *lines = Page(html).tables["cells"]
    columns = {name: at for at, name in enumerate(head)}
    rows = [line for line in lines if len(line) > 1]
    record = json.loads((run / "run.json").read_text())
    last = {(line["cell"], line["image"]): line for line in records(run, "timings.jsonl")}
    assert len(rows) == len(record["cells"]) == len(METHODS) * len(OPERATORS)
    for cell, row in zip(record["cells"], rows, strict=True):
        mine = [line for line in records(run) if line["cell"] == cell["id"]]
        done = [line for line in mine if "error" not in line]
        costs = [last[line["cell"], line["image"]] for line in done]
        mean = lambda key: statistics.fmean(line[key] for line in done)  # noqa: E731, B023
        expected = {
            "PSNR (dB)": f"{mean('psnr'):.2f}",
            "SSIM": f"{mean('ssim'):.4f}",
            "gain (dB)": f"{statistics.fmean(line['psnr'] - line['before']['psnr'] for line in done):+.2f}",
            "residual": f"{mean('residual'):.3f}",
            "NFE": f"{mean('nfe'):.0f}",
            "s/image": f"{statistics.fmean(cost['seconds'] for cost in costs):.3g}",
            "MB": f"{max(cost['peak_memory_mb'] for cost in costs):.0f}",
            "images": f"{len(done)}, 1 failed" if len(done) < len(mine) else f"{len(done)}",
        }
        if cell["samples"] > 1:
            expected["PSNR, one sample"] = f"{statistics.fmean(line['single']['psnr'] for line in done):.2f}"
            expected["CRPS"] = f"{statistics.fmean(line['calibration']['crps'] for line in done):.5f}"
        shown = {name: row[columns[name]].partition(" [")[0] for name in expected}
        shown["s/image"] = f"{float(shown['s/image']):.3g}"
        assert shown == expected
        assert cell["command"] in row[0] and cell["solver"] in row[0]
        low, high = map(float, re.findall(r"[\d.]+", row[columns["PSNR (dB)"]])[1:])
        assert low < mean("psnr") < high


def test_the_csv_has_every_digit(run: Path, html: str) -> None:
    rows = list(csv.DictReader(io.StringIO((run / "report/results.csv").read_text())))
    for row in rows:
        done = [line for line in records(run) if line["cell"] == row["id"] and "error" not in line]
        assert float(row["psnr"]) == pytest.approx(statistics.fmean(line["psnr"] for line in done), rel=1e-12)
        assert int(row["images"]) == len(done) and row["command"].startswith("invdiff evaluate")
    assert sum(row["psnr_mark"] == "best" for row in rows) == len(OPERATORS)


def test_protocol_provenance_and_failures_are_told(run: Path, html: str) -> None:
    text = Page(html).text
    record = json.loads((run / "run.json").read_text())
    hashed = record["priors"]["natural"]["sha256"]
    for said in (*record["protocol_text"], record["command"], hashed, "torch", "laptop", "coffee: NaN at step 3"):
        assert said in text
    assert "unfinished" not in text


def test_the_pages_of_equal_runs_are_equal(run: Path, html: str, tmp_path: Path) -> None:
    """No date, no order of a set: a report can be kept under version control."""
    files = writing.report(run, tmp_path / "again")
    for file in files:
        assert file.read_bytes() == (run / "report" / file.relative_to(tmp_path / "again")).read_bytes(), file


# Marks


def test_marks_follow_the_paired_test(tmp_path: Path) -> None:
    """`even` wins as often as it loses against `best`, `worse` loses always; the images differ by far more than both."""
    hard = 20 + np.arange(12.0)
    even = hard + np.resize([0.3, -0.31, 0.2, -0.21], 12)
    scores = {"best": hard, "even": even, "worse": hard - 0.2}
    run = simple_run(tmp_path / "run", {name: values.tolist() for name, values in scores.items()})
    assert marks(run) == {"best": "best", "even": "tied", "worse": ""}


def test_a_shift_of_the_tied_one_is_found(tmp_path: Path) -> None:
    """The mutation twin: 0.4 dB less, far less than the images differ, and the second is worse."""
    hard = 20 + np.arange(12.0)
    even = hard + np.resize([0.3, -0.31, 0.2, -0.21], 12) - 0.4
    assert marks(simple_run(tmp_path / "run", {"best": hard.tolist(), "even": even.tolist()}))["even"] == ""


def test_too_few_images_to_tell_mark_the_best_alone(tmp_path: Path) -> None:
    five = [20.0, 21.0, 22.0, 23.0, 24.5]
    assert marks(simple_run(tmp_path / "five", {"a": five, "b": [*five[:4], 24.4]})) == {"a": "best", "b": ""}
    six = [*five, 25.0]
    assert marks(simple_run(tmp_path / "six", {"a": six, "b": [*six[:5], 24.9]})) == {"a": "best", "b": "tied"}


def test_fewer_images_do_not_make_the_best(tmp_path: Path) -> None:
    """Six easy images have a higher mean than all twelve, but a method that is worse on each of them stays worse."""
    hard = np.repeat([20.0, 30.0], 6) + 0.01 * np.arange(12)
    part: list[float | None] = [None] * 6 + (hard[6:] - 0.3).tolist()
    run = simple_run(tmp_path / "run", {"whole": hard.tolist(), "part": part, "few": [None] * 10 + [40.0, 41.0]})
    assert marks(run)["whole"] == "best" and marks(run)["part"] == ""
    better: list[float | None] = [None, *(hard[1:] + 0.3).tolist()]
    assert marks(simple_run(tmp_path / "twin", {"whole": hard.tolist(), "part": better}))["part"] == "best"


def test_smaller_is_better_where_a_score_says_so(tmp_path: Path) -> None:
    run = simple_run(tmp_path / "run", {"a": [20.0] * 8, "b": [21.0] * 8})
    lines = records(run)
    write_lines(
        run / "results.jsonl", [line | {"lpips": line["psnr"] / 100 + 0.001 * at} for at, line in enumerate(lines)]
    )
    assert marks(run, "lpips") == {"a": "best", "b": ""}
    assert marks(run) == {"a": "", "b": "best"}


def test_infinite_and_single_scores_have_no_interval(tmp_path: Path) -> None:
    run = simple_run(tmp_path / "run", {"perfect": ["inf", 30.0], "once": [25.0]})  # type: ignore[list-item]
    files = writing.report(run)
    row, other = (line for line in Page(files[0].read_text()).tables["cells"] if len(line) > 2 and "invdiff" in line[0])
    assert row[2] == "inf" and other[2] == "25.00"


# Beside the page


def test_markdown_and_latex_say_the_same(run: Path, html: str) -> None:
    group = groups(load(run))[0]
    markdown, latex = ((run / "report" / f"table.{kind}").read_text() for kind in ("md", "tex"))
    best = next(row for row in group.rows if row.marks.get("psnr") == "best")
    said = f"{best.scores['psnr'].mean:.2f}"
    assert f"**{said}** [" in markdown and rf"\textbf{{{said}}}" in latex
    check_latex(latex)
    assert latex.count(r"\begin{tabular}") == markdown.count("\n## ") == len(OPERATORS)


def check_latex(text: str) -> None:
    """Rows with as many cells as the tabular has columns, braces in pairs, and no special character by itself."""
    columns = 0
    for line in text.splitlines():
        if line.startswith("%"):
            continue
        if begun := re.match(r"\\begin\{tabular\}\{(\w+)\}", line):
            columns = len(begun[1])
        bare = re.sub(r"\\[\\&%$#_{}]|\\[a-zA-Z]+|\$-\$", "", line)
        assert bare.count("{") == bare.count("}") and not re.search(r"[%$#_~^|<>\\]", bare), line
        if line.endswith(r" \\"):
            assert bare.count("&") == columns - 1, line


def test_the_latex_check_can_fail() -> None:
    for wrong in ("a_b", "50 %", r"\begin{tabular}{lr}" + "\na & b & c \\\\", "{a"):
        with pytest.raises(AssertionError):
            check_latex(wrong)


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    stem = NASTY.replace("/", "")
    run = write_run(tmp_path / "run", [Method(NASTY, 20, 0.05), METHODS[1]], [NASTY], ["coffee", "rocket"], data=stem)
    text = (run / "results.jsonl").read_text().replace('"image": "coffee"', f'"image": {json.dumps(stem)}')
    (run / "results.jsonl").write_text(text + json.dumps({"cell": "?", "image": "x"}) + "\n")
    (run / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_text()) | {"name": NASTY}))
    for picture in (run / "pictures").rglob("coffee-*"):
        picture.rename(picture.with_name(picture.name.replace("coffee", file_name(stem))))
    page, *_ = writing.report(run)
    parsed = Page(page.read_text())
    assert [tag for tag, _ in parsed.elements].count("script") == 2
    assert NASTY in parsed.tables["cells"][2][0] and f"{stem} 64 x 64" in parsed.text
    assert page.read_text().count("alert(1)</script>") == 0
    check_latex((page.parent / "table.tex").read_text())
    rows = [line for line in (page.parent / "table.md").read_text().splitlines() if line.startswith("| ")]
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in rows]
    assert len(set(cells)) == 1 and not re.search(r"(?<!\\)[<`$]", "".join(rows))


def test_text_survives_latex() -> None:
    """What LaTeX prints of the escaped text, by its rules for these few commands, is the text."""
    shown = tables.escaped(NASTY)
    for name, character in (("backslash", "\\"), ("asciitilde", "~"), ("asciicircum", "^"), ("bar", "|")):
        shown = shown.replace(rf"\text{name}{{}}", f"\0{ord(character)};")
    shown = shown.replace(r"\textless{}", "<").replace(r"\textgreater{}", ">")
    shown = re.sub(r"\\([&%$#_{}])", lambda m: f"\0{ord(m[1])};", shown).replace("{", "").replace("}", "")
    assert re.sub("\0(\\d+);", lambda m: chr(int(m[1])), shown) == NASTY


# Pictures


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def test_the_maps_show_error_and_deviation(run: Path) -> None:
    """The index of each colour against the files' pixels; half a step of 1/255 is lost in rounding."""
    cards, notes = gallery.cards(load(run), groups(load(run)))
    assert not notes and len(cards) == 2 * len(OPERATORS)
    (found,) = [one for one in cards[0].restorations if one.label.startswith("dps")]
    pixels = {}
    for kind in ("truth", "restored", "std"):
        (path,) = (
            path
            for path in (run / "pictures").rglob(f"astronaut-{kind}.png")
            if kind == "truth" or path.parent.name == groups(load(run))[0].rows[3].cell["id"]
        )
        pixels[kind] = np.asarray(Image.open(path)) / 255
    error = np.sqrt(((pixels["restored"] - pixels["truth"]) ** 2).mean(-1)) / 0.125
    std = 0.25 * np.sqrt((pixels["std"] ** 2).mean(-1)) / 0.125
    for uri, expected in ((found.error, error), (found.std, std)):
        assert uri is not None
        image = decoded(uri)
        assert image.mode == "P" and np.abs(np.asarray(image) / 255 - expected.clip(0, 1)).max() < 0.51 / 255
    assert (np.asarray(decoded(found.restored)) == (pixels["restored"] * 255).round()).all()


def test_missing_and_damaged_pictures_are_left_out_and_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", METHODS[:3], OPERATORS[:1], ["coffee"], pictures=1)
    first, second, _ = (path for path in sorted((run / "pictures").rglob("*-restored.png")))
    first.write_bytes(first.read_bytes()[:200])
    second.unlink()
    next((run / "pictures").rglob("*-measured.png")).unlink()
    (card,), _ = gallery.cards(load(run), groups(load(run)))
    assert len(card.restorations) == 1 and card.measured is None and card.truth is not None
    assert "no picture of the measurement" in card.notes and "restoration by" in card.notes[1]
    shutil.rmtree(run / "pictures")
    text = Page(writing.report(run)[0].read_text()).text
    assert "kept no pictures" in text


def test_a_measurement_without_its_rim_is_centred(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", METHODS[:1], OPERATORS[:1], ["coffee"], pictures=1)
    write_png(next((run / "pictures").rglob("*-measured.png")), np.ones((58, 56, 3)))
    (card,), _ = gallery.cards(load(run), groups(load(run)))
    shown = np.asarray(decoded(card.measured or ""))
    assert shown.shape == (64, 64, 3) and (shown[3:61, 4:60] == 255).all() and (shown == 255).mean() == 58 * 56 / 64**2


def test_pictures_are_limited(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group shows an image before any shows a second."""
    found = groups(load(run))
    first, _, other, _ = gallery.cards(load(run), found)[0]
    monkeypatch.setattr(gallery, "BYTES", first.bytes + other.bytes)
    cards, notes = gallery.cards(load(run), found)
    assert [card.group for card in cards] == [group.title for group in found]
    assert "2 of 4 images are shown" in notes[0]
    monkeypatch.setattr(gallery, "SIDE", 16)
    monkeypatch.setattr(gallery, "RESTORATIONS", 2)
    card = gallery.cards(load(run), found)[0][0]
    assert decoded(card.truth or "").size == (16, 16) and (card.width, card.height) == (64, 64)
    assert len(card.restorations) == 2 and "3 more" in card.notes[0]


# Plots


def test_the_plots_hold_the_numbers(run: Path) -> None:
    group = groups(load(run))[0]
    styles = figures.styles([group])
    calls, seconds = figures.cost(group, styles).axes
    ddrm = group.rows[:2]
    for axes, price in ((calls, [20, 100]), (seconds, [row.seconds for row in ddrm])):
        (line,) = (line for line in axes.get_lines() if len(line.get_xdata()) == 2 and line.get_linestyle() == "-")
        np.testing.assert_allclose(line.get_xdata(), price)
        np.testing.assert_allclose(line.get_ydata(), [row.scores["psnr"].mean for row in ddrm])
    figure = figures.calibrated(group, styles)
    assert figure is not None
    coverage, ranks, spread = figure.axes
    (dps,) = (row for row in group.rows if row.cell["solver"] == "dps")
    shares = [statistics.fmean(one["coverage"][level] for one in dps.calibrations) for level in ("0.5", "0.8", "0.9")]
    np.testing.assert_allclose(coverage.get_lines()[1].get_ydata(), shares)
    counts = np.sum([np.array(one["ranks"]) / sum(one["ranks"]) for one in dps.calibrations], 0)
    np.testing.assert_allclose(ranks.get_lines()[1].get_ydata(), counts / counts.mean())
    np.testing.assert_allclose(spread.get_lines()[0].get_xdata(), [one["error"] for one in dps.calibrations])
    np.testing.assert_allclose(
        spread.get_lines()[0].get_ydata(), [math.sqrt(9 / 8) * one["spread"] for one in dps.calibrations]
    )


def test_narrow_samples_are_seen_to_be_narrow(run: Path) -> None:
    """`tds` was made calibrated, `dps` with half the spread; 8 images of 64 x 64 pixels tell them apart."""
    table = results.calibration_table(groups(load(run)))
    assert table is not None
    at = [column.key for column in table.columns].index("ratio")
    dps, tds = (line.entries[at].number for line in table.blocks[0].lines)
    assert tds == pytest.approx(1, abs=0.01) and dps == pytest.approx(0.52, abs=0.02)


def test_plots_are_written_as_png_and_svg(run: Path, html: str) -> None:
    plots = sorted((run / "report/plots").iterdir())
    assert len(plots) == 2 * 3 * len(OPERATORS)
    for path in plots:
        start = path.read_bytes()[:400]
        assert start.startswith(b"\x89PNG") if path.suffix == ".png" else b"<svg" in start


# Two runs


def test_two_runs_are_compared_on_what_they_share(tmp_path: Path) -> None:
    base = 20 + np.arange(10.0)
    a = simple_run(tmp_path / "a", {"same": base.tolist(), "gains": base.tolist(), "only_a": base.tolist()})
    b = simple_run(
        tmp_path / "b", {"same": (base + np.resize([0.1, -0.1], 10)).tolist(), "gains": (base + 0.2).tolist()}
    )
    lines = records(b)
    lines[3] |= {"file": "another", "psnr": 99.0}
    write_lines(b / "results.jsonl", lines)
    pairs, notes = comparing.pairs(load(a), groups(load(a)), load(b), groups(load(b)))
    same, gains = pairs
    assert [len(pair.first.images) for pair in pairs] == [9, 10]
    expected = [line["psnr"] - base[int(line["image"])] for line in lines[:10] if line["file"] != "another"]
    assert same.tests["psnr"].difference.mean == pytest.approx(statistics.fmean(expected))
    assert same.tests["psnr"].better is None and gains.tests["psnr"].better == "first"
    assert gains.tests["psnr"].difference.mean == pytest.approx(0.2)
    assert any("03" in note and "other files" in note for note in notes)
    assert any("1 cells are in A alone: only_a" in note for note in notes)


def test_the_comparison_page(run: Path, tmp_path: Path) -> None:
    """Another prior is what differs, and does not hide that the cells are the same."""
    other = write_run(tmp_path / "second", METHODS[:2], salt="b", prior="runs/mine", pictures=0)
    record = json.loads((other / "run.json").read_text())
    record["protocol"]["eight_bit"] = False
    (other / "run.json").write_text(json.dumps(record))
    done = invoke(run, other, "--out", tmp_path / "compared")
    assert done.exit_code == 0, done.output
    page = Page((tmp_path / "compared/report.html").read_text())
    rows = [line for line in page.tables["cells"] if len(line) > 1][1:]
    assert len(rows) == 4
    assert (
        "protocols differ" in page.text and "protocol.eight_bit" in page.text and "priors.runs/mine.sha256" in page.text
    )
    check_latex((tmp_path / "compared/table.tex").read_text())
    lines = list(csv.DictReader(io.StringIO((tmp_path / "compared/results.csv").read_text())))
    for line in lines:
        assert float(line["difference"]) == pytest.approx(float(line["b"]) - float(line["a"]), abs=1e-9)


# Bad input


def damaged(run: Path, name: str, text: str) -> Path:
    (run / name).write_text(text)
    return run


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return simple_run(tmp_path / "small", {"ddrm": [20.0, 21.0], "dps": [19.0, 20.5]})


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "is no record of an evaluation"),
        ("[1]", "is no record of an evaluation"),
        ('{"kind": "invdiff evaluate", "format": 2}', "this version reads 1"),
        ('{"kind": "invdiff validate", "format": 1}', "of format 1 of 'invdiff validate'"),
    ],
)
def test_another_record_is_refused(small: Path, text: str, words: str) -> None:
    done = invoke(damaged(small, "run.json", text))
    assert done.exit_code == 2 and words in done.output and done.output.count("\n") == 1


def test_folders_that_are_no_runs_are_refused(small: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere", small / "run.json"):
        done = invoke(folder)
        assert (done.exit_code == 2 and "holds no evaluation" in done.output) or "no record" in done.output
    assert "are one run" in invoke(small, small).output
    other = simple_run(tmp_path / "other", {"tds": [20.0, 21.0]})
    done = invoke(small, other)
    assert done.exit_code == 2 and "share no cell" in done.output and "invdiff evaluate" in done.output


def test_a_run_without_results_says_how_to_go_on(small: Path) -> None:
    done = invoke(damaged(small, "results.jsonl", '{"cell": "half'))
    assert done.exit_code == 2 and "has no results yet" in done.output and "invdiff evaluate suite.yaml" in done.output


def test_a_line_that_is_being_written_is_ignored(small: Path) -> None:
    text = (small / "results.jsonl").read_text()
    damaged(small, "results.jsonl", text[: text.rindex("\n", 0, -1) + 30])
    row = groups(load(small))[0].rows[1]
    assert list(row.images) == ["00"]
    page = Page(writing.report(small)[0].read_text())
    assert "unfinished: 3 of 4 results" in page.text


def test_results_of_unknown_cells_are_left_out(small: Path) -> None:
    lines = records(small)
    write_lines(small / "results.jsonl", [*lines, lines[0] | {"cell": "0123456789", "psnr": 99.0}])
    assert max(row.scores["psnr"].mean for row in groups(load(small))[0].rows) == 20.5


def test_a_run_of_nothing_but_failures_is_reported(small: Path) -> None:
    lines = [{"cell": line["cell"], "image": line["image"], "error": "broken <file>"} for line in records(small)]
    write_lines(small / "results.jsonl", lines)
    page = Page(writing.report(small)[0].read_text())
    assert page.text.count("broken <file>") == 4 and "0, 2 failed" in page.text


def test_no_timings_and_no_measured_image(small: Path) -> None:
    (small / "timings.jsonl").unlink()
    write_lines(small / "results.jsonl", [line | {"before": None} for line in records(small)])
    head, *lines = Page(writing.report(small)[0].read_text()).tables["cells"]
    row = next(line for line in lines if len(line) > 1)
    assert {row[head.index(name)] for name in ("gain (dB)", "s/image", "MB")} == {tables.MISSING}


def test_other_files_are_never_replaced(small: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/report.html").write_text("my own page")
    done = invoke(small, "--out", tmp_path / "mine")
    assert done.exit_code == 2 and "not of a report" in done.output
    assert (tmp_path / "mine/report.html").read_text() == "my own page"
    assert "is a file" in invoke(small, "--out", small / "run.json").output
    assert invoke(small, "--out", tmp_path / "new").exit_code == invoke(small, "--out", tmp_path / "new").exit_code == 0


# A browser


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium or google-chrome to open the page in")
    return found


FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --disable-sync"


def browse(page: Path, where: str, profile: Path) -> str:
    """The document after its scripts have run."""
    command = [chromium(), *FLAGS.split(), "--disable-component-update", f"--user-data-dir={profile}", "--dump-dom"]
    done = subprocess.run([*command, f"{page.as_uri()}{where}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def worked(document: str) -> bool:
    """Whether the scripts ran to their end, without an error."""
    (attributes,) = [found for tag, found in Page(document).elements if tag == "html"]
    return attributes.get("data-ready") == "yes" and "data-error" not in attributes


def test_the_page_works_in_a_browser(run: Path, html: str, tmp_path: Path) -> None:
    document = browse(run / "report/report.html", "#sort=-psnr", tmp_path)
    assert worked(document)
    page = Page(document)
    head, *lines = page.tables["cells"]
    column, blocks = head.index("PSNR (dB)"), list[list[float]]()
    for line in lines:
        if len(line) == 1:
            blocks.append([])
        else:
            blocks[-1].append(float(line[column].split()[0]))
    assert len(blocks) == len(OPERATORS) and all(block == sorted(block, reverse=True) for block in blocks)
    sliders = [found for tag, found in page.elements if tag == "input" and found.get("type") == "range"]
    under = [found for tag, found in page.elements if found.get("class") == "under"]
    assert len(sliders) == len(under) == 2 * len(OPERATORS) and all(found.get("aria-label") for found in sliders)
    assert all(str(found["src"]).startswith("data:image/png") for found in under)
    assert sum(tag == "circle" for tag, _ in page.elements) == len(IMAGES)
    assert "better on" in page.text and f"{len(METHODS) * len(OPERATORS)} rows" in page.text


USE = """<script>
const act = (element, value, kind) => { element.value = value; element.dispatchEvent(new Event(kind, {bubbles: true})); };
const card = document.querySelector(".card");
act(card.querySelector("input[type=range]"), 80, "input");
act(card.querySelector("select.left"), 0, "change");
act(document.querySelector("input.filter"), "BLUR dps", "input");
document.querySelector("#cells button[data-key=name]").click();
act(document.querySelector(".scatter select.first"), 4, "change");
document.title = JSON.stringify({
  at: card.querySelector(".stage").style.getPropertyValue("--at"),
  left: card.querySelector(".over").alt,
  rows: [...document.querySelectorAll("#cells tr.row:not([hidden])")].map(row => row.cells[0].dataset.v),
  count: document.querySelector(".count").textContent,
  where: location.hash,
  verdict: document.querySelector(".verdict").textContent,
});
</script></body>"""


def test_slider_filter_sorting_and_choices_react(run: Path, html: str, tmp_path: Path) -> None:
    used = tmp_path / "used.html"
    used.write_text(html.replace("</body>", USE))
    document = browse(used, "", tmp_path / "profile")
    assert worked(document)
    found = json.loads(Page(document).text.split("<", 1)[0].strip().splitlines()[0])
    assert found["at"] == "80%" and found["left"] == "truth, astronaut"
    assert found["rows"] == ["dps"] and found["count"] == "1 of 10 rows" and found["where"] == "#sort=name"
    row, best = sorted(groups(load(run))[0].rows, key=lambda row: row.scores["psnr"].mean)[:: len(METHODS) - 1]
    shared = [best.values["psnr"][image] - row.values["psnr"][image] for image in row.values["psnr"]]
    assert found["verdict"].startswith(f"{best.label} minus {row.label}: {statistics.fmean(shared):+.2f} dB")


def test_the_browser_check_can_fail(run: Path, html: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(html.replace('root.dataset.ready = "yes";', "nothing.here;"))
    assert not worked(browse(broken, "", tmp_path / "profile"))


def many_cells(folder: Path, cells: int, images: int) -> Path:
    """A run with random scores and no pictures."""
    write_run(folder, METHODS[:1], OPERATORS[:1], ["coffee"], pictures=0)
    record, line = json.loads((folder / "run.json").read_text()), records(folder)[0]
    named = [make_cell("photos", OPERATORS[at % 2], Method(f"solver_{at:04d}", 20, 0.05)) for at in range(cells)]
    record["cells"], record["data"]["photos"]["images"] = named, images
    (folder / "run.json").write_text(json.dumps(record))
    score = lambda *parts: 20 + zlib.crc32(repr(parts).encode()) % 1000 / 100  # noqa: E731
    lines = (
        line | {"cell": cell["id"], "image": f"image_{at}", "psnr": score(cell["id"], at), "nfe": 20}
        for cell in named
        for at in range(images)
    )
    write_lines(folder / "results.jsonl", list(lines))
    return folder


def test_thousands_of_rows_stay_usable(tmp_path: Path) -> None:
    """A page of a few megabytes that a browser opens and sorts in seconds."""
    run = many_cells(tmp_path / "many", cells=1200, images=3)
    page = writing.report(run)[0]
    assert page.stat().st_size < 4e6
    document = browse(page, "#sort=name", tmp_path / "profile")
    assert worked(document)
    names = [line[0] for line in Page(document).tables["cells"] if line and line[0].startswith("solver_")]
    assert len(names) == 1200 and names[:600] == sorted(names[:600]) and names[600:] == sorted(names[600:])


def test_help_names_the_command() -> None:
    assert "report" in CliRunner().invoke(main, ["--help"]).output
    assert "RUN_B" in invoke("--help").output


def test_usage_errors_are_raised_in_python_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no evaluation"):
        writing.report(tmp_path)


def test_rows_of_as_many_images_are_no_unfinished_run(tmp_path: Path) -> None:
    run = simple_run(tmp_path / "run", {"ddrm": [20.0, 21.0], "dps": [22.0, 23.0]})
    record = json.loads((run / "run.json").read_text())
    record["data"]["photos"]["images"] = 5
    (run / "run.json").write_text(json.dumps(record))
    text = Page(writing.report(run)[0].read_text()).text
    assert "Every row is of 2 of 5 images of photos" in text and "unfinished" not in text


def test_plots_of_earlier_groups_are_removed_and_other_files_kept(small: Path) -> None:
    plots = writing.report(small)[0].parent / "plots"
    kept = set(plots.iterdir())
    for name in ("09-old-blur-cost.png", "10-mine.png"):
        (plots / name).write_text("")
    writing.report(small)
    assert set(plots.iterdir()) == {*kept, plots / "10-mine.png"}


def test_equal_costs_have_a_readable_axis(run: Path) -> None:
    """Two methods of the same calls: the point lies inside, with a tick or two beside it."""
    group = groups(load(run))[0]
    calls, _ = figures.cost(type(group)(group.settings, group.rows[:1]), figures.styles([group])).axes
    low, high = calls.get_xlim()
    assert low < 20 < high and high / low == pytest.approx(figures.DECADE)
