"""`invdiff evaluate`: its numbers, its store under stops, shares and other settings, and what goes wrong."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from skimage.metrics import peak_signal_noise_ratio
from tiny import picture, tiny_prior

import invdiff
from invdiff import operators
from invdiff.cli.main import main
from invdiff.errors import ImageError, UsageError
from invdiff.evaluation import runner, store
from invdiff.evaluation.datasets import DataSet, batches
from invdiff.evaluation.store import Store, load
from invdiff.evaluation.suite import Cell, check_suite, read_suite, shipped_suites
from invdiff.files.images import read_image
from invdiff.priors import NetworkPrior, load_prior
from invdiff.scores import perceptual

ROOT = Path(__file__).resolve().parents[1]
BLUR = ["--operator", "gaussian_blur:sigma=1", "--noise", "0.05"]
FAST = ["--solver", "diffpir", "--steps", "2", "--precision", "fp32", "--device", "cpu"]
# What single-precision convolutions may differ by, from batch to batch.
ACROSS_BATCHES = 1e-4


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with clean/{a,b,c}.png of 24 x 32 pixels, clean/tall.png of 32 x 24 and a grey one in a sub-folder."""
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(("a.png", "b.png", "c.png")):
        picture(tmp_path / "clean" / name, index)
    picture(tmp_path / "clean" / "tall.png", 3, (3, 32, 24))
    picture(tmp_path / "clean" / "more" / "a.png", 4, (1, 24, 32))
    return tmp_path / "clean"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def succeed(*arguments: object) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def lines(folder: Path) -> list[bytes]:
    return sorted((folder / "results.jsonl").read_bytes().splitlines())


