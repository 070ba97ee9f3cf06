"""How the figures of an analysis look: on paper, and inside a page that is light or dark."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter

from distsens.errors import printable

# Okabe and Ito's palette, which colour-blind readers can tell apart, and which reads on white and on near black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":")
MARKERS = "os^Dvp"
SELECTIONS = {"top": "#D55E00", "random": "#777777", "bottom": "#0072B2"}
SEQUENTIAL = "viridis"

T = TypeVar("T")

_INK = "#222222"
_GRID = "#d9d9d9"
_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.size": 10.0,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a model may be called $x$
    "text.usetex": False,
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

# In inches, of the fonts above.
_LETTER = 0.083
_LINE = 0.2
_TITLE_LETTER = 0.12
_HANDLE = 0.55
_INNER_PART = 0.62
_SLANT = 40
_POWERS = 3


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


@contextmanager
def in_style() -> Iterator[None]:
    """What is drawn and stored in the block is so in this style, whatever the process has set."""
    with mpl.rc_context(_SETTINGS):
        yield


def drawn(draw: Callable[[], Figure]) -> Figure:
    """Draw a figure in this style."""
    with in_style():
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

    def adapted(tag: re.Match[str]) -> str:
        one = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in known else "", tag[0])
        one = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', one)
        one = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", one)
        return one.replace(_INK, "currentColor").replace(_GRID, "var(--grid)")

    # The paper first: it is the one white patch, behind everything.
    text = text.replace("fill: #ffffff", "fill: none", 1)
    text = re.sub(r"<[^>]*>", adapted, text)  # and not what stands between them, which may be a name of others
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


def some(layers: Sequence[T], most: int = 12) -> list[T]:
    """At most so many of the layers, evenly, with the first and the last: a deep network has too many to draw."""
    if len(layers) <= most:
        return list(layers)
    return [layers[round(i * (len(layers) - 1) / (most - 1))] for i in range(most)]


def name_ticks(axes: Axes, names: Sequence[str], width: float | None = None) -> None:
    """Name the positions 0, 1, ... on the horizontal axis: of many names as many as there is room for, or slanting.

    ``width`` is that of the panel's inner part in inches, where much stands beside it.
    """
    words = shorts(names)
    width = _width_of(axes) if width is None else width
    if sum(len(word) * _LETTER + _LETTER for word in words) <= width:
        axes.set_xticks(range(len(names)), words)
        return
    shown = some(range(len(names)), max(2, int(width / (_LINE / math.sin(math.radians(_SLANT))))))
    axes.set_xticks(shown, [words[place] for place in shown], rotation=_SLANT, ha="right", rotation_mode="anchor")
    # What the slanting names take must not be the picture's.
    figure = axes.get_figure(root=True)
    grid = axes.get_gridspec()
    if figure is not None and grid is not None and axes.get_subplotspec().is_last_col():  # type: ignore[union-attr]
        longest = max(len(words[place]) for place in shown)
        figure.set_figheight(figure.get_figheight() + longest * _LETTER * math.sin(math.radians(_SLANT)))


def _width_of(axes: Axes) -> float:
    """About how many inches the inner part of a panel will have: of its share of the figure, most."""
    figure, grid = axes.get_figure(root=True), axes.get_gridspec()
    if figure is None or grid is None:
        raise ValueError("the axes are in no figure")
    return _INNER_PART * figure.get_figwidth() / grid.ncols


def legend_above(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend over the panels, in as many columns as fit, for which the figure grows."""
    words = shorts(labels, 44)
    longest = max(map(len, words), default=0) * _LETTER + _HANDLE
    columns = max(1, min(len(words), 4, int(figure.get_figwidth() / longest)))
    rows = -(-len(words) // columns)
    figure.set_figheight(figure.get_figheight() + _LINE * (rows - 1))
    figure.legend(handles, words, loc="outside upper center", ncols=columns, columnspacing=1.0)


def plain_log(axis: Axis, low: float, high: float) -> None:
    """A logarithmic scale whose ticks are plain numbers: 0.1, 1, ..., and 0.2, 0.5, ... where they are few."""
    if high < 50.0 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    else:
        # Of many powers of ten every second one, or third.
        least, most = math.ceil(math.log10(low)), math.floor(math.log10(high))
        step = max(1, -(-(most - least) // _POWERS))
        axis.set_major_locator(FixedLocator([10.0**power for power in range(least, most + 1, step)]))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def title_over(figure: Figure, text: str) -> None:
    """A title of the whole figure, on as many lines as it takes."""
    figure.suptitle(textwrap.fill(printable(text), max(20, int(figure.get_figwidth() / _TITLE_LETTER))))


def shorts(names: Sequence[str], most: int = 22) -> list[str]:
    """:func:`bare` of each, cut in the middle where it is longer than so many letters, but never to what another is.

    Different names stay different: where it takes more letters for that, all have more.
    """
    whole = [bare(name) for name in names]
    if len(set(whole)) < len(set(names)):  # one is called as another is inside its wrapper
        whole = [printable(name) for name in names]
    different, longest = len(set(whole)), max(map(len, whole), default=0)
    for letters in range(most, max(most, longest)):
        words = [_cut(name, letters) for name in whole]
        if len(set(words)) == different:
            return words
    return whole


def titles(names: Sequence[str], most: int = 22) -> list[str]:
    """:func:`shorts`, folded to lines of so many letters, for panels that stand side by side."""
    return [textwrap.fill(words, most, break_on_hyphens=False) for words in shorts(names, most)]


def bare(name: str) -> str:
    """A layer's whole name, printable, without the wrapper's part."""
    return printable(name).removeprefix("network.")


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"
