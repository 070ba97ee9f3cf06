"""A page that needs nothing beside it: style, script and figures are inside."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from importlib.resources import files

from distsens.errors import printable
from distsens.report.style import Plate, inline_svg


def document(title: str, about: str, parts: Sequence[str]) -> str:
    """The whole document: a head with the title and a line about it, and the parts, which are HTML."""
    head = (
        f'<header><h1>{escaped(title)}</h1><p class="about">{escaped(about)}</p>'
        '<button type="button" id="theme">light or dark</button></header>'
    )
    text = _asset("page.html")
    filled = {"title": escaped(title), "style": _asset("page.css"), "script": _asset("page.js")}
    filled["body"] = head + "".join(parts)
    # All at once: a title may be called {{body}}.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: filled[place[1]], text)


def escaped(words: str) -> str:
    """Words as HTML shows them; what is no printable character, as the codes that turn a line round, in letters."""
    return html.escape(printable(words))


def section(name: str, words: str, plates: Sequence[Plate]) -> str:
    """A title, an introduction, and figures with their captions."""
    figures = "".join(
        f'<figure class="plate" id="figure-{plate.name}"><h3>{escaped(plate.title)}</h3>'
        f'<div class="scroll">{inline_svg(plate, escaped(plate.title))}</div>'
        f"<figcaption>{escaped(plate.caption)}</figcaption></figure>"
        for plate in plates
    )
    return f"<section><h2>{escaped(name)}</h2><p>{escaped(words)}</p>{figures}</section>"


def findings(sentences: Sequence[str]) -> str:
    """Sentences as the list that a report begins with."""
    items = "".join(f"<li>{escaped(one)}</li>" for one in sentences)
    return f'<ul class="findings">{items}</ul>' if items else ""


def _asset(name: str) -> str:
    return (files("distsens.report") / "assets" / name).read_text(encoding="utf-8")