def close(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(close(one[key], two[key]) for key in one)
    if isinstance(one, float):
        return abs(one - two) <= ACROSS_BATCHES
    return one == two


def test_numbers_are_those_of_degrade_and_restore(data: Path, prior: Path, tmp_path: Path) -> None:
    succeed("--data", data, *BLUR, *FAST, "--prior", prior, "--samples", 2, "--out", "run")
    run = load("run")
    assert [line["image"] for line in run.results] == ["a", "b", "c", "more/a", "tall"]
    x = read_image(data / "b.png").tensor[None]
    y = invdiff.degrade(x, "gaussian_blur:sigma=1", 0.05, ids=["b"])
    network = load_prior(prior, device="cpu", precision="fp32")
    solution = invdiff.restore(
        y, "gaussian_blur:sigma=1", 0.05, network, "diffpir", steps=2, samples=2, ids=["b"], batch_size=1
    )
    line = next(line for line in run.results if line["image"] == "b")

    def rounded(image: torch.Tensor) -> Any:
        return (image.clamp(0, 1) * 255).round().double().numpy()

    expected = peak_signal_noise_ratio(rounded(x[0]), rounded(solution.mean[0]), data_range=255)
    assert line["psnr"] == pytest.approx(expected, abs=1e-5)
    each = [peak_signal_noise_ratio(rounded(x[0]), rounded(s[0]), data_range=255) for s in solution.samples]
    assert line["single"]["psnr"] == pytest.approx(sum(each) / 2, abs=1e-5)
    assert max(each) > line["single"]["psnr"]  # never the best of them
    before = peak_signal_noise_ratio(rounded(x[0]), rounded(y[0]), data_range=255)
    assert line["before"]["psnr"] == pytest.approx(before, abs=1e-5)
    assert line["residual"] == pytest.approx(float(solution.residual.mean()), abs=1e-5)
    assert line["nfe"] == 2 and line["shape"] == [3, 24, 32] and line["solver"]["name"] == "diffpir"
    assert run.timings[line["cell"], "b"]["seconds"] > 0
    # grey pictures are repeated for a colour prior, and every picture of the first four is kept
    assert run.results[3]["shape"] == [3, 24, 32]
    cell = run.cells[0]
    assert (tmp_path / "run/pictures" / cell["id"] / "more__a-std.png").is_file()
    assert (tmp_path / "run/pictures/measured" / cell["measurement"] / "a-measured.png").is_file()


def test_a_row_is_repeated_by_its_own_command(data: Path, prior: Path) -> None:
    succeed(
        "--data",
        data,
        *BLUR,
        "--operator",
        "downsample:factor=2",
        *FAST,
        "--steps",
        3,
        "--prior",
        prior,
        "--out",
        "run",
    )
    cell = load("run").cells[3]
    words = __import__("shlex").split(cell["command"])
    assert words[:2] == ["invdiff", "evaluate"] and cell["operator"] == "downsample:factor=2" and cell["steps"] == 3
    assert CliRunner().invoke(main, [*words[1:], "--device", "cpu"]).exit_code == 0
    mine = [line for line in lines(Path("run")) if cell["id"].encode() in line]
    assert mine == lines(Path(words[words.index("--out") + 1])) and len(mine) == 5


def test_stops_shares_and_batch_sizes_change_nothing(data: Path, prior: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--data", data, *BLUR, "--operator", "inpaint:keep=0.5", *FAST, "--prior", prior]
    succeed(*arguments, "--batch-size", 2, "--out", "whole")
    assert "--batch-size 2 --out" in load("whole").cells[0]["command"]
    whole = lines(Path("whole"))
    assert len(whole) == 10
    # stopped in the third batch, and begun again
    solved, original = [], runner._solve

    def stopped(*given: Any) -> Any:
        if len(solved) == 2:
            raise KeyboardInterrupt
        solved.append(given)
        return original(*given)

    monkeypatch.setattr(runner, "_solve", stopped)
    result = invoke(*arguments, "--batch-size", 2, "--out", "stopped")
    assert result.exit_code == 130 and "the same command goes on" in result.output
    assert 0 < len(lines(Path("stopped"))) < 10
    monkeypatch.setattr(runner, "_solve", original)
    assert "results are there already" in succeed(*arguments, "--batch-size", 2, "--out", "stopped").output
    assert lines(Path("stopped")) == whole
    there = [0]
    for part in ("2/3", "1/3", "3/3"):
        succeed(*arguments, "--batch-size", 2, "--shard", part, "--out", "shared")
        there.append(len(lines(Path("shared"))))
    assert all(
        0 < after - before < 6 for before, after in itertools.pairwise(there)
    )  # each its own part, of two batches or three
    assert lines(Path("shared")) == whole
    succeed(*arguments, "--limit", 2, "--batch-size", 1, "--out", "others")
    assert len(lines(Path("others"))) == 4
    succeed(*arguments, "--batch-size", 5, "--out", "others")
    pairs = list(zip(map(json.loads, lines(Path("others"))), map(json.loads, whole), strict=True))
    assert all(close(one, two) for one, two in pairs)
    assert not close(pairs[0][0] | {"psnr": pairs[0][0]["psnr"] + 1e-3}, pairs[0][1])  # the comparison can fail


def test_a_line_that_was_begun_is_cut_off(tmp_path: Path) -> None:
    results = [{"cell": "1", "image": str(number)} for number in range(400)]
    kept = Store(tmp_path)
    kept.append(results[:200], [])
    path = tmp_path / "results.jsonl"
    with path.open("ab") as file:
        file.write(b'{"cell": "1", "ima' + b"x" * 10_000)
    assert len(list(store._lines(path))) == 200
    kept.append(results[200:], [])
    assert [json.loads(line) for line in path.read_text().splitlines()] == results


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, write = Store(tmp_path), os.write
    kept.append([{"cell": "1", "image": "a"}], [])

    def full(descriptor: int, text: bytes) -> int:
        return write(descriptor, text[:7])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ImageError, match="No space left on device"):
        kept.append([{"cell": "1", "image": "b"}], [])
    monkeypatch.setattr(os, "write", write)
    assert (tmp_path / "results.jsonl").read_text() == '{"cell": "1", "image": "a"}\n'


def test_a_full_disk_stops_the_run_with_one_line(data: Path, prior: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Store, *given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "run/results.jsonl")

    monkeypatch.setattr(Store, "append", full)
    result = invoke("--data", data, *BLUR, *FAST, "--prior", prior, "--out", "run")
    assert result.exit_code == 1
    assert result.output.strip().splitlines()[-1].startswith("Error: run/results.jsonl: no space left on the disk")


def test_one_bad_image_is_counted_and_the_others_go_on(data: Path, prior: Path) -> None:
    (data / "b.png").write_bytes((data / "b.png").read_bytes()[:60])
    arguments = ["--data", data, *BLUR, *FAST, "--prior", prior, "--batch-size", 3, "--out", "run"]
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "failed: 1 results, of b; the same command" in result.output and "damaged or truncated" in result.output
    first = lines(Path("run"))
    assert len(first) == 5 and sum(b'"error"' in line for line in first) == 1
    assert invoke(*arguments).exit_code == 1  # tried again, and told once
    assert lines(Path("run")) == first
    picture(data / "b.png", 1)
    assert "1 new results" in succeed(*arguments).output
    run = load("run")
    assert len(run.results) == 5 and all("error" not in line for line in run.results)


def test_other_settings_are_refused_and_force_keeps_equal_cells(data: Path, prior: Path) -> None:
    arguments = ["--data", data, *BLUR, *FAST, "--prior", prior, "--out", "run"]
    succeed(*arguments)
    before = lines(Path("run"))
    result = invoke(*arguments, "--steps", 3)
    assert result.exit_code == 2
    assert (
        "run holds results of other settings (with clean, gaussian_blur:sigma=1, 0.05, diffpir, 3 calls"
        in result.output
    )
    for option in (["--y-channel"], ["--crop", "16"], ["--seed", "1"], ["--samples", "2"]):
        assert invoke(*arguments, *option).exit_code == 2, option
    picture(data / "d.png", 7)
    assert "data: clean" in invoke(*arguments).output
    assert "1 new results" in succeed(*arguments, "--force").output
    assert set(before) < set(lines(Path("run")))


def test_results_of_another_version_are_refused(data: Path, prior: Path) -> None:
    arguments = ["--data", data, *BLUR, *FAST, "--prior", prior, "--out", "run"]
    succeed(*arguments)
    path = Path("run/run.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"format": 99}))
    assert "format 99" in invoke(*arguments).output
    path.write_text(json.dumps(record | {"hash": "0", "versions": {"invdiff": "0.0.1"}}))
    assert "other settings (versions: invdiff)" in invoke(*arguments).output
    path.write_text("{")
    assert "no record of an evaluation" in invoke(*arguments).output


@pytest.mark.slow
def test_two_processes_share_one_store(data: Path, prior: Path) -> None:
    arguments = ["--data", data, *BLUR, *FAST, "--prior", prior]
    succeed(*arguments, "--out", "whole")
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    # As many threads as here: how a convolution is split among them decides its last bits.
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "invdiff", "evaluate", *map(str, arguments)]
    done = subprocess.run([*launch, "--out", "both"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert lines(Path("both")) == lines(Path("whole"))
    # a process that dies leaves its share to a later run
    half = subprocess.run(
        [sys.executable, "-m", "invdiff", "evaluate", *map(str, arguments), "--out", "half"],
        env=environment | {"RANK": "1", "WORLD_SIZE": "2"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert half.returncode == 0 and len(lines(Path("half"))) == 2
    succeed(*arguments, "--out", "half")
    assert lines(Path("half")) == lines(Path("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.full)])
def test_killed_evaluations_end_the_same(kills: int, prior: Path) -> None:
    script = ROOT / "benchmarks" / "kill_evaluate.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", str(kills), "--seed", "1", "--prior", prior],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        rf"{kills} kills, \d evaluations ended; every store the same as without, byte by byte", done.stdout
    )


def test_batches_hold_one_size_and_do_not_depend_on_what_is_done() -> None:
    images = tuple(torch.zeros(3, side, 16) for side in (16, 24, 16, 16, 24, 16, 32))
    made = [[source.key for source in batch] for batch in batches(DataSet("t", "t", images=images).sources(), 2)]
    assert made == [["0", "2"], ["1", "4"], ["3", "5"], ["6"]]


def test_equal_names_have_keys_of_their_own(tmp_path: Path) -> None:
    for name in ("x/a.png", "y/a.png", "b.png", "b.jpg"):
        picture(tmp_path / name)
    keys = [source.key for source in DataSet("d", str(tmp_path)).sources()]
    assert keys == ["b.jpg", "b.png", "x/a", "y/a"]


def test_library_returns_rows_and_images(prior: Path) -> None:
    x = torch.stack([read_image(picture(prior.parent / f"{k}.png", k)).tensor for k in range(2)])
    network = load_prior(prior, device="cpu", precision="fp32")
    found = invdiff.evaluate(
        x, [operators.get("identity"), "inpaint:keep=0.5"], 0.1, ["diffpir", invdiff.solvers.get("ddnm", steps=2)],
        steps=2, prior=network,
    )  # fmt: skip
    assert len(found.rows) == 4 and len(found.images) == 8
    assert found.rows[0].values["psnr"] == pytest.approx((found.images[0]["psnr"] + found.images[1]["psnr"]) / 2)
    assert {image["operator"] for image in found.images} == {"identity", "inpaint:keep=0.5"}
    table = found.to_pandas()
    assert list(table["images"]) == [2] * 4 and "lpips" not in table
    assert "tensor, identity, 0.1, diffpir, 2 calls, tiny" in str(found)
    with pytest.raises(UsageError, match="no such folder"):
        invdiff.evaluate("nowhere", "identity")


def test_fid_is_of_all_images_of_a_cell(data: Path, prior: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for Inception's features: the mean colour."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def distance(pairs: Any, device: Any) -> float:
        seen[:] = pairs
        return float(sum((x - truth).square().sum() for x, truth in seen))

    arguments = ["--data", data, *BLUR, *FAST, "--prior", prior, "--perceptual", "fid", "--pictures", 0, "--out", "run"]
    monkeypatch.setattr(perceptual, "missing", lambda name: "its weights are not at nowhere")
    assert re.search(r"FID .*not available: its weights", succeed(*arguments, "--limit", 2).output)
    assert load("run").sets == {}
    monkeypatch.setattr(perceptual, "missing", lambda name: "")
    monkeypatch.setattr(perceptual, "frechet_distance", distance)
    assert "4 pictures were not kept" in succeed(*arguments, "--limit", 3).output
    arguments[-1] = "again"
    succeed(*arguments, "--limit", 3)
    (found,) = load("again").sets.values()
    assert found["images"] == 3 and len(seen) == 3
    succeed(*arguments)
    (found,) = load("again").sets.values()
    assert found["images"] == 5 and found["fid"] > 0
    assert CliRunner().invoke(main, ["report", "again"]).exit_code == 0
    assert "FID" in Path("again/report/table.md").read_text()


def test_a_preset_is_a_solver_with_its_settings(data: Path, prior: Path) -> None:
    given = ["--data", data, *BLUR, "--prior", prior, "--limit", 1, "--device", "cpu", "--precision", "fp32"]
    tuning = ["tune", *given[:-6], "--solver", "diffpir", "--steps", 3, "--trials", 2, "--limit", 2, "-o", "blur.yaml"]
    assert CliRunner().invoke(main, [str(word) for word in [*tuning, "--prior", prior]]).exit_code == 0
    tuned = invdiff.solvers.load_preset("blur.yaml").solver
    succeed(*given, "--preset", "blur.yaml", "--solver", "ddnm:steps=2", "--out", "run")
    assert [line["solver"]["name"] for line in load("run").results] == ["ddnm", "diffpir"]
    assert load("run").results[1]["solver"] == tuned.settings() and load("run").results[1]["nfe"] == 3


def test_images_of_the_prior_test_a_solver(prior: Path, data: Path) -> None:
    arguments = ["--data", data, *BLUR, *FAST, "--prior", prior, "--limit", 1, "--crop", 16, "--out", "run"]
    result = succeed(*arguments, "--samples", 4, "--simulations", 20)
    assert "images of the prior, clean, gaussian_blur:sigma=1, 0.05, diffpir, 2 calls" in result.output
    assert "20 draws, 4 samples each: p = " in result.output
    run = load("run")
    (found,) = run.simulations.values()
    assert found["cell"] == run.cells[0]["id"] and len(found["quantities"]["brightness"]["ranks"]) == 20
    assert "images of the prior" not in succeed(*arguments, "--samples", 4, "--simulations", 20).output  # done
    assert "--simulations 20" in run.cells[0]["command"]
    assert "several samples of each" in invoke(*arguments, "--simulations", 20).output
    assert "--limit 1 --out" in run.cells[0]["command"]  # as many as there are
    assert CliRunner().invoke(main, ["report", "run"]).exit_code == 0
    text = Path("run/report/report.html").read_text()
    assert "Images of the prior" in text and f'<td data-v="{found["p_value"]}"' in text


def test_images_of_a_known_prior_tell_an_exact_solver_from_another() -> None:
    prior = invdiff.priors.GaussianPrior(torch.full((1, 8, 8), 0.5, dtype=torch.float64), 0.04 * torch.eye(64).double())
    x = prior.sample(1, torch.Generator().manual_seed(0))
    found = invdiff.evaluate(
        x, "inpaint:keep=0.5", 0.1, ["mmps:transition=dpmpp,steps=30", "dps"], steps=30, prior=prior, samples=15,
        simulations=100,
    )  # fmt: skip
    exact, biased = (found.simulations[row.cell["id"]] for row in found.rows)
    assert exact["calibrated"] and not biased["calibrated"]


GRID = {"data": {"a": "clean"}, "operators": ["identity"], "noises": [0.05]}


def test_a_suite_is_every_combination() -> None:
    suite = check_suite(
        GRID | {"steps": [5, 20], "grids": [{"solvers": ["ddrm", "dps"]}, {"noises": "25/255", "samples": 4}]},
        "s",
        "s.yaml",
    )
    assert [(cell.solver, cell.steps, cell.noise, cell.samples) for cell in suite.cells] == [
        ("ddrm", 5, "0.05", 1), ("ddrm", 20, "0.05", 1), ("dps", 5, "0.05", 1), ("dps", 20, "0.05", 1),
        ("auto", 5, "25/255", 4), ("auto", 20, "25/255", 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "ddrm"}, "unknown key in s.yaml: 'solver'. Did you mean 'solvers'?"),
        ({"protocol": {"boarder": 4}}, "unknown key in protocol: 'boarder'. Did you mean 'border'?"),
        ({"data": {"a": {"pth": "x"}}}, "unknown key in data.a: 'pth'. Did you mean 'path'?"),
        ({"grids": [{"noise": 1}]}, "unknown key in grids: 'noise'. Did you mean 'noises'?"),
        ({"grids": [{"data": ["b"]}]}, "unknown data set 'b'"),
        ({"noises": []}, "noises is missing"),
        ({"steps": [0]}, "steps=0 must be a whole number of at least 1"),
        ({"steps": ["many"]}, "steps='many' must be a whole number"),
        ({"seeds": [0, 0]}, "is there twice"),
        ({"calibration": True}, "calibration needs several samples"),
        ({"calibration": "yes"}, "calibration='yes' must be true or false"),
        ({"solvers": [{"dps": 1}]}, "must be text or a number"),
        ({"data": ["a"]}, "must be a list of `name: value`"),
        ({"data": {"a": {"crop": -1}}}, "crop=-1 must be a whole number of at least 1"),
        ({"data": {}}, "nothing to run"),
    ],
)
def test_bad_suites_say_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        check_suite(GRID | change, "s", "s.yaml")


def test_shipped_suites_are_whole() -> None:
    assert set(shipped_suites()) >= {"quick", "classic", "ffhq256"}
    for name in shipped_suites():
        suite = read_suite(name)
        for cell in suite.cells:
            text = cell.operator.replace("{data}", "/nowhere")
            if "/nowhere" not in text:
                operators.get(text)
            if cell.solver != "auto":
                invdiff.solvers.get(cell.solver)


def test_the_papers_noise_is_converted() -> None:
    """0.05 on [-1, 1] in DPS and DAPS is half of it on [0, 1]; DiffPIR's is on [0, 1] as it is."""
    noises = {cell.noise for cell in read_suite("ffhq256").cells}
    assert noises == {"0.05/2", "12.75/255"}


def test_missing_data_sets(data: Path, prior: Path) -> None:
    result = invoke("classic", "--data", data.parent, "--out", "run")
    assert result.exit_code == 2 and "no cbsd68, set5, set14, kodak24 in" in result.output
    assert not Path("run").exists()
    assert "no such folder" in invoke("classic", "--data", "nowhere", "--out", "run").output
    Path("s.yaml").write_text(
        "data: {one: CLEAN, two: {path: other, optional: true}}\noperators: identity\nnoises: 0.1\n"
    )
    text = Path("s.yaml").read_text() + f"priors: {prior}\nsolvers: [ddnm, ddrm]\nsteps: 2\n"
    Path("s.yaml").write_text(text)
    result = succeed("s.yaml", "--limit", 1, "--out", "run", "--device", "cpu")
    assert "left out: two: its folder is not there" in result.output and "2 new results" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "clean"], "Missing option --operator, or the name of a suite (classic, ffhq256, quick)"),
        (["--operator", "identity", "--noise", "0.1"], "Missing option --data"),
        (["quik"], "unknown suite 'quik'. Did you mean 'quick'?"),
        (["quick", "--solver", "ddrm"], "--solver belongs to a run without a suite"),
        (["quick", "--steps", "3"], "--steps belongs to a run without a suite"),
        (["--data", "clean", *BLUR, "--shard", "3/2"], "'3/2' is not a part of the work"),
        (["--data", "nowhere", *BLUR], "--data nowhere: no such folder"),
        (["--data", "clean", *BLUR, "--calibration"], "calibration needs several samples"),
        (["--data", "clean", *BLUR, "--solver", "dsp"], "unknown solver 'dsp'"),
        (["--data", "clean", "--operator", "jpeg", "--noise", "0.1", "--solver", "ddrm"], "nothing can run"),
        (["--data", "clean", *BLUR, "--noise", "lots"], "noise"),
        *(
            (["--data", "clean", *BLUR, "--noise", zero, *more], "noise must be more than 0")
            for zero in ("0", "0/255", "gaussian:sigma=0")
            for more in ([], ["--dry-run"])
        ),
    ],
)
def test_bad_arguments_are_one_line(data: Path, prior: Path, arguments: list[str], message: str) -> None:
    extra = [] if "--operator" not in arguments else ["--prior", str(prior)]
    result = invoke(*arguments, *extra, "--out", "run", "--device", "cpu")
    assert result.exit_code == 2, result.output
    assert message in result.output and len(result.output.strip().splitlines()) == 1
    assert not Path("run").exists()


