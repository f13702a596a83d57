"""Imports point one way: cli -> training, evaluation, solvers -> core; operators see only the core contract."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 400
OPERATOR_CONTRACT = ("operator", "parameters", "registry", "errors", "images", "linalg", "plugins")
UPPER = ("invdiff.training", "invdiff.evaluation", "invdiff.solvers", "invdiff.samplers", "invdiff.doctor")
# The public entry points live in the core's folder, but stand above the solvers that they run.
ENTRY_POINTS = ("invdiff", "invdiff.__main__", "invdiff.restoration", "invdiff.samplers.generation")


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


def imports(tree: ast.Module, package: str) -> Iterator[tuple[str, int, bool]]:
    """(absolute dotted name, relative level, whether only for type checkers) of every import, at any depth."""
    type_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0, id(node) in type_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.level, id(node) in type_only) for alias in node.names)


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What is wrong with the imports and the length of one module, a sentence each."""
    found = []
    if (lines := len(source.splitlines())) > MOST_LINES:
        found.append(f"{module} has {lines} lines, more than {MOST_LINES}: split it")
    package = module if is_package else module.rpartition(".")[0]
    root_folder = next((name for name in ("invdiff.operators", "invdiff.cli") if within(module, name)), "")
    for name, level, type_only in imports(ast.parse(source), package):
        if not within(name, "invdiff"):
            if within(name, "operators", "cli"):
                found.append(f"{module} imports {name}: the import name is invdiff.{name}")
            continue
        if level > 1:
            found.append(f"{module} imports {name} with {'.' * level}: across folders use the absolute name")
        if root_folder and level == 0 and within(name, root_folder):
            found.append(f"{module} imports {name}: inside one folder use a relative import")
        found += [f"{module} imports {name}: {rule}" for rule in broken_rules(module, name, type_only)]
    return found


def broken_rules(module: str, name: str, type_only: bool) -> Iterator[str]:
    """The direction rules that an import of `name` by `module` breaks."""
    contract = tuple(f"invdiff.{part}" for part in OPERATOR_CONTRACT)
    if within(module, "invdiff.operators"):
        if not within(name, "invdiff.operators", *contract):
            yield f"an operator may import only {', '.join(contract)}"
    elif within(module, "invdiff.cli"):
        return
    elif within(name, "invdiff.cli") and module != "invdiff.__main__":
        yield "only the command line imports invdiff.cli"
    elif within(module, "invdiff.solvers") and within(name, "invdiff.operators"):
        yield "a solver never imports a concrete operator"
    elif within(module, "invdiff.samplers") and within(name, "invdiff.operators"):
        yield "a sampler never imports an operator"
    elif not within(module, *UPPER) and module not in ENTRY_POINTS and within(name, *UPPER) and not type_only:
        yield "the core imports nothing from training, evaluation, solvers or samplers"


def test_the_source_follows_the_rules():
    files = list(source_files())
    assert {"invdiff", "invdiff.errors", "invdiff.files.images", "invdiff.operators"} <= {name for name, _ in files}
    found = []
    for module, path in files:
        found += violations(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "module, source, words",
    [
        ("invdiff.solvers.bad", "from invdiff.operators.blur import Blur", "never imports a concrete operator"),
        ("invdiff.solvers.bad", "def f():\n    from invdiff import operators", "never imports a concrete operator"),
        ("invdiff.solvers.bad", "import invdiff.operators.blur as blur", "never imports a concrete operator"),
        ("invdiff.samplers.bad", "from invdiff.operators.blur import Blur", "never imports an operator"),
        ("invdiff.samplers.continuous", "from invdiff.samplers import get", "the core imports nothing from training"),
        ("invdiff.solvers.bad", "from ..operators import blur", "across folders"),
        ("invdiff.solvers.bad", "from ..operators import blur", "never imports a concrete operator"),
        ("invdiff.solvers.bad", "from invdiff.cli import main", "only the command line"),
        ("invdiff.operators.bad", "from invdiff.priors.prior import Prior", "an operator may import only"),
        ("invdiff.operators.bad", "from invdiff import solvers", "an operator may import only"),
        ("invdiff.operators.bad", "import invdiff", "an operator may import only"),
        ("invdiff.operators.bad", "from invdiff.operators_extra import x", "an operator may import only"),
        ("invdiff.operators.bad", "from invdiff.operators.blur import Blur", "use a relative import"),
        ("invdiff.operators.bad", "from operators.blur import Blur", "the import name is invdiff.operators.blur"),
        ("invdiff.cli.bad", "import invdiff.cli.main", "use a relative import"),
        ("invdiff.cli.bad", "from ..evaluation import metrics", "across folders"),
        ("invdiff.diffusion.schedule", "from invdiff.cli.main import main", "only the command line"),
        (
            "invdiff.diffusion.schedule",
            "def f():\n    import invdiff.training.engine",
            "the core imports nothing from training",
        ),
        ("invdiff.diffusion.schedule", "from invdiff.solvers import get", "the core imports nothing from training"),
        ("invdiff.priors.bad", "from invdiff.scores.metrics import psnr", "the core imports nothing from"),
        (
            "invdiff.training.bad",
            "try:\n    import invdiff.cli.train\nexcept ImportError:\n    pass",
            "only the command",
        ),
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
        (
            "invdiff.samplers.good",
            "from invdiff.samplers.transitions import DDIM\nfrom invdiff.samplers.continuous import VPSDE",
        ),
        ("invdiff.evaluation.good", "from invdiff.solvers import get\nfrom invdiff.training.data.sampler import split"),
        ("invdiff.restoration.loop", "if TYPE_CHECKING:\n    from invdiff.solvers.solver import Solver"),
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
