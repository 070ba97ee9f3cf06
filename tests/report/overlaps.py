"""Which words of a figure lie on one another, or beyond its edge."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

Corners = npt.NDArray[np.float64]

# In pixels: around letters there is some air.
_TOUCH = 1.5


def faults_of(figure: Figure) -> list[str]:
    """A line for every two texts that overlap, and for every one that is cut."""
    canvas = FigureCanvasAgg(figure)
    texts = _drawn(canvas)
    width, height = canvas.get_width_height()
    faults = []
    for text, corners in texts:
        if corners.min() < -_TOUCH or corners[:, 0].max() > width + _TOUCH or corners[:, 1].max() > height + _TOUCH:
            faults.append(f"cut: {text!r}")
    faults += [f"overlap: {one!r} and {other!r}" for (one, a), (other, b) in combinations(texts, 2) if _overlap(a, b)]
    return faults


def _drawn(canvas: FigureCanvasAgg) -> list[tuple[str, Corners]]:
    """The texts that are drawn: beyond an axis' ends there are labels of ticks that are not."""
    found: list[Text] = []
    plain = Text.draw

    def draw(self: Text, renderer: Any, *args: Any, **kwargs: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            found.append(self)
        plain(self, renderer, *args, **kwargs)

    canvas.draw()  # lays it out
    with patch.object(Text, "draw", draw):
        canvas.draw()
    renderer = canvas.get_renderer()
    return [(one.get_text(), _corners(one, renderer)) for one in found]


def _corners(text: Text, renderer: Any) -> Corners:
    """The four corners; of slanting text those of its own rectangle, which lies aslant in its box."""
    box = Text.get_window_extent(text, renderer)
    angle = math.radians(text.get_rotation() % 90)
    if angle < 1e-6:
        return np.array([[box.x0, box.y0], [box.x1, box.y0], [box.x1, box.y1], [box.x0, box.y1]])
    before = text.get_rotation()
    text.set_rotation(0.0)
    flat = Text.get_window_extent(text, renderer)
    text.set_rotation(before)
    along, across = flat.width, flat.height
    return np.array(
        [
            [box.x0 + across * math.sin(angle), box.y0],
            [box.x1, box.y0 + along * math.sin(angle)],
            [box.x1 - across * math.sin(angle), box.y1],
            [box.x0, box.y0 + across * math.cos(angle)],
        ]
    )


def _overlap(a: Corners, b: Corners) -> bool:
    """By the theorem of separating axes: two rectangles are apart if their shadows on a side's normal are."""
    for corners in (a, b):
        for side in np.roll(corners, -1, 0) - corners:
            normal = np.array([side[1], -side[0]]) / max(1e-9, float(np.linalg.norm(side)))
            one, other = a @ normal, b @ normal
            if one.max() <= other.min() + _TOUCH or other.max() <= one.min() + _TOUCH:
                return False
    return True