def test_a_folder_of_other_files_is_left_alone(data: Path, prior: Path) -> None:
    result = invoke("--data", data, *BLUR, *FAST, "--prior", prior, "--out", data)
    assert result.exit_code == 2 and "holds files but no evaluation" in result.output
    with pytest.raises(UsageError, match="holds no evaluation"):
        load(data)


def test_dry_run_writes_nothing(data: Path, prior: Path) -> None:
    arguments = ["--data", data, *BLUR, *FAST, "--prior", prior, "--out", "run"]
    result = succeed(*arguments, "--dry-run")
    assert "1 cells, 5 restorations, 10 network calls, about" in result.output and not Path("run").exists()
    succeed(*arguments, "--limit", 2)
    assert "3 restorations, 6 network calls" in succeed(*arguments, "--dry-run").output
    (data / "a.png").write_bytes(b"no picture")  # the time is told by the first that can be read
    result = succeed("--data", data, *BLUR, *FAST, "--prior", prior, "--out", "new", "--dry-run")
    assert "5 restorations, 10 network calls, about" in result.output and "?" not in result.output


def test_cells_name_everything() -> None:
    assert Cell("d", "identity", "0.1", "dps", 5, "other", 3).label == "d, identity, 0.1, dps, 5 calls, other, seed 3"


