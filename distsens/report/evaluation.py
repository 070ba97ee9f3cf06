"""What people and scripts see of an evaluation: the summary, its table, the live view and the figure."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from distsens.console import print_line
from distsens.evaluation import (
    Check,
    ErrorRates,
    Ledger,
    Proportion,
    Spread,
    Verification,
    mean_corruption_error,
    over_seeds,
    proportion,
)
from distsens.examination import JudgedData
from distsens.report.console_table import print_table
from distsens.report.pulse import Pulse
from distsens.report.style import drawn, shorts, title_over

_CLASSES_DRAWN = 40
_COLOURS = {"clean": "#0072B2", "robust": "#D55E00", "other": "#009E73"}

Json = dict[str, Any]


@dataclass(frozen=True)
class EvaluationSummary:
    """The result of an evaluation, as ``--summary`` writes it.

    Proportions are objects with ``value``, ``low`` and ``high`` (Wilson's 95 % interval), ``count`` and ``images``.

    status : ``finished``, ``failed`` or ``interrupted``; what follows counts the images done so far.
    message : why it is not finished.
    run, storage, mlflow_uri, mlflow_run_id : where it is kept and tracked.
    examination : everything that decides it, with defaults filled in.
    model, data : what was judged, with SHA-256; of the model also its ``architecture``, the ``run`` that trained it,
        its ``training`` (``recipe``, a digest of all that decides it but the ``seed``, that, and the epoch that was
        ``selected``) and whether it saw ``additional_data``, null where nobody knows; of the
        data the ``choice``, see ``data.limit``.
    images, judged : in the split; of them done.
    clean_accuracy, robust_accuracy : the latter in the worst case over all attacks.
    after_attack : robust accuracy after each attack and those before it.
    under_attack : under each attack alone, where it was run on all images that are classified right.
    evaluations : by attack, how often it showed the classifier an image.
    classes : by name, ``clean`` and ``robust``.
    curve : ``eps`` and ``robust`` of each radius.
    corruption_errors : by family, the error at each severity.
    mean_corruption_error : mCE relative to the baseline, null without one; with ``frost`` among the families it does
        not compare with published values.
    diagnostics : the checks for gradient masking: ``name``, ``passed``, ``values``, ``sentence``.
    violations : examples outside the ball or [0, 1], which did not count.
    not_finite : images of which some logits, as they are, attacked or corrupted, were NaN or infinite: these count as
        misclassified. Where they are more than one in twenty of all images the evaluation fails.
    warnings : what the verdicts are to be read with.
    commit : of the code that judged.
    seconds, workers, images_per_second : what it took, in all sessions; the rate is the last one's.
    """

    status: Literal["finished", "failed", "interrupted"]
    message: str | None
    run: str
    storage: str
    mlflow_uri: str
    mlflow_run_id: str
    examination: Json
    model: Json
    data: Json
    images: int
    judged: int
    clean_accuracy: Json | None
    robust_accuracy: Json | None
    after_attack: dict[str, Json]
    under_attack: dict[str, Json]
    evaluations: dict[str, int]
    classes: dict[str, dict[str, Json]]
    curve: list[Json]
    corruption_errors: dict[str, list[float]]
    mean_corruption_error: float | None
    diagnostics: list[Json]
    violations: int
    not_finite: int
    warnings: list[str]
    commit: str
    seconds: float
    workers: int
    images_per_second: float

    @staticmethod
    def of(
        *,
        ledger: Ledger | None,
        checks: Sequence[Check],
        classes: Sequence[str],
        warnings: Sequence[str],
        seconds: float,
        seconds_now: float,
        judged_now: int,
        baseline: ErrorRates | None,
        **known: Any,
    ) -> EvaluationSummary:
        """Count everything from the ledger."""
        counted: dict[str, Any] = {
            "judged": 0,
            "clean_accuracy": None,
            "robust_accuracy": None,
            "after_attack": {},
            "under_attack": {},
            "evaluations": {},
            "classes": {},
            "curve": [],
            "corruption_errors": {},
            "mean_corruption_error": None,
            "violations": 0,
            "not_finite": 0,
        }
        if ledger is not None:
            counted = {
                "judged": len(ledger),
                "clean_accuracy": proportion(ledger.clean),
                "robust_accuracy": proportion(ledger.robust),
                "after_attack": {name: proportion(value) for name, value in ledger.after_attack.items()},
                "under_attack": {name: proportion(value) for name, value in ledger.under_attack.items()},
                "evaluations": ledger.spent,
                "classes": {
                    classes[label]: {"clean": proportion(clean), "robust": proportion(robust)}
                    for label, (clean, robust) in ledger.classes.items()
                },
                "curve": [{"eps": eps, "robust": proportion(value)} for eps, value in ledger.curve.items()],
                "corruption_errors": ledger.corruption_errors,
                "mean_corruption_error": baseline and mean_corruption_error(ledger.corruption_errors, baseline),
                "violations": ledger.violations,
                "not_finite": ledger.not_finite,
            }
        return EvaluationSummary(
            **counted,
            **known,
            diagnostics=[asdict(check) for check in checks],
            warnings=list(warnings),
            seconds=seconds,
            workers=known["examination"]["workers"]["num"],
            images_per_second=judged_now / seconds_now,
        )

    def to_dict(self) -> Json:
        """For JSON."""
        return asdict(self)

    def metrics(self) -> dict[str, float]:
        """The numbers for MLflow."""
        numbers = {"evaluation/images": float(self.judged), "evaluation/not_finite": float(self.not_finite)}
        for name, value in (("clean", self.clean_accuracy), ("robust", self.robust_accuracy)):
            if value is not None:
                numbers |= {f"evaluation/{name}_accuracy{end}": value[key] for end, key in _ENDS.items()}
        numbers |= {f"evaluation/after/{name}": value["value"] for name, value in self.after_attack.items()}
        numbers |= {f"evaluation/under/{name}": value["value"] for name, value in self.under_attack.items()}
        numbers |= {f"evaluation/evaluations/{name}": float(value) for name, value in self.evaluations.items()}
        numbers |= {f"evaluation/eps/{point['eps']:.6g}": point["robust"]["value"] for point in self.curve}
        for family, errors in self.corruption_errors.items():
            numbers[f"evaluation/corruption_error/{family}"] = sum(errors) / len(errors)
        if self.mean_corruption_error is not None:
            numbers["evaluation/mean_corruption_error"] = self.mean_corruption_error
        return numbers


_ENDS = {"": "value", "_low": "low", "_high": "high"}


def show_evaluation(console: Console, summary: EvaluationSummary) -> None:
    """The final tables."""
    clean, robust = summary.clean_accuracy, summary.robust_accuracy
    if clean is None or robust is None:
        return
    threat = summary.examination["threat"]
    print_line(
        console,
        f"{summary.model['name']}: {summary.judged} of {summary.images} {summary.data['split']} images"
        f"{JudgedData.model_validate(summary.examination.get('data', {})).chosen}, "
        f"{threat['norm']} eps {threat['eps']:.6g}",
        "bold",
    )
    rows = [("no attack", *_cells(clean), "", "")]
    for name, value in summary.after_attack.items():
        alone = summary.under_attack.get(name)
        cells = (f"{alone['value']:.2%}" if alone else "", f"{summary.evaluations[name]:,}")
        rows.append((name, *_cells(value), *cells))
    rows.append(("all: robust accuracy", *_cells(robust), "", f"{sum(summary.evaluations.values()):,}"))
    columns = ("after", "accuracy", "95 % interval", "alone", "evaluations")
    print_table(console, columns, rows, last_stands_out=True)
    _show_classes(console, summary)
    _show_more(console, summary)
    for warning in summary.warnings:
        print_line(console, f"warning: {warning}")
    if summary.not_finite:
        print_line(
            console, f"{summary.not_finite} images have logits that are NaN or infinite, which counts as misclassified"
        )
    if summary.violations:
        print_line(console, f"{summary.violations} examples lay outside the ball or [0, 1] and did not count")
    print_line(console, f"{summary.seconds:.0f} s, {summary.workers} workers, {summary.images_per_second:.2f} images/s")
    print_line(console, f"MLflow run {summary.mlflow_run_id} in {summary.mlflow_uri}")


def _cells(value: Mapping[str, float]) -> tuple[str, str]:
    return f"{value['value']:.2%}", f"{value['low']:.2%} to {value['high']:.2%}"


def _show_classes(console: Console, summary: EvaluationSummary) -> None:
    weakest = least_robust_classes(summary)
    if weakest:
        shown = ", ".join(
            f"{name} {value['value']:.1%} ({value['count']} of {value['images']})" for name, value in weakest.items()
        )
        print_line(console, f"least robust classes: {shown}")


def least_robust_classes(summary: EvaluationSummary, most: int = 5) -> dict[str, Json]:
    """At most so many classes, the least robust first; none that is but equal to one that is left out."""
    rising = sorted(((name, one["robust"]) for name, one in summary.classes.items()), key=lambda item: item[1]["value"])
    if len(rising) <= most:
        most = len(rising) - 1  # the most robust one is none of the least robust
    return {name: value for name, value in rising[:most] if value["value"] < rising[most][1]["value"]}


def _show_more(console: Console, summary: EvaluationSummary) -> None:
    if summary.curve:
        points = ", ".join(f"{point['eps']:.4g}: {point['robust']['value']:.2%}" for point in summary.curve)
        print_line(console, f"robust accuracy by eps (apgd-ce): {points}")
    if summary.corruption_errors:
        severities = max(map(len, summary.corruption_errors.values()))
        print_table(
            console,
            ("error at severity", *(str(severity) for severity in range(1, severities + 1))),
            [
                (family, *(f"{error:.1%}" for error in errors), *[""] * (severities - len(errors)))
                for family, errors in summary.corruption_errors.items()
            ],
        )
    if summary.mean_corruption_error is not None:
        print_line(console, f"mCE relative to the baseline: {summary.mean_corruption_error:.1%}")
    for check in summary.diagnostics:
        verdict = "ok     " if check["passed"] else "SUSPECT"
        print_line(console, f"{verdict} {check['name']}: {check['sentence']}")


def show_models(console: Console, summaries: Sequence[EvaluationSummary]) -> None:
    """Several models side by side; mean and spread over them, if they are one recipe's with different seeds."""
    if len(summaries) < 2:
        return
    rows = [
        (summary.model["address"].rpartition("/")[2], *_cells(summary.clean_accuracy), *_cells(summary.robust_accuracy))
        for summary in summaries
        if summary.clean_accuracy is not None and summary.robust_accuracy is not None
    ]
    print_table(console, ("model", "clean", "95 % interval", "robust", "95 % interval"), rows)
    for name, spread in spread_over_models(summaries).items():
        print_line(
            console,
            f"{name.replace('_', ' ')} over {len(summaries)} seeds: {spread.mean:.2%}, "
            f"standard deviation {spread.std:.2%}, 95 % interval of the mean {spread.low:.2%} to {spread.high:.2%}",
        )


def spread_over_models(summaries: Sequence[EvaluationSummary]) -> dict[str, Spread]:
    """Clean and robust accuracy over the seeds of one recipe; nothing of other models, which are no sample of anything.

    All must be of one recipe, which nobody knows of a file of weights, have each another seed, and be judged alike.
    """
    trainings = [summary.model.get("training") for summary in summaries]
    seeds = {training["seed"] for training in trainings if training is not None}
    recipes = {None if one is None else (one["recipe"], one["selected"]) for one in trainings}
    judged = {json.dumps(_judged_alike(summary), sort_keys=True) for summary in summaries}
    if len(summaries) < 2 or None in recipes or len(recipes) > 1 or len(judged) > 1 or len(seeds) < len(summaries):
        return {}
    found = {}
    for name in ("clean_accuracy", "robust_accuracy"):
        values = [value["value"] for summary in summaries if (value := getattr(summary, name)) is not None]
        if len(values) == len(summaries):
            found[name] = over_seeds(values)
    return found


def _judged_alike(summary: EvaluationSummary) -> Json:
    """What decides the numbers beside the model: one may have begun with other attacks, images or effort."""
    aside = ("model", "shard", "batch_size", "workers", "storage", "tracking", "examples", "baseline")
    decides = {key: value for key, value in summary.examination.items() if key not in aside}
    # Which images are held out for the test may be up to the seed.
    data = {key: value for key, value in summary.data.items() if key != "digest"}
    return {**decides, "data": data}


def summary_document(
    summaries: Sequence[EvaluationSummary], models: int, verification: Verification | None = None
) -> Json:
    """What ``--summary`` writes: of one model its summary, of several, as many of them as were judged,

    models : their summaries.
    over_models : ``clean_accuracy`` and ``robust_accuracy`` over seeds, each with ``mean``, ``std`` and the ends
        ``low`` and ``high`` of Student's 95 % interval of the mean; empty unless all are of one recipe and differ in
        its seed.

    With ``--verify`` the summary has ``verification``, too: ``holds``, ``images``, ``overclaimed``, ``underclaimed``,
    ``faults``, ``notices`` and ``sentence``; it is all there is where something else than what is claimed would have
    been judged.
    """
    if verification is not None:
        verdict = {"holds": verification.holds, **asdict(verification), "sentence": verification.sentence}
        return {**(summaries[0].to_dict() if summaries else {}), "verification": verdict}
    if models == 1:
        return summaries[0].to_dict()
    return {
        "models": [summary.to_dict() for summary in summaries],
        "over_models": {name: asdict(spread) for name, spread in spread_over_models(summaries).items()},
    }


class EvaluationView:
    """Images left, robust accuracy so far with its interval, and the time left: live, or as lines now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("judged"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("images", total=None, note="starting the examiners")
        self._pulse = Pulse(console)
        self._pulse.doing("starting the examiners")
        self._began = time.monotonic()
        self._total = self._before = self._shown = 0

    def __enter__(self) -> EvaluationView:
        self._progress.__enter__()
        self._pulse.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pulse.__exit__()
        self._progress.__exit__(kind, error, trace)

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self._pulse.say(line)

    def begin(self, images: int, done: int) -> None:
        """The images are given out now; so many were done before."""
        self._began, self._total, self._before = time.monotonic(), images, done
        self._progress.update(self._task, total=images, completed=done, note="")
        self._pulse.begin()
        self._pulse.doing(f"{done} of {images} images")
        if not self._console.is_terminal:
            self.say(f"judging {images - done} of {images} images ...")

    def judged(self, ledger: Ledger | None) -> None:
        """Show the ledger so far."""
        if ledger is None:
            return
        note = f"robust {_with_interval(ledger.robust)}"
        now, left = time.monotonic(), self._total - len(ledger)
        if new := len(ledger) - self._before:
            note += f"  {left} images, {(now - self._began) / new * left:.0f} s left"
        self._progress.update(self._task, completed=len(ledger), note=note)
        self._pulse.doing(f"{len(ledger)} of {self._total} images  {note}" if left else "ending")
        if not self._console.is_terminal and left == 0 and len(ledger) != self._shown:
            self._shown = len(ledger)
            self.say(f"{len(ledger)} of {self._total} images  {note}")


def _with_interval(value: Proportion) -> str:
    low, high = value.interval
    return f"{value.value:.1%} ({low:.1%} to {high:.1%})"


def evaluation_figure(summary: EvaluationSummary) -> Figure:
    """Accuracy after each attack, by class, and, where they were measured, by radius and under corruptions."""
    return drawn(lambda: _figure(summary))


def _figure(summary: EvaluationSummary) -> Figure:
    panels = [_draw_attacks, _draw_classes]
    panels += [_draw_curve] if summary.curve else []
    panels += [_draw_corruptions] if summary.corruption_errors else []
    lines = max(min(len(summary.classes), _CLASSES_DRAWN), len(summary.after_attack), len(summary.corruption_errors))
    figure = Figure(figsize=(5.2 * len(panels), max(4.4, 1.4 + 0.2 * lines)), layout="constrained")
    threat = summary.examination["threat"]
    title_over(
        figure,
        f"{summary.model['name']}, {summary.judged} {summary.data['split']} images, "
        f"{threat['norm']} eps {threat['eps']:.4g}",
    )
    for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes, summary)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    return figure


def _draw_attacks(axes: Axes, summary: EvaluationSummary) -> None:
    _bars(axes, ["no attack", *summary.after_attack], [summary.clean_accuracy, *summary.after_attack.values()])
    axes.set_title("accuracy after each attack in turn", fontsize="medium")


def _draw_classes(axes: Axes, summary: EvaluationSummary) -> None:
    classes = summary.classes
    title = "robust accuracy by class (dots: clean)"
    if len(classes) > _CLASSES_DRAWN:
        rising = sorted(classes.items(), key=lambda item: item[1]["robust"]["value"])
        classes = dict(rising[:_CLASSES_DRAWN])
        title = f"the {_CLASSES_DRAWN} least robust of {len(rising)} classes (dots: clean)"
    _bars(axes, shorts(list(classes), 24), [values["robust"] for values in classes.values()])
    axes.plot(
        [values["clean"]["value"] for values in classes.values()],
        range(len(classes)),
        "o",
        color=_COLOURS["clean"],
        clip_on=False,
    )
    axes.set_title(title, fontsize="medium")


def _bars(axes: Axes, names: Sequence[str], values: Sequence[Any]) -> None:
    numbers = [value["value"] for value in values]
    errors = [[value["value"] - value["low"] for value in values], [value["high"] - value["value"] for value in values]]
    places = range(len(names))
    axes.barh(
        places, numbers, color=_COLOURS["robust"], alpha=0.85, xerr=errors, ecolor="0.25", error_kw={"capsize": 3}
    )
    axes.set_yticks(places, names)  # at once: of names that become ticks only later the style would be gone
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("accuracy, with 95 % interval")


def _draw_curve(axes: Axes, summary: EvaluationSummary) -> None:
    radii = [point["eps"] for point in summary.curve]
    robust = [point["robust"] for point in summary.curve]
    axes.plot(radii, [value["value"] for value in robust], "o-", color=_COLOURS["robust"])
    axes.fill_between(
        radii,
        [value["low"] for value in robust],
        [value["high"] for value in robust],
        color=_COLOURS["robust"],
        alpha=0.2,
    )
    axes.axvline(summary.examination["threat"]["eps"], color="0.6", linewidth=1)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(f"eps ({summary.examination['threat']['norm']})")
    axes.set_ylabel("robust accuracy (apgd-ce)")
    axes.set_title("robust accuracy by radius", fontsize="medium")


def _draw_corruptions(axes: Axes, summary: EvaluationSummary) -> None:
    means = {family: sum(errors) / len(errors) for family, errors in summary.corruption_errors.items()}
    axes.barh(list(means), list(means.values()), color=_COLOURS["other"], alpha=0.85)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("error, mean over severities 1 to 5")
    axes.set_title("common corruptions", fontsize="medium")
