"""The errors that users meet. The command line prints their one line and exits with their code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InvdiffError(Exception):
    """Something failed for a reason the user can act on: the message says what, where and how to fix it. Exit code 1."""

    exit_code = 1


class UsageError(InvdiffError, ValueError):
    """An argument cannot be used: unknown name, value out of range, wrong shape. Exit code 2."""

    exit_code = 2


class ImageError(InvdiffError):
    """An image file is missing, unreadable or cannot be written."""


class CheckpointError(InvdiffError):
    """A checkpoint is missing, incomplete, truncated or does not fit its configuration."""


class PluginError(InvdiffError):
    """A plug-in's own code failed. Its exception is the cause, whose traceback is shown before the message."""


class NumericalError(InvdiffError):
    """A computation produced NaN or infinity; the message names the solver, the step and sigma."""


class InputWarning(UserWarning):
    """An argument can be used, but perhaps not as the user meant it; the message says what is done with it."""


def unknown(kind: str, name: str, known: Iterable[str], fix: str = "") -> UsageError:
    """The error for a name that does not exist: it lists the names that do, and the closest match. fix: a sentence to add."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listing = ", ".join(names) if names else "none"
    return UsageError(f"unknown {kind} {name!r}.{hint} Available: {listing}.{' ' + fix if fix else ''}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class where there is no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