def test_out_of_memory_takes_smaller_batches(data: Path, prior: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = NetworkPrior.denoise

    def small(self: NetworkPrior, x: torch.Tensor, sigma: Any) -> torch.Tensor:
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, x, sigma)

    arguments = ["--data", data, *BLUR, *FAST, "--prior", prior]
    succeed(*arguments, "--batch-size", 1, "--out", "one")
    monkeypatch.setattr(NetworkPrior, "denoise", small)
    result = succeed(*arguments, "--batch-size", 4, "--out", "many")
    assert "not enough memory: going on with 1 image at once" in result.output
    assert lines(Path("many")) == lines(Path("one"))


@pytest.mark.slow
def test_the_example_of_the_docs_runs(prior: Path) -> None:
    script = ROOT / "docs" / "examples" / "compare_solvers.py"
    done = subprocess.run([sys.executable, script, prior], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"PSNR -?\d+\.\d\d -> ", done.stdout)) == 4
    assert re.search(r"inpaint:keep=0.3: ddrm - diffpir = [+-]\d+\.\d\d dB, p = [01]\.\d\d", done.stdout)


def test_library_calls_refuse_what_they_would_ignore(prior: Path) -> None:
    with pytest.raises(UsageError, match="steps=3 is told by the suite itself"):
        invdiff.evaluate("quick", steps=3)
    with pytest.raises(UsageError, match="must be a tensor"):
        invdiff.evaluate(torch.rand(3, 24, 24), "identity", prior=prior)


