"""The end of a sweep, whatever has gone wrong: its trials, its report and its MLflow run, each for itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from distsens.distributed.champion import Searched
from distsens.distributed.endings import MLFLOW_STATUS, Status, explain
from distsens.distributed.sweep_recording import SweepRecorder
from distsens.report.sweep import Outcome, sweep_files, sweep_metrics


def close_sweep(
    sweep: Searched, recorder: SweepRecorder, outcome: Outcome, status: Status, message: str | None
) -> tuple[Status, str | None]:
    """End the trials' and the sweep's MLflow runs, with the report of what was found; how the sweep ends by that.

    What cannot be done keeps nothing else from being done. It is said in a line, each cause once, makes a failure of a
    good end, and is done by a resumed sweep.
    """
    before, faults = message, list[tuple[str, str]]()

    def attempt(what: str, do: Callable[[], None]) -> bool:
        try:
            do()
        except Exception as error:
            faults.append((what, explain(error, sweep.view.say)))
            return False
        return True

    attempt("the last state of the trials could not be kept", recorder.interrupt)
    files: dict[str, bytes] = {}
    if outcome.best:
        trials, name = recorder.in_order, sweep.stored.name
        attempt(
            "the report could not be made",
            lambda: files.update(sweep_files(name, sweep.plan, trials, outcome, sweep.champion)),
        )
        sweep.view.doing("keeping the report")
        attempt("the report could not be kept", lambda: _each(files, lambda path, data: _keep(sweep, path, data)))
        sweep.view.doing("MLflow is given the result")
        numbers = sweep_metrics(trials, outcome, sweep.champion)
        if attempt("MLflow did not take the result", lambda: sweep.tracked.log_result(numbers)):
            attempt("MLflow did not take the report", lambda: _each(files, sweep.tracked.log_bytes))
    sweep.view.doing("ending the MLflow run")
    attempt("the trials' MLflow runs could not be ended", recorder.end_runs)
    if faults and status == "finished":
        status = "failed"
    message = _said(message, faults)
    try:
        sweep.tracked.finish(MLFLOW_STATUS[status], message)
    except Exception as error:
        what = "the MLflow run cannot be ended now, and its guardian goes on trying for some minutes"
        faults.append((what, explain(error, sweep.view.say)))
        return "failed" if status == "finished" else status, _said(before, faults)
    return status, message


def _said(message: str | None, faults: Sequence[tuple[str, str]]) -> str | None:
    """How the sweep ended, and what has not been done, each cause once."""
    parts = [] if message is None else [message]
    told = set(parts)
    for what, cause in faults:
        parts.append(what if cause in told else f"{what}: {cause}")
        told.add(cause)
    return "; ".join(parts) or None


def _each(files: Mapping[str, bytes], do: Callable[[str, bytes], None]) -> None:
    for path, data in files.items():
        do(path, data)


def _keep(sweep: Searched, path: str, data: bytes) -> None:
    sweep.stored.place.put(f"report/{path}", data)
