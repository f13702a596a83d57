"""An HTML page from a Jinja template, with style, script and pictures inside, so that it works from file://."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def render(template: Path, mark: str, **values: Any) -> str:
    """The page of a template that extends base.html and draws with macros.html, both in this folder.

    mark: text near the page's beginning, by which a later run knows its own; values: what the template names. All are
    escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    css, js = (Markup((HERE / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    found = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(template.name)
    return found.render({"data": {"groups": []}, "mark": mark, "css": css, "js": js, **values})


def data_uri(content: bytes, kind: str) -> str:
    """A file's bytes as the address of an image; kind: such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
