"""Names of strangers are shown as they are by all that shows them: none is mathematics, markup, a code or a tag."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as Xml

import matplotlib as mpl
import pytest
from hypothesis import given, settings
from matplotlib.figure import Figure
from rich.cells import cell_len
from rich.console import Console

from distsens.benchmark import Report, benchmark_figure, benchmark_table
from distsens.benchmark.finding import Finding
from distsens.benchmark.rounds import Spread
from distsens.errors import printable
from distsens.evaluation import Proportion, proportion
from distsens.report import (
    EvaluationSummary,
    LiveView,
    checking,
    evaluation_figure,
    in_style,
    print_table,
    show_evaluation,
    show_models,
    show_summary,
    training_figure,
)
from distsens.report.analysis.figures_ablation import ablation_plates
from distsens.report.analysis.figures_models import model_plates
from distsens.report.analysis.figures_time import agreement_plates, time_plates
from distsens.report.document import document, section
from distsens.report.style import Plate, shorts
from distsens.report.sweep import SweepView
from distsens.training import EpochRecord
from tests.report.analysis.constructed import constructed
from tests.report.nasty import NASTY, several_names
from tests.report.test_evaluation import ledger, summary
from tests.report.test_summary import SUMMARY

SOME = proportion(Proportion(5, 10))


def words_of(figure: Figure) -> list[str]:
    """The texts of a figure as it is stored, which is well-formed XML without anything unprintable."""
    file = io.BytesIO()
    with in_style():
        figure.savefig(file, format="svg")
    found = ["".join(one.itertext()) for one in Xml.fromstring(file.getvalue()).iter() if one.tag.endswith("}text")]
    assert all(one.isprintable() for one in found)
    return found


def evaluated(classes: Sequence[str]) -> EvaluationSummary:
    known = summary(ledger())
    address = f"models/{classes[0]}"
    return replace(
        known,
        model={**known.model, "name": classes[0], "address": address},
        classes={name: {"clean": SOME, "robust": proportion(Proportion(n, 10))} for n, name in enumerate(classes)},
        warnings=list(classes),
        mlflow_uri=classes[-1],
    )


@settings(max_examples=10, deadline=None)
@given(several_names)
def test_classes_are_named_in_the_figure_of_an_evaluation_whatever_the_process_has_set(classes: list[str]) -> None:
    with mpl.rc_context({"text.parse_math": True, "text.usetex": True}):
        words = words_of(evaluation_figure(evaluated(classes)))
    assert set(shorts(classes, 24)) <= set(words)
    assert [one for one in words if one in shorts(classes, 24)] == shorts(classes, 24), "of each class a bar"


def test_two_names_that_look_alike_have_a_bar_each() -> None:
    alike = ["\x1b", "\\x1b"]
    assert words_of(evaluation_figure(evaluated(alike))).count("\\x1b") >= 2


def test_layers_are_named_in_the_figure_of_a_training() -> None:
    layers = [*NASTY[:4], "[red]", "\x1b[31m", "<b>"]
    sensitivity = {f"sensitivity/{m}/{layer}": 0.1 for m in ("absolute", "relative") for layer in layers}
    history = [
        EpochRecord(epoch, {"validation/clean_accuracy": 0.5, "validation/robust_accuracy": 0.5, **sensitivity})
        for epoch in range(2)
    ]
    words = words_of(training_figure(history, 1, r"$\frac{$"))
    assert {printable(layer) for layer in layers} | {r"$\frac{$"} <= set(words)


@pytest.fixture(scope="module")
def plates() -> list[Plate]:
    models = ["_first <b>", 'second $\\frac{$ url(#x) id="x" #222222', "\x1b[31mthird"]
    layers = ["_conv", r"$\frac{$", "</script>", "[red]"]
    classes = [name for name in NASTY if "\udcff" not in name]  # no table holds it
    found = constructed(models, layers, ["pgd", "fgsm"], classes, 3)
    own = [*ablation_plates(found, models[0]), *time_plates(found, models[0])]
    return [*model_plates(found), *own, *agreement_plates(found)]


def test_models_layers_and_classes_are_named_in_the_figures_of_an_analysis(plates: list[Plate]) -> None:
    words = {plate.name: words_of(plate.figure) for plate in plates}
    for name in ("accuracy", "layers", "robustness"):
        assert {"_first <b>", "\\x1b[31mthird"} <= set(words[name]), name
    for name in ("layers", "turnover-1", "contributions-1", "ablation-zero-1", "models"):
        assert {"_conv", r"$\frac{$"} <= set(words[name]), name
    assert {"\\x1b[31mred", "[/]"} & set(words["classes"])


def test_a_page_shows_names_and_neither_runs_nor_fills_them_in(plates: list[Plate]) -> None:
    few = [plate for plate in plates if plate.name in ("layers", "noise")]
    page = document("{{body}} <b> \u202e \udcff", "{{script}}", [section("\x1b[31m", "<i>", few)])
    assert "<title>{{body}} &lt;b&gt; \\u202e \\udcff</title>" in page
    assert '<p class="about">{{script}}</p>' in page
    assert page.count("<main>") == 1
    assert "<b>" not in page
    assert "<i>" not in page
    assert 'url(#x) id="x" #222222' in page, "a name is no part of the figure's ink and ids"
    assert all(one.isprintable() or one == "\n" for one in page)


def printed(show: Callable[..., None], *arguments: Any, width: int = 200) -> str:
    """What is shown on a terminal without colours, on which nothing steers it."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    show(console, *arguments)
    output: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(one.isprintable() for one in output.replace("\n", "")), repr(output)
    return output


