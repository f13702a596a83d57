"""The rooms of the source and their order: imports point down, never in a circle, and every room says what it is for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 400

# From the ground up. A room imports from the layers below its own, and from itself. "" is the package's face, invdiff.
LAYERS = (
    ("errors",),
    ("specs", "files", "diffusion", "machine"),
    ("operator",),
    ("operators",),
    ("noise", "priors"),
    ("problem", "samplers", "scores"),
    ("solvers",),
    ("restoration",),
    ("",),
    ("doctor", "training", "exactness"),
    ("evaluation",),
    ("cli",),
)
RANKS = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}
# A method is given an operator; it knows none.
NEVER = {("solvers", "operators"), ("samplers", "operators")}
# The face and `python -m invdiff` only hand on names of upper rooms.
FACES = ("invdiff", "invdiff.__main__")
# Upper rooms that are found by name, "module:attribute" at run time, by who must not import them.
BY_NAME = {
    ("operator", "operators"): "a chain takes specs, which the catalogue reads",
    ("solvers", "restoration"): "load_preset: users write invdiff.solvers.load_preset",
}


def source_files() -> Iterator[tuple[str, Path]]:
    """(dotted module name, file) of all source; operators/ and cli/ under their import names."""
    for folder, package in (("invdiff", "invdiff"), ("operators", "invdiff.operators"), ("cli", "invdiff.cli")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder)
            if inside.parts[0] in ("operators", "cli", "checkpoints") and folder == "invdiff":
                continue  # the links, where rglob follows them
            name = ".".join((package, *inside.with_suffix("").parts))
            yield name.removesuffix(".__init__"), path


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def room(module: str) -> str:
    """The room of a module of invdiff: the first part of its name behind the package's."""
    return module.split(".")[1] if "." in module else ""


def imports(tree: ast.Module, package: str) -> Iterator[tuple[str, int]]:
    """(absolute dotted name, relative level) of every import, at any depth, for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.level) for alias in node.names)


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What is wrong with the imports and the length of one module, a sentence each."""
    found = []
    if (lines := len(source.splitlines())) > MOST_LINES:
        found.append(f"{module} has {lines} lines, more than {MOST_LINES}: split it")
    package = module if is_package else module.rpartition(".")[0]
    root_folder = next((name for name in ("invdiff.operators", "invdiff.cli") if within(module, name)), "")
    for name, level in imports(ast.parse(source), package):
        if not within(name, "invdiff"):
            if within(name, "operators", "cli"):
                found.append(f"{module} imports {name}: the import name is invdiff.{name}")
            continue
        if level > 1:
            found.append(f"{module} imports {name} with {'.' * level}: across folders use the absolute name")
        if root_folder and level == 0 and within(name, root_folder):
            found.append(f"{module} imports {name}: inside one folder use a relative import")
        if module not in FACES:
            found += [f"{module} imports {name}: {rule}" for rule in broken_rules(room(module), room(name))]
    if module not in FACES:
        for name in re.findall(r"[\"'](invdiff(?:\.\w+)+):\w+[\"']", source):
            if RANKS[room(name)] > RANKS[room(module)] and (room(module), room(name)) not in BY_NAME:
                found.append(f"{module} names {name}: an upper room, which BY_NAME does not list")
    return found


def broken_rules(importing: str, imported: str) -> Iterator[str]:
    """The rules that an import of one room by another breaks."""
    unplaced = [name or "invdiff" for name in (importing, imported) if name not in RANKS]
    if unplaced:
        yield f"LAYERS does not say where {unplaced[0]} stands"
    elif importing != imported and RANKS[imported] >= RANKS[importing]:
        beside = RANKS[imported] == RANKS[importing]
        yield f"{imported or 'the face'} stands {'beside' if beside else 'above'} {importing}, not below it"
    elif (importing, imported) in NEVER:
        yield f"{importing} never imports {imported}"


