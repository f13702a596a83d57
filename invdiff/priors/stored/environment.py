"""A broken installation, explained where diffusers or deepinv are imported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from invdiff.errors import InvdiffError, first_line
from invdiff.machine.versions import installed

# What torchvision built for another torch says, depending on how far its import gets.
_SYMPTOMS = (
    "torchvision::", "'torchvision' has no attribute", "torchvision/_C", "torchvision/image.so", "torchvision._meta",
)  # fmt: skip


@contextlib.contextmanager
def explain_import_failure() -> Iterator[None]:
    """Turn the import error of a torchvision that does not belong to the installed torch into one InvdiffError.

    That error comes from deep inside ("operator torchvision::nms does not exist"); every other one passes unchanged.
    """
    try:
        yield
    except (RuntimeError, ImportError, AttributeError, OSError) as error:
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
            causes.append(cause)
        if not any(symptom in str(cause) for cause in causes for symptom in _SYMPTOMS):
            raise
        raise InvdiffError(
            f"the installed torch {installed('torch')} and torchvision {installed('torchvision')} do not belong "
            f"together ({first_line(causes[-1])}); in a fresh environment run: "
            "pip install --force-reinstall torch torchvision"
        ) from error