@given(several_names)
def test_a_table_has_every_name_as_it_is(given_names: list[str]) -> None:
    output = printed(print_table, ("name", *given_names), [(name, *given_names) for name in given_names], width=2000)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    wanted = [printable(name) for name in given_names]
    # Nor can those be told from the table that have blanks around them, or letters without a width.
    if not any("│" in name or name != name.strip() or not all(map(cell_len, name)) for name in wanted):
        assert rows == [[name, *wanted] for name in wanted]


@settings(deadline=None)
@given(several_names)
def test_the_ends_of_jobs_show_names_as_they_are(found: list[str]) -> None:
    judged = evaluated(found)
    output = printed(show_evaluation, judged)
    assert f"\n{printable(f'warning: {found[0]}')}\n" in output
    assert all(printable(name) in output for name in found[: len(found) - 1][:5])
    printed(show_models, [judged, judged])
    layers = {
        name: {"absolute": {"first": 1.0, "best": 1.0}, "relative": {"first": 1.0, "best": 1.0}} for name in found
    }
    output = printed(show_summary, replace(SUMMARY, run=found[0], sensitivity=layers, published=found[-1]))
    assert f"model {printable(found[-1])}\n" in output


@pytest.mark.parametrize("name", NASTY)
def test_what_is_shown_meanwhile_is_no_markup(name: str) -> None:
    file = io.StringIO()
    console = Console(file=file, width=200, height=40, force_terminal=True, color_system=None)
    with checking(console) as tell:
        tell(f"reading {name}")
    with SweepView(console, 1, 1) as sweep:
        sweep.doing(f"judging {name}")
    with LiveView(console, 1) as training:
        training.doing(f"testing {name}")
    output = file.getvalue()
    for what in ("judging", "testing"):
        assert f"{what} {printable(name)}" in output


def test_a_benchmark_names_the_model_that_it_attacks() -> None:
    spread = Spread(2.0, 1.0, 3.0)
    titles = ("[/] $\\frac{$", "\x1b[31m")
    findings = [Finding("a", title, "x", spread, target=1.0) for title in titles]
    report = Report({"gpu": "[red]", "cpu": "", "threads": 1, "torch": "2"}, {}, findings, [])
    output = printed(lambda console: console.print(benchmark_table(report)))
    assert "[red], torch 2" in output
    assert "met" in output
    words = words_of(benchmark_figure(report))
    for title in titles:
        assert printable(title) in output
        assert printable(title) in words
