"""Names as strangers give them to classes, layers and models, each meant for something that shows it."""

from __future__ import annotations

from hypothesis import strategies as st

FORMULAS = ("=cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "\uff1d1")
NASTY = (
    r"$\frac{$",
    "$x$",
    "_hidden",
    "[red]",
    "[/]",
    "[link=http://x]y[/link]",
    ":skull:",
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "a\rb\nc\td",
    "\u202etxt.exe",
    "\x9b2J",
    "\0",
    "\udcff",
    "<b>",
    "</script><img src=x>",
    "-->",
    "{{body}}",
    'url(#x) id="x" #222222 fill: #ffffff',
    "\\x1b",
    *FORMULAS,
)
names = st.sampled_from(NASTY) | st.text(min_size=1, max_size=20)
several_names = st.lists(names, min_size=1, max_size=6, unique=True)
