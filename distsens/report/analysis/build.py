"""Findings become a report: the page, its figures, and the tables beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distsens.analysis import Analysis, Findings, Sight
from distsens.report.analysis.figures_ablation import ablation_plates
from distsens.report.analysis.figures_models import model_plates
from distsens.report.analysis.figures_time import agreement_plates, time_plates
from distsens.report.analysis.page import page
from distsens.report.analysis.sentences import sentences
from distsens.report.style import Plate

REPORT = "report.html"


@dataclass(frozen=True)
class Report:
    """The page, the figures that are in it, and the sentences that it begins with."""

    html: str
    plates: tuple[Plate, ...]
    sentences: tuple[str, ...]

    def files(self) -> dict[str, bytes]:
        """By path: ``report.html``, and ``figures/<name>.png`` and ``.svg``."""
        files = {REPORT: self.html.encode()}
        for plate in self.plates:
            files |= {f"figures/{plate.name}.png": plate.png, f"figures/{plate.name}.svg": plate.svg}
        return files


def build_report(
    findings: Findings,
    sights: Mapping[str, Sequence[Sight]],
    *,
    analysis: Analysis,
    classes: Sequence[str],
    images: int,
    title: str,
    warnings: Sequence[str] = (),
) -> Report:
    """Draw and say everything that the findings hold.

    Parameters
    ----------
    sights : by model, what its sensitive neurons see.
    images : how many were analysed.
    """
    names = findings.names
    sections = [
        (
            "How sensitive are they?",
            "A neuron is a channel of a convolution or a unit of a linear layer. Its sensitivity is how much its "
            "output changes from an image to its adversarial twin, on average over images and positions.",
            model_plates(findings),
        ),
        (
            "Do sensitive neurons decide?",
            "Undo the attack in some neurons alone, or let it act through some neurons alone, and see what is "
            "predicted. If sensitive neurons carry the attack, the curve of the most sensitive ones lies above that "
            "of random ones where neurons are set to their benign value. Set to zero or to its mean, a neuron also "
            "loses what it is for.",
            [plate for name in names for plate in ablation_plates(findings, name)],
        ),
        (
            "Which neurons, when?",
            "The training wrote down every neuron after every epoch, on validation and under its validation attack. "
            "Sensitive are here those that it marked then, as many of each layer as its stabilize.ratio says.",
            [plate for name in names for plate in time_plates(findings, name)],
        ),
        (
            "Do others agree?",
            "Sensitive sets of other attacks, radii and models, compared with what random sets come to.",
            agreement_plates(findings),
        ),
    ]
    said = sentences(findings, analysis.ratio)
    threat = analysis.threat
    about = (
        f"{images:,} {analysis.data.split} images of {analysis.data.name}{analysis.data.chosen}, "
        f"{findings.condition} in {threat.norm} with eps {threat.eps:.4g}; the {100.0 * analysis.ratio:.3g} % most "
        "sensitive neurons of a layer, by "
        f"{analysis.measure} sensitivity, are called sensitive."
    )
    document = page(
        title=title,
        about=about,
        sentences=said,
        warnings=warnings,
        sections=sections,
        findings=findings,
        sights=sights,
        classes=classes,
        analysis=analysis,
    )
    return Report(
        document,
        tuple(plate for _, _, plates in sections for plate in plates),
        tuple(one for some in said.values() for one in some),
    )
