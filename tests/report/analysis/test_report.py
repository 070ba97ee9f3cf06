from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from distsens.analysis import Findings
from distsens.report.analysis import Report
from distsens.report.analysis.figures_models import model_plates

VOID = {"meta", "link", "input", "img", "br", "path", "use", "rect", "image", "stop"}


class Page(HTMLParser):
    """What a browser would find: ids, references, open elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.loads.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open, tag
            assert self.open.pop() == tag


@pytest.fixture(scope="session")
def page(report: Report) -> Page:
    return Page(report.html)


def test_the_page_is_whole_and_loads_nothing(report: Report, page: Page) -> None:
    assert page.open == []
    assert all(one.startswith(("data:", "#")) for one in page.loads)
    assert set(re.findall(r"https?://[^\s\"'<)]+", report.html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "default-src 'none'" in report.html


def test_ids_are_unique_and_every_reference_leads_to_one(report: Report, page: Page) -> None:
    assert len(set(page.ids)) == len(page.ids)
    referred = {one[1:] for one in page.loads if one.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", report.html))
    assert referred <= set(page.ids)


def test_names_are_shown_as_they_are_never_run(report: Report, page: Page) -> None:
    assert "a &lt;b&gt; &amp; $x$" in report.html
    assert "first &lt;b&gt;" in report.html
    assert "beware &lt;i&gt;" in report.html
    assert not {"b", "i"} & set(page.tags)
    layers = next(plate for plate in report.plates if plate.name == "layers")
    assert b"second $x$" in layers.svg


def test_the_figures_take_ink_and_paper_from_the_page(report: Report, page: Page) -> None:
    assert page.tags.count("svg") == len(report.plates)
    assert "#222222" not in report.html
    assert "currentColor" in report.html
    assert "fill: #ffffff" not in report.html


def test_every_question_of_the_issue_has_its_figures(report: Report) -> None:
    names = {plate.name for plate in report.plates}
    assert names == {
        "accuracy", "layers", "distributions", "noise", "classes", "robustness", "conditions", "models",
        "ablation-benign-1", "ablation-zero-1", "flips-1", "contributions-1",
        "epochs-1", "jaccard-1", "turnover-1", "training-1",
    }  # fmt: skip
    assert all(len(plate.caption) > 60 for plate in report.plates)


def test_the_files_are_pictures_and_the_same_each_time(report: Report, findings: Findings) -> None:
    few = tuple(plate for plate in report.plates if plate.name in ("accuracy", "conditions"))
    again = tuple(plate for plate in model_plates(findings) if plate.name == "accuracy")
    files = Report("", few, ()).files()
    assert set(files) == {"report.html", *(f"figures/{one.name}.{kind}" for one in few for kind in ("png", "svg"))}
    assert Image.open(io.BytesIO(files["figures/accuracy.png"])).width > 600
    assert again[0].svg == files["figures/accuracy.svg"]


def test_the_table_holds_every_neuron_of_a_small_network(page: Page, findings: Findings) -> None:
    rows = len(findings.neurons[findings.neurons["condition"] == "pgd"])
    assert page.tags.count("tr") > rows
    assert page.tags.count("img") >= 3 * 2 * 2 * 3  # layers, reasons, images; three pictures at least
