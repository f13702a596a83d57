"""docs/concepts.md: its picture of the rooms is that of the source, and the files it names are there."""

from __future__ import annotations

import re
from pathlib import Path

from test_architecture import LAYERS, ROOT

PAGE = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")


def test_the_picture_shows_every_room_in_its_layer():
    picture = PAGE.partition("<!-- rooms -->")[2].partition("<!-- /rooms -->")[0]
    lines = [line for line in picture.splitlines() if line and not line.startswith("```")]
    for layer, line in zip(reversed(LAYERS), lines, strict=True):
        cells = {part.split()[0] for part in line.split("|")}
        assert cells == {room or "invdiff" for room in layer}, line


def test_every_file_that_the_page_names_exists():
    named = re.findall(r"`((?:invdiff|operators|cli|tests)/[\w/.]*)`", PAGE)
    assert len(named) > 12
    for name in named:
        assert Path(ROOT, name).exists(), name


def test_there_are_ten_words():
    assert len(re.findall(r"(?m)^\| \*\*[\w ]+\*\*", PAGE)) == 10
