"""A broken installation, explained where diffusers or deepinv are imported."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator

from invdiff.errors import InvdiffError

# What torchvision built for another torch says, depending on how far its import gets.
_SYMPTOMS = (
    "torchvision::",
    "'torchvision' has no attribute",
    "torchvision/_C",
    "torchvision/image.so",
    "torchvision._meta",
)


@contextlib.contextmanager
def explain_import_failure() -> Iterator[None]:
    """Turn the import error of a torchvision that does not belong to the installed torch into one InvdiffError.

    That error comes from deep inside ("operator torchvision::nms does not exist"); every other one passes unchanged.
    """
    try:
        yield
    except (RuntimeError, ImportError, AttributeError, OSError) as error:
        if not any(symptom in str(link) for link in _chain(error) for symptom in _SYMPTOMS):
            raise
        raise InvdiffError(
            f"the installed torch {installed('torch')} and torchvision {installed('torchvision')} do not belong "
            f"together ({_one_line(error)}); in a fresh environment run: "
            "pip install --force-reinstall torch torchvision"
        ) from error


def installed(package: str) -> str:
    """The installed version of a package, or "(not installed)"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _one_line(error: BaseException) -> str:
    """The innermost message, which is the one that names the symptom."""
    return str(list(_chain(error))[-1]).strip().splitlines()[0]
