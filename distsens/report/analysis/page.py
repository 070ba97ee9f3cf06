"""The report as one page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distsens.analysis import Analysis, Findings, Sight
from distsens.report.analysis.gallery import gallery_html
from distsens.report.analysis.neuron_rows import model_rows, neuron_rows
from distsens.report.document import document, escaped, section
from distsens.report.document import findings as listed
from distsens.report.style import Plate

Sections = Sequence[tuple[str, str, Sequence[Plate]]]


def page(
    *,
    title: str,
    about: str,
    sentences: Mapping[str, Sequence[str]],
    warnings: Sequence[str],
    sections: Sections,
    findings: Findings,
    sights: Mapping[str, Sequence[Sight]],
    classes: Sequence[str],
    analysis: Analysis,
) -> str:
    """The whole document. ``sections`` are titles, an introduction each, and their figures."""
    parts = [_summary(sentences, warnings), _models(findings)]
    parts += [section(name, words, plates) for name, words, plates in sections if plates]
    if any(sights.values()):
        parts.append(_gallery(sights, classes))
    parts += [_neurons(findings), _made(analysis)]
    return document(f"Sensitive neurons of {title}", about, parts)


def _summary(sentences: Mapping[str, Sequence[str]], warnings: Sequence[str]) -> str:
    between, own = listed(sentences[""]), {name: some for name, some in sentences.items() if name}
    if len(own) == 1:
        items = between + "".join(listed(some) for some in own.values())
    else:
        items = between + "".join(
            f"<details><summary>{escaped(name)} by itself</summary>{listed(some)}</details>"
            for name, some in own.items()
        )
    notes = "".join(f'<p class="warning">{escaped(one)}</p>' for one in warnings)
    return f'<section id="findings"><h2>Findings</h2>{items}{notes}</section>'


def _models(findings: Findings) -> str:
    if len(findings.models) < 2:
        return ""
    return f'<section id="models"><h2>Models</h2><div class="scroll">{model_rows(findings)}</div></section>'


def _gallery(sights: Mapping[str, Sequence[Sight]], classes: Sequence[str]) -> str:
    models = "".join(
        f"<details{'' if position else ' open'}><summary>{escaped(name)}</summary>{gallery_html(some, classes)}"
        "</details>"
        for position, (name, some) in enumerate(sights.items())
        if some
    )
    return (
        '<section id="gallery"><h2>What do they see?</h2><p>For the most sensitive neurons of each layer: the images '
        "that change them most and those that activate them most, the adversarial twin, the change between the two "
        "(grey is none, magnified until the largest is black or white), and the neuron's feature map before and after "
        f"on one scale of colours. A unit of a linear layer has a number instead of a map.</p>{models}</section>"
    )


def _neurons(findings: Findings) -> str:
    table, shown, total = neuron_rows(findings)
    count = (
        f"all {total:,} neurons"
        if shown == total
        else f"{shown:,} of {total:,} neurons, those that rank first in a layer"
    )
    return (
        f'<section id="table"><h2>Neurons</h2><p>Here are {count}; tables/neurons.parquet has every neuron and '
        "condition. A column's title sorts by it. Errors are standard errors over images. Contribution is to the "
        "change of the margin, part its share of the layer.</p>"
        '<label>Only rows with <input type="search" id="filter" placeholder="a layer, a model"></label>'
        f'<div class="scroll tall">{table}</div></section>'
    )


def _made(analysis: Analysis) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escaped(name)}</th><td>{escaped(str(value))}</td></tr>"
        for name, value in analysis.flat().items()
        if value is not None and not name.startswith(("storage.", "tracking.", "output"))
    )
    return (
        '<section id="made"><h2>How it was made</h2><details><summary>Every setting</summary>'
        f'<div class="scroll"><table class="settings"><tbody>{rows}</tbody></table></div></details>'
        "<p>The sensitivity of a neuron is the mean over pairs of an image x and its adversarial twin x', and over "
        "positions, of |F(x) - F(x')|, for F its outputs (Zhang et al., IEEE TIP 2021, arXiv 1909.06978). Made with "
        "distsens and matplotlib.</p></section>"
    )
