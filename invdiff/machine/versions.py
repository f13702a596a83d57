"""Versions of the packages that decide a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def installed(package: str, otherwise: str = "not installed") -> str:
    """The installed version of a package, or `otherwise`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return otherwise


__version__ = installed("invdiff", "0+unknown")  # unknown in a checkout that was never installed


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version(), "invdiff": __version__}
    return found | {name: installed(name) for name in ("torch", "diffusers", "deepinv", "numpy")}
