"""The `invdiff` command: a group that imports a command when it is asked for, so `invdiff --help` stays fast."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import click

import invdiff
from invdiff.errors import InputWarning
from invdiff.machine.device import limit_threads

from . import errors
from .options import Command, LazyGroup

COMMANDS = {
    "demo": "invdiff.cli.demo:demo",
    "restore": "invdiff.cli.restore:restore",
    "degrade": "invdiff.cli.degrade:degrade",
    "train": "invdiff.cli.train:train",
    "sample": "invdiff.cli.sample:sample",
    "operators": "invdiff.cli.operators:operators",
    "solvers": "invdiff.cli.solvers:solvers",
    "evaluate": "invdiff.cli.evaluate:evaluate",
    "tune": "invdiff.cli.tune:tune",
    "validate": "invdiff.cli.validate:validate",
    "report": "invdiff.cli.report:report",
    "bench": "invdiff.cli.bench:bench",
    "prior": "invdiff.cli.prior:prior",
}

# Third-party advice is for programmers; --debug brings the warnings back.
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}

EXAMPLES = """
invdiff demo
invdiff degrade photo.png -o blurred.png --operator gaussian_blur:sigma=2 --noise 0.05
invdiff restore blurred.png -o restored.png --operator gaussian_blur:sigma=2 --noise 0.05
invdiff operators list
"""


class Root(LazyGroup):
    """The outermost command. Whatever any command raises ends here, as one line and an exit code."""

    def main(self, *args: Any, **options: Any) -> Any:
        options["standalone_mode"] = False
        options["prog_name"] = "invdiff"
        self.debug: bool = os.environ.get("INVDIFF_DEBUG", "").lower() not in ("", "0", "false", "no", "off")
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        limit_threads()
        try:
            with warnings.catch_warnings():
                if not (self.debug or "--debug" in sys.argv):
                    warnings.simplefilter("ignore")
                    warnings.simplefilter("default", InputWarning)
                    warnings.showwarning = lambda message, *_: click.echo(f"warning: {message}", err=True)
                code = super().main(*args, **options)
        except Exception as error:
            code = errors.report(error, self.debug)
        except KeyboardInterrupt:
            code = errors.report(click.Abort(), self.debug)
        sys.exit(code if isinstance(code, int) else 0)


@click.command(cls=Root, commands=COMMANDS, epilog=EXAMPLES)
@click.version_option(invdiff.__version__, message="invdiff %(version)s")
def main() -> None:
    """Restore images from Y = A(X) + sigma_y Z with a trained diffusion model as the prior.

    Images are in [0, 1] and so is the noise level sigma_y: write 0.05, or 12.75/255. Any COMMAND takes --help.
    """


__all__ = ["Command", "main"]
