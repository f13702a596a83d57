"""What lies around the code: the pages of the documentation, and the files of continuous integration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

try:
    import tomllib
except ImportError:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_navigation_lists_every_page() -> None:
    pages = read(ROOT / "mkdocs.yml")["nav"]
    assert sorted(pages) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_reads_and_grants_little(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"} and workflow[True]  # YAML 1.1 reads `on` as true
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90, name
        assert job.get("permissions", {}) in ({}, {"id-token": "write"}), name
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), step
            for file in re.findall(r"tests/[\w/]*\w(?:\.py)?", step.get("run", "")):
                assert (ROOT / file).exists(), file


def test_the_matrix_begins_at_the_oldest_python() -> None:
    versions = read(ROOT / ".github/workflows/tests.yml")["jobs"]["linux"]["strategy"]["matrix"]["python"]
    assert versions == [f"3.{minor}" for minor in range(10, 15)]
    assert PROJECT["project"]["requires-python"] == f">={versions[0]}"


def test_every_requirement_has_a_lower_bound() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in [*PROJECT["project"]["dependencies"], *(one for extra in extras.values() for one in extra)]:
        assert re.fullmatch(r"[\w-]+(\[[\w,]+\])?>=[\d.]+(; .*)?", requirement), requirement