def graph(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules of the source that it imports. A name of a face counts for the face."""
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        names = [name for name, _ in imports(ast.parse(path.read_text(encoding="utf-8")), package)]
        homes = (name if name in files else name.rpartition(".")[0] for name in names)
        found[module] = {home for home in homes if home in files and home != module}
    return found


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, in its order; [] if there is none."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in finished:
            return []
        for other in sorted(arrows.get(module, ())):
            if found := visit(other, [*path, module]):
                return found
        finished.add(module)
        return []

    return next((found for module in sorted(arrows) if (found := visit(module, []))), [])


def test_the_source_follows_the_rules():
    files = list(source_files())
    assert {"invdiff", "invdiff.errors", "invdiff.files.images", "invdiff.operators"} <= {name for name, _ in files}
    found = []
    for module, path in files:
        found += violations(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")
    assert not found, "\n" + "\n".join(found)


def test_no_files_import_each_other_in_a_circle():
    assert not circle(graph(dict(source_files())))


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_every_room_has_a_face_that_says_what_it_is_for():
    files = dict(source_files())
    folders = {path.parent for path in files.values()}
    rooms = {room(module) for module in files if module not in FACES}
    assert rooms == set(RANKS) - {""}
    for folder in folders:
        face = folder / "__init__.py"
        assert face.is_file(), f"{folder} has no face"
        sentence = ast.get_docstring(ast.parse(face.read_text(encoding="utf-8"))) or ""
        assert sentence.splitlines()[0].endswith((".", ":")) and len(sentence.split()) > 5, f"{face} says nothing"


@pytest.mark.parametrize(
    "module, source, words",
    [
        ("invdiff.solvers.bad", "from invdiff.operators.blur import Blur", "solvers never imports operators"),
        ("invdiff.solvers.bad", "def f():\n    from invdiff import operators", "solvers never imports operators"),
        ("invdiff.solvers.bad", "import invdiff.operators.blur as blur", "solvers never imports operators"),
        ("invdiff.samplers.bad", "from invdiff.operators.blur import Blur", "samplers never imports operators"),
        ("invdiff.priors.bad", "from invdiff.samplers import get", "samplers stands above priors"),
        ("invdiff.solvers.bad", "from ..operators import blur", "across folders"),
        ("invdiff.solvers.bad", "from ..operators import blur", "solvers never imports operators"),
        ("invdiff.solvers.bad", "from invdiff.cli import main", "cli stands above solvers"),
        ("invdiff.operators.bad", "from invdiff.priors.prior import Prior", "priors stands above operators"),
        ("invdiff.operators.bad", "from invdiff import solvers", "solvers stands above operators"),
        ("invdiff.operators.bad", "import invdiff", "the face stands above operators"),
        ("invdiff.operators.bad", "from invdiff.operators_extra import x", "LAYERS does not say where"),
        ("invdiff.operators.bad", "from invdiff.operators.blur import Blur", "use a relative import"),
        ("invdiff.operators.bad", "from operators.blur import Blur", "the import name is invdiff.operators.blur"),
        ("invdiff.cli.bad", "import invdiff.cli.main", "use a relative import"),
        ("invdiff.cli.bad", "from ..evaluation import metrics", "across folders"),
        ("invdiff.diffusion.bad", "from invdiff.cli.main import main", "cli stands above diffusion"),
        ("invdiff.diffusion.bad", "def f():\n    import invdiff.training.engine", "training stands above diffusion"),
        ("invdiff.diffusion.bad", "from invdiff.files import images", "files stands beside diffusion"),
        ("invdiff.noise.bad", "if TYPE_CHECKING:\n    from invdiff.problem import Problem", "problem stands above"),
        ("invdiff.priors.bad", "from invdiff.scores.metrics import psnr", "scores stands above priors"),
        ("invdiff.training.bad", "try:\n    import invdiff.cli.train\nexcept ImportError:\n    pass", "cli stands"),
        ("invdiff.priors.bad", 'x = import_target("invdiff.solvers.ddrm:DDRM")', "which BY_NAME does not list"),
        ("invdiff.errors", "x = 1\n" * 401, "401 lines"),
    ],
)
def test_the_rules_catch(module, source, words):
    assert any(words in sentence for sentence in violations(module, source))


@pytest.mark.parametrize(
    "module, source",
    [
        ("invdiff.operators.good", "from invdiff.operator import Operator\nfrom .blur import Blur\nimport torch"),
        ("invdiff.operators.good", "from invdiff.errors import UsageError, unknown"),
        ("invdiff.cli.good", "from invdiff.solvers import get\nfrom .main import main\nfrom invdiff import operators"),
        ("invdiff.solvers.good", "from invdiff.priors.prior import Prior\nfrom invdiff.solvers.solver import Solver"),
        ("invdiff.samplers.good", "from invdiff.samplers.transitions import DDIM\nfrom invdiff.files import images"),
        ("invdiff.evaluation.good", "from invdiff.solvers import get\nfrom invdiff.training.config import x"),
        ("invdiff.solvers", 'x = "invdiff.restoration.presets:load_preset"'),
        ("invdiff.__main__", "from invdiff.cli.main import main"),
        ("invdiff.errors", "x = 1\n" * 400),
    ],
)
def test_the_rules_allow(module, source):
    assert violations(module, source) == []


def modules_loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after running `code` in the repository root."""
    code = f"import sys\n{code}\nprint('MODULES', *{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("MODULES ")[2].split())


def test_importing_invdiff_loads_no_heavy_package():
    assert not modules_loaded_by("import invdiff") & {"torch", "diffusers", "deepinv", "numpy"}


def test_help_loads_no_heavy_package():
    code = "sys.argv = ['invdiff', '--help']\nfrom invdiff.cli.main import main\ntry:\n    main()\n"
    code += "except SystemExit as exit:\n    assert not exit.code, exit.code"
    assert not modules_loaded_by(code) & {"torch", "diffusers", "deepinv"}


def test_the_heavy_package_check_can_fail():
    assert "torch" in modules_loaded_by("import invdiff.operator.linalg, torch")


FIRST_CALL = """
from pathlib import Path
import tempfile, torch
from invdiff.files.images import write_image
from invdiff.priors.network import NetworkPrior
def stop(*_):
    raise KeyboardInterrupt
NetworkPrior.denoise = stop
folder = tempfile.TemporaryDirectory()
y, x = Path(folder.name, "y.png"), Path(folder.name, "x.png")
write_image(y, torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)))
sys.argv = f"invdiff restore {y} -o {x} --operator gaussian_blur:sigma=1 --noise 0.05".split()
from invdiff.cli.main import main
try:
    main()
except SystemExit as exit:
    assert exit.code == 130, exit.code
"""
SLOW = {"deepinv", "torchvision", "matplotlib", "skimage", "scipy", "pandas", "transformers", "datasets", "tensorboard"}


def test_a_restoration_loads_nothing_slow_before_its_first_call_but_the_network_class():
    """diffusers loads some of them itself with UNet2DModel."""
    with_the_class = modules_loaded_by("import torch\nfrom diffusers import UNet2DModel")
    loaded = modules_loaded_by(FIRST_CALL)
    assert "diffusers" in loaded
    assert not (loaded - with_the_class) & SLOW
    assert not loaded & {"deepinv", "matplotlib", "skimage", "pandas"}
