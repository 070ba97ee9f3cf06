"""A page that needs nothing beside it: style, script and figures are inside."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files

from distsens.report.style import Plate, inline_svg


def document(title: str, about: str, parts: Sequence[str]) -> str:
    """The whole document: a head with the title and a line about it, and the parts, which are HTML."""
    head = (
        f'<header><h1>{html.escape(title)}</h1><p class="about">{html.escape(about)}</p>'
        '<button type="button" id="theme">light or dark</button></header>'
    )
    text = _asset("page.html")
    filled = {"title": html.escape(title), "style": _asset("page.css"), "script": _asset("page.js")}
    for key, value in (filled | {"body": head + "".join(parts)}).items():
        text = text.replace("{{" + key + "}}", value)
    return text


def section(name: str, words: str, plates: Sequence[Plate]) -> str:
    """A title, an introduction, and figures with their captions."""
    figures = "".join(
        f'<figure class="plate" id="figure-{plate.name}"><h3>{html.escape(plate.title)}</h3>'
        f'<div class="scroll">{inline_svg(plate, html.escape(plate.title, quote=True))}</div>'
        f"<figcaption>{html.escape(plate.caption)}</figcaption></figure>"
        for plate in plates
    )
    return f"<section><h2>{html.escape(name)}</h2><p>{html.escape(words)}</p>{figures}</section>"


def findings(sentences: Sequence[str]) -> str:
    """Sentences as the list that a report begins with."""
    items = "".join(f"<li>{html.escape(one)}</li>" for one in sentences)
    return f'<ul class="findings">{items}</ul>' if items else ""


def _asset(name: str) -> str:
    return (files("distsens.report") / "assets" / name).read_text(encoding="utf-8")
