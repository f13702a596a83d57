"""Shares of the machine for processes that share it (`pytest -n`), and which cases run without being asked for."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import HealthCheck, settings

# Drawn examples are the same in every run; `pytest --hypothesis-profile=search` looks for others.
settings.register_profile(
    "same", derandomize=True, deadline=None, max_examples=20, database=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)  # fmt: skip
settings.register_profile("search", settings.get_profile("same"), derandomize=False, max_examples=300)
settings.load_profile("same")

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # OpenMP crawls where two processes want all cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the cases that thinning left out (marker: full)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the cases marked `full`, unless --full, -m or a test's own name on the command line asks for them."""
    named = any("[" in argument for argument in config.args)
    if config.getoption("full") or named or re.search(r"\bfull\b", config.getoption("markexpr", "")):
        return
    out = [item for item in items if item.get_closest_marker("full")]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
