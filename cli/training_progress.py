"""What `invdiff train` shows while it runs: a bar on a terminal, a line a minute elsewhere, the log above it."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

import click


class Progress:
    """Takes the facts of every step, and the log of the training, to stderr. silent: errors only, for all processes of a
    training but the main one."""

    quiet: bool
    silent: bool
    fraction: float
    step: int

    def __init__(self, quiet: bool, silent: bool = False) -> None:
        self.quiet, self.silent = quiet or silent, silent
        self.fraction, self.step = 0.0, 0
        self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        form = "{percentage:5.1f}%|{bar:24}| {elapsed}{postfix}"
        off = self.quiet or not sys.stderr.isatty()
        self._bar = tqdm(total=1.0, bar_format=form, disable=off, dynamic_ncols=True)
        self._handler = _AboveBar()
        self._handler.setFormatter(logging.Formatter("%(message)s"))
        logger = logging.getLogger("invdiff")
        self._level = logger.level
        logger.addHandler(self._handler)
        logger.setLevel(logging.ERROR if self.silent else logging.WARNING if self.quiet else logging.INFO)
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
        logger = logging.getLogger("invdiff")
        logger.removeHandler(self._handler)
        logger.setLevel(self._level)

    @property
    def stopped(self) -> bool:
        """True once a signal asked the training to stop."""
        return self._handler.stopping

    def report(self, state: dict[str, Any]) -> None:
        """Take the engine's numbers after a step."""
        self.fraction, self.step = min(1.0, state["progress"]), state["step"]
        if not self._bar.disable:
            self._bar.set_postfix_str(describe(state), refresh=False)
            self._bar.update(self.fraction - self._bar.n)
        elif not self.quiet and time.monotonic() - self._last_line > 60:
            self._last_line = time.monotonic()
            click.echo(f"{100 * self.fraction:.1f} %, {describe(state)}", err=True)


def describe(state: dict[str, Any]) -> str:
    """The facts of a step in one line; speed and remaining time only once they are known."""
    facts = [f"step {state['step']}", f"loss {state['loss']:.4f}", f"learning rate {state['lr']:.2g}"]
    if math.isfinite(state["images_per_second"]):
        facts.append(f"{state['images_per_second']:.3g} images/s")
    if "rate" in state:
        facts.append(state["rate"])
    if math.isfinite(state["remaining"]):
        minutes, seconds = divmod(round(state["remaining"]), 60)
        facts.append(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left")
    return ", ".join(facts)


class _AboveBar(logging.Handler):
    """Log lines on stderr that leave the progress bar in one piece."""

    stopping = False

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        # The only warning of that module is the one of its StopFlag; before the first step nothing else tells.
        self.stopping |= record.name == "invdiff.machine.threads" and record.levelno == logging.WARNING
        tqdm.write(self.format(record), file=sys.stderr)
