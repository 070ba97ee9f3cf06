"""The gallery: what sensitive neurons see, as small pictures in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import groupby

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image

from distsens.analysis import Sight
from distsens.report.document import escaped
from distsens.report.style import bare

Pixels = npt.NDArray[np.uint8]

_REASONS = {"changed": "changed it most", "activated": "activated it most"}
# A picture is stored no larger: many of them make up a page.
_LARGEST = 96


def gallery_html(sights: Sequence[Sight], classes: Sequence[str]) -> str:
    """Pictures of a model's sights: for each neuron the images that changed and that activated it most."""
    parts = []
    for (layer, neuron), of_neuron in groupby(sights, key=lambda sight: (sight.layer, sight.neuron)):
        rows = []
        for why, some in groupby(of_neuron, key=lambda sight: sight.why):
            cells = "".join(_cell(sight, classes) for sight in some)
            rows.append(f'<p class="why">Images that {_REASONS[why]}</p><div class="sights">{cells}</div>')
        parts.append(f"<h4>{escaped(bare(layer))}, neuron {neuron}</h4>{''.join(rows)}")
    return "".join(parts)


def _cell(sight: Sight, classes: Sequence[str]) -> str:
    largest = float(np.abs(sight.adversarial - sight.benign).max())
    low = float(min(sight.before.min(), sight.after.min()))
    high = float(max(sight.before.max(), sight.after.max()))
    pictures = [
        ("image", _picture(sight.benign)),
        ("adversarial", _picture(sight.adversarial)),
        (f"change x{0.5 / largest:.3g}" if largest else "change", perturbation(sight)),
    ]
    if sight.before.size > 1:
        pictures += [
            (name, _uri(feature_map(values, low, high)))
            for name, values in (("before", sight.before), ("after", sight.after))
        ]
    figures = "".join(
        f'<figure><img alt="{name} of image {sight.image}" src="{uri}"><figcaption>{name}</figcaption></figure>'
        for name, uri in pictures
    )
    before, after = float(sight.before.mean()), float(sight.after.mean())
    change = float(np.abs(sight.after - sight.before).mean())
    said = (
        f"no. {sight.image}, {escaped(classes[sight.label])}: taken for "
        f"{escaped(classes[sight.benign_prediction])}, then {escaped(classes[sight.adversarial_prediction])}; "
        f"output {before:.3g} → {after:.3g}, mean |change| {change:.3g}"
    )
    return f'<div class="sight"><div class="pictures">{figures}</div><p>{said}</p></div>'


def perturbation(sight: Sight) -> str:
    """The change, magnified until the largest is black or white, around grey."""
    change = sight.adversarial - sight.benign
    largest = float(np.abs(change).max()) or 1.0
    return _picture(0.5 + 0.5 * change / largest)


def feature_map(values: npt.NDArray[np.float32], low: float, high: float) -> Pixels:
    """Outputs (h, w) as colours (h, w, 3), dark for ``low`` and yellow for ``high``."""
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    coloured = mpl.colormaps["viridis"](scaled, bytes=True)
    return np.asarray(coloured[..., :3], dtype=np.uint8)


def _picture(image: npt.NDArray[np.float32]) -> str:
    """An image (C, H, W) in [0, 1]; of other numbers of channels than 1 and 3 the mean."""
    channels = image if image.shape[0] in (1, 3) else image.mean(0, keepdims=True)
    pixels = (channels.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return _uri(np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels)


def _uri(pixels: Pixels) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_LARGEST, _LARGEST))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
