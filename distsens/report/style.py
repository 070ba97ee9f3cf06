"""How the figures of an analysis look: on paper, and inside a page that is light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

# Okabe and Ito's palette, which colour-blind readers can tell apart, and which reads on white and on near black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":")
MARKERS = "os^Dvp"
SELECTIONS = {"top": "#D55E00", "random": "#777777", "bottom": "#0072B2"}
SEQUENTIAL = "viridis"

_INK = "#222222"
_GRID = "#d9d9d9"
_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.size": 10.0,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a model may be called $x$
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "figure.facecolor": "white",
    "axes.facecolor": "none",
    "savefig.facecolor": "white",
}
_DPI = 150


@dataclass(frozen=True)
class Plate:
    """A figure with what is said about it.

    name : of its files. title : what it shows. caption : what is drawn, and how it was made.
    """

    name: str
    title: str
    figure: Figure
    caption: str

    @cached_property
    def svg(self) -> bytes:
        """The figure as an SVG file, the same bytes for the same figure."""
        return _rendered(self.figure, "svg", self.name)

    @cached_property
    def png(self) -> bytes:
        """The figure as a PNG file."""
        return _rendered(self.figure, "png", self.name)


def drawn(draw: Callable[[], Figure]) -> Figure:
    """Draw a figure in this style, whatever the process has set."""
    with mpl.rc_context(_SETTINGS):
        return draw()


def _rendered(figure: Figure, kind: str, name: str) -> bytes:
    buffer = io.BytesIO()
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata=metadata)
    figure.set_layout_engine("none")  # laid out once: it takes as long as drawing, and moves a little each time
    return buffer.getvalue()


def inline_svg(plate: Plate, label: str) -> str:
    """Its figure as an SVG element whose ink and paper are those of the page around it.

    Its ids begin with the name, because all figures of a page share one space of ids; those that nothing needs go.
    """
    text, name = plate.svg.decode(), f"{plate.name}-"
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    referred = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    known = {one for pair in referred for one in pair}
    text = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in known else "", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    # The paper first: it is the one white patch, behind everything.
    text = text.replace("fill: #ffffff", "fill: none", 1).replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    width, height = (float(x) for x in re.findall(r'(?:width|height)="([\d.]+)pt"', text)[:2])
    head = (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width:g} {height:g}"'
        f' style="min-width:{width * 0.9:.0f}px; max-width:{width * 1.4:.0f}px"'
        ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)


def grid(panels: int, columns: int = 3, *, width: float = 3.2, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, in rows of at most so many columns."""
    rows = -(-panels // columns)
    columns = -(-panels // rows)  # four in two rows of two, not in one of three and one alone
    figure = Figure(figsize=(width * columns + 0.4, height * rows + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[panels:]:
        spare.set_visible(False)
    return figure, axes[:panels]


def some(layers: Sequence[str], most: int = 12) -> list[str]:
    """At most so many of the layers, evenly, with the first and the last: a deep network has too many to draw."""
    if len(layers) <= most:
        return list(layers)
    return [layers[round(i * (len(layers) - 1) / (most - 1))] for i in range(most)]


def name_ticks(axes: Axes, names: Sequence[str], room: int = 36) -> None:
    """Name the positions 0, 1, ... on the horizontal axis: of many names some, slanting beyond ``room`` letters."""
    shown = some(names, 16)
    places = [names.index(name) for name in shown]
    slanted = sum(len(short(name)) for name in shown) > room
    axes.set_xticks(
        places, [short(name) for name in shown], rotation=40 if slanted else 0, ha="right" if slanted else "center"
    )


def plain_log(axis: Axis, low: float, high: float) -> None:
    """A logarithmic scale whose ticks are plain numbers: 0.1, 1, ..., and 0.2, 0.5, ... where they are few."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 50.0 * low else (1.0,)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def short(name: str, most: int = 22) -> str:
    """A layer's name without the wrapper's part, and cut in the middle if it is long."""
    name = name.removeprefix("network.")
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"
