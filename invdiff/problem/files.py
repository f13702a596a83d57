"""Measurements as files: y, the operator with its arrays, the noise and the image's shape in one .npz or .safetensors.

Arrays by name: `y` (B, *measurement shape), `operator_kernel` and the like, `noise_...`; and `measurement`, JSON (in a
.safetensors: its metadata): format, version, operator and noise as specs, sigma_y, image_shape, unit, seed, arrays (name ->
the text that stands for it in the specs), versions. Nothing is pickled, and nothing that a file says is run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from invdiff.errors import ImageError, InvdiffError, UsageError
from invdiff.files.atomic import atomic_path
from invdiff.files.decoding import reading
from invdiff.files.images import read_image
from invdiff.noise import NoiseModel, noise_model
from invdiff.operator.arrays import fingerprint, own_arrays
from invdiff.operator.contract import Operator
from invdiff.operators import resolve_operator
from invdiff.problem.problem import Problem
from invdiff.specs.parameters import declarations, is_plain

FORMAT, VERSION = "invdiff measurement", 1
SUFFIXES = (".npz", ".safetensors")
REQUIRED: dict[str, type] = {"operator": str, "noise": str, "image_shape": list, "arrays": dict}


def save(problem: Problem, path: str | os.PathLike[str], seed: int | None = None) -> None:
    """Write a problem without its truth, whole or not at all; the extension chooses the format. seed: of the simulated noise.

    Raises UsageError for an operator that no text builds (deepinv's physics, an adjoint), and for one that cannot tell the
    image's shape from y's; ImageError where the file cannot be written.
    """
    from invdiff.machine.versions import package_versions

    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"cannot write {path}: a measurement file ends in {' or '.join(SUFFIXES)}")
    told = problem.operator.image_shape(tuple(problem.y.shape[1:]))
    if tuple(told) != tuple(problem.image_shape):
        raise UsageError(
            f"{problem.operator} does not tell the image's shape {tuple(problem.image_shape)} from a measurement of "
            f"{tuple(problem.y.shape[1:])}, but {tuple(told)}; give the operator its parameter shape"
        )
    operator, noise, arrays, named = self_contained(problem)
    about = {
        "format": FORMAT,
        "version": VERSION,
        "operator": operator,
        "noise": noise,
        "sigma_y": problem.sigma_y,
        "image_shape": list(problem.image_shape),
        "unit": "images in [0, 1]",
        "seed": seed,
        "arrays": named,
        "versions": package_versions(),
    }
    text = json.dumps(about)
    arrays = {"y": problem.y.detach().cpu().numpy(), **arrays}
    with atomic_path(path) as temporary:
        if suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez_compressed(file, measurement=np.array(text), **arrays)  # type: ignore[arg-type]
        else:
            from safetensors.torch import save_file

            tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
            save_file(tensors, temporary, metadata={"measurement": text})


def self_contained(problem: Problem) -> tuple[str, str, dict[str, np.ndarray], dict[str, str]]:
    """The specs of operator and noise, the arrays they need by name, and name -> the text for it in the specs.

    Files become arrays, and what is built again from these alone must measure the same, or a UsageError is raised.
    """
    x = torch.rand(1, *problem.image_shape, generator=torch.Generator().manual_seed(0))
    x, reason = x.to(problem.y), "it measures something else when it is built again from its text and arrays"
    # A picture may be meant grey or channel by channel.
    for planes in (lambda picture: picture.mean(0), lambda picture: picture):
        arrays: dict[str, np.ndarray] = {}
        try:
            operator = embedded(problem.operator, "operator", planes, arrays)
            noise = embedded(problem.noise_model, "noise", planes, arrays)
            named = {name: fingerprint(array) for name, array in arrays.items()}
            if is_code(operator.spec):
                return operator.spec, noise.spec, arrays, named
            with own_arrays({text: arrays[name] for name, text in named.items()}):
                again = resolve_operator(operator.spec)
                noise_model(noise.spec, zero=True)
            if torch.equal(again.A(x), problem.operator.A(x)):
                return operator.spec, noise.spec, arrays, named
        except UsageError as error:
            reason = str(error)
    raise UsageError(
        f"{problem.operator} with {problem.noise_model.spec} cannot be put into a measurement file: {reason}"
    )


def embedded(
    part: Any, prefix: str, planes: Callable[[torch.Tensor], torch.Tensor], arrays: dict[str, np.ndarray]
) -> Any:
    """An operator or noise model with arrays in the place of files, in its parts too; collects its arrays by name."""
    changes: dict[str, Any] = {}
    declared = {d.name: d for d in declarations(type(part))}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, (Operator, NoiseModel)):
            changes[field.name] = embedded(value, prefix, planes, arrays)
        elif isinstance(value, (tuple, list)) and any(isinstance(item, Operator) for item in value):
            changes[field.name] = type(value)(embedded(item, prefix, planes, arrays) for item in value)
        elif isinstance(value, str) and field.name in declared and not is_plain(declared[field.name]):
            path = Path(value).expanduser()
            if path.is_file():
                changes[field.name] = _array(path, getattr(part, "key", None), planes)
                changes |= {"key": None} if getattr(part, "key", None) is not None else {}
    part = dataclasses.replace(part, **changes) if changes else part
    for name in declared:
        value = getattr(part, name)
        if isinstance(value, np.ndarray):
            alike = (f"{prefix}_{name}{'' if k == 1 else f'_{k}'}" for k in range(1, len(arrays) + 2))
            arrays[next(free for free in alike if free not in arrays)] = value
    return part


def _array(path: Path, key: str | None, planes: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """The array in a file that an operator has read before."""
    if path.suffix.lower() not in (".npy", ".npz", ""):
        return planes(read_image(path).tensor.double()).numpy()
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        return np.asarray(loaded[key if key is not None else loaded.files[0]])


def is_code(spec: str) -> bool:
    """Whether a spec may name a file of Python, path/to/file.py:Class or shorter: nothing else in a file's spec has a .py."""
    return re.search(r"\.py", spec, re.IGNORECASE) is not None


@dataclass(frozen=True, eq=False)
class MeasurementFile:
    """A measurement file as read: checked, but nothing in it is built yet. y: (B, *measurement shape); about: its JSON."""

    path: Path
    y: torch.Tensor
    about: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def problem(self, operator: Any = None, noise: Any = None) -> Problem:
        """The problem; with another operator or noise where one is given. Raises ImageError, with the file's name, where
        the file's own cannot be used, and UsageError where what was given does not fit."""
        known = {text: self.arrays[name] for name, text in self.about["arrays"].items()}
        if operator is None and is_code(self.about["operator"]):
            raise ImageError(
                f"cannot use {self.path} alone: its operator {self.about['operator']} is a Python file, and no measurement "
                f"may make code run; if you trust it, give it yourself: --operator {self.about['operator']!r}"
            )
        with _about(self.path), own_arrays(known):
            own_operator = resolve_operator(self.about["operator"]) if operator is None else None
            own_noise = noise_model(self.about["noise"]) if noise is None else None
        shape = tuple(self.about["image_shape"])
        if own_operator is not None:
            with _about(self.path):
                _check_shapes(own_operator, tuple(self.y.shape[1:]), shape)
        return Problem.from_measurement(self.y, own_operator or operator, own_noise or noise)


def _check_shapes(operator: Operator, measured: tuple[int, ...], shape: tuple[int, ...]) -> None:
    expected = tuple(operator.measurement_shape(shape))
    if expected != measured:
        raise UsageError(f"{operator} measures {expected} from its image_shape {shape}, but its y is {measured}")


@contextlib.contextmanager
def _about(path: Path) -> Iterator[None]:
    try:
        yield
    except InvdiffError as error:
        raise ImageError(f"cannot use {path}: {error}") from error


def load(path: str | os.PathLike[str]) -> MeasurementFile:
    """Read a measurement file. Raises ImageError, with the file and the fix, for anything else, a truncated or newer file,
    missing or wrong entries, Python objects, and NaN."""
    path = Path(path)
    with reading(path):
        text, arrays = (_read_npz if path.suffix.lower() == ".npz" else _read_safetensors)(path)
        try:
            return MeasurementFile(path, *_checked(text, arrays))
        except UsageError as error:
            raise ImageError(str(error)) from error


def _read_npz(path: Path) -> tuple[str | None, dict[str, np.ndarray]]:
    with np.load(path, allow_pickle=False) as file:
        if isinstance(file, np.ndarray):
            raise ImageError("it is an .npy file, not an .npz. Rename it.")
        if "measurement" not in file.files:
            return None, {name: np.empty(0) for name in file.files}
        return str(file["measurement"]), {name: file[name] for name in file.files if name != "measurement"}


def _read_safetensors(path: Path) -> tuple[str | None, dict[str, np.ndarray]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("measurement")
        return text, {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118


def _checked(
    text: str | None, arrays: Mapping[str, np.ndarray]
) -> tuple[torch.Tensor, dict[str, Any], dict[str, np.ndarray]]:
    """y, the JSON and the other arrays. Raises UsageError for what cannot be."""
    if text is None:
        held = ", ".join(sorted(arrays)) or "nothing"
        raise UsageError(
            f"no measurement written by invdiff, it holds {held}. For raw arrays name one with --key, and give --operator "
            "and --noise"
        )
    try:
        about = json.loads(text)
        kind, version = about["format"], about["version"]
    except (ValueError, KeyError, TypeError):
        raise UsageError("its entry 'measurement' is damaged. Write the file again") from None
    if kind != FORMAT or not isinstance(version, int):
        raise UsageError(f"its format is {kind!r}, version {version!r}, not {FORMAT!r}. Write it with invdiff degrade")
    if version > VERSION:
        raise UsageError(f"format version {version} is newer than {VERSION}, which this invdiff reads. Update invdiff")
    absent = [name for name, wanted in REQUIRED.items() if not isinstance(about.get(name), wanted)]
    absent += [name for name in ("y", *about.get("arrays", ())) if name not in arrays]
    if absent:
        raise UsageError(f"{', '.join(absent)} is missing or of a wrong type. Write the file again")
    others = {name: arrays[name] for name in about["arrays"]}
    changed = [name for name, array in others.items() if fingerprint(array) != about["arrays"][name]]
    if changed:
        raise UsageError(
            f"{', '.join(changed)} is not the array that was written. Copy the file again, or write it anew"
        )
    shape, y = about["image_shape"], arrays["y"]
    if not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        raise UsageError(f"image_shape {shape} is no shape. Write the file again")
    if y.dtype.kind != "f" or y.ndim < 2 or y.size == 0:
        raise UsageError(f"y must be floats (B, *measurement shape), it is {y.dtype} {y.shape}. Write the file again")
    bad = math.prod(y.shape) - int(np.isfinite(y).sum())
    if bad:
        raise UsageError(f"{bad} of {y.size} values of y are NaN or infinite. Measure again, or mask them with inpaint")
    return torch.from_numpy(np.ascontiguousarray(y)), about, others


def is_other(path: Path) -> bool:
    """True for an intact .npz or .safetensors of another kind, such as a kernel or a network beside the measurements."""
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as file:
                return "measurement.npy" not in file.namelist()
        if path.suffix.lower() == ".safetensors":
            return _read_safetensors_text(path) is None
    except Exception:
        pass  # damaged: reading it says how
    return False


def _read_safetensors_text(path: Path) -> str | None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("measurement")
