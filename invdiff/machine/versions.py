"""Versions of the packages that decide a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("invdiff")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version(), "invdiff": __version__}
    for name in ("torch", "diffusers", "deepinv", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