def test_noise_zero_is_refused_before_anything_runs(data: Path, prior: Path) -> None:
    Path("zero.yaml").write_text(
        f"data: {{clean: clean}}\noperators: identity\nnoises: [0.1, 0]\npriors: {prior}\nsolvers: ddrm\nsteps: 2\n"
    )
    for more in ([], ["--dry-run"]):
        result = invoke("zero.yaml", "--out", "run", "--device", "cpu", *more)
        assert result.exit_code == 2 and "noise must be more than 0" in result.output and not Path("run").exists()
    with pytest.raises(UsageError, match="noise must be more than 0"):
        invdiff.evaluate(torch.rand(1, 3, 24, 24), "identity", 0, "ddrm", steps=2, prior=prior, device="cpu")


def test_library_rows_say_why_images_failed(prior: Path) -> None:
    images = [torch.rand(3, 24, 24), torch.rand(2, 24, 24)]
    found = invdiff.evaluate(images, "identity", 0.1, "ddrm", steps=2, prior=prior, device="cpu")
    assert "1 images, 1 failed: " in str(found) and "channel" in str(found)


ABSENT = """
import os, sys
import psutil  # which has another implementation for Windows
sys.modules["resource"] = sys.modules["fcntl"] = None
for name in ("pread", "pwrite", "sched_getaffinity", "fork", "O_DIRECTORY"):
    if hasattr(os, name):
        delattr(os, name)
import torch
import invdiff.evaluation.runner
from invdiff.evaluation.store import Store, _lines
from invdiff.machine import memory, threads

assert 1 < memory.peak_memory(torch.device("cpu")) < 2**20  # MB
assert memory.free_memory() > 0 and threads.cores() >= 1
store = Store(sys.argv[1])
store.append([{"cell": "1", "image": "a"}], [])
with open(sys.argv[1] + "/results.jsonl", "ab") as file:
    file.write(b"torn")
store.append([{"cell": "1", "image": "b"}], [])
assert [line["image"] for line in _lines(store.folder / "results.jsonl")] == ["a", "b"]
"""


def test_an_evaluation_needs_nothing_that_only_posix_has(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ABSENT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
