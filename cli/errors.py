"""What users see when something goes wrong: one line on stderr and an exit code; the traceback with --debug."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Any

import click

from invdiff.errors import InvdiffError, PluginError
from invdiff.machine.memory import for_want_of_memory

OUT_OF_MEMORY = (
    "not enough memory; use a smaller --batch-size or smaller images, raise the limit (ulimit -v, the container's), or use "
    "another --device"
)
DISK_FULL = "no space left on the disk; free some space, or write to another disk"


def report(error: BaseException, debug: bool = False) -> int:
    """Print the one line of an exception (with --debug the traceback first) and return the exit code.

    2: wrong usage; 130: interrupted; 1: everything else.
    """
    if isinstance(error, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    if debug and not isinstance(error, click.ClickException):
        traceback.print_exception(error, file=sys.stderr)
    elif isinstance(error, PluginError) and error.__cause__:
        print_own_traceback(error.__cause__)
    if type(error).__name__ == "NoArgsIsHelpError":
        click.echo(error.format_message())  # type: ignore[attr-defined]
        return 0
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        where = f" (see {context.command_path} --help)" if context else ""
        click.echo(f"Error: {one_line(error.format_message())}{where}", err=True)
        return error.exit_code
    kind = one_line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)[:300]
    message = explain(error)
    if message is None and (operator := failing_operator(error)):
        if not debug:
            print_own_traceback(error)
        message = f"operator {operator} failed in its own code: {kind}"
    if message is None:
        hint = "" if debug else "; run it again with --debug for the traceback"
        message = f"this is a bug in invdiff ({kind}){hint}"
    click.echo(f"Error: {message}", err=True)
    return error.exit_code if isinstance(error, InvdiffError) else 1


def explain(error: BaseException) -> str | None:
    """What happened and how to fix it, in one line, for everything a user can act on; None for a bug."""
    text = str(error)
    if isinstance(error, InvdiffError):
        return one_line(text)
    if for_want_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename}: {DISK_FULL}" if error.filename else DISK_FULL
    if "PytorchStreamWriter failed" in text:
        return f"a checkpoint could not be written; probably {DISK_FULL}"
    of_paths = (PermissionError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
    if isinstance(error, of_paths) and error.filename:
        return f"{os.fsdecode(error.filename)}: {(error.strerror or 'cannot be used').lower()}; check the path"
    if "torchvision" in text:
        from invdiff.priors.stored.environment import explain_import_failure

        try:
            with explain_import_failure():
                raise error
        except Exception as explained:
            if explained is not error:
                return one_line(str(explained))
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("invdiff"):
        package = error.name.split(".")[0]
        return f"the package {package} is not installed; install it: pip install {package}"
    return None


def print_own_traceback(error: BaseException) -> None:
    """The traceback of a plug-in's error, from where its own code begins."""
    frames = error.__traceback__
    while frames and frames.tb_frame.f_globals.get("__name__", "").partition(".")[0] in (
        "invdiff",
        "importlib",
        "click",
    ):
        frames = frames.tb_next
    traceback.print_exception(type(error), error, frames, chain=False, file=sys.stderr)


def failing_operator(error: BaseException) -> str | None:
    """The name of the operator in whose code an exception was raised, if it is somebody else's."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner: Any = frame.f_locals.get("self")
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] != "invdiff" and type(owner).__module__ == module and hasattr(owner, "A_adjoint"):
            return str(owner.name)
    return None


def about(path: os.PathLike[str], line: str) -> str:
    """The line of a file that failed among several, with its name once."""
    return f"Error: {line}" if str(path) in line else f"Error: {path}: {line}"


def one_line(text: str) -> str:
    """The text without line breaks or runs of blanks."""
    return " ".join(text.split())
