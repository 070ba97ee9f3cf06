"""The end of a sweep, whatever has gone wrong: its trials, its report and its MLflow run, each for itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distsens.distributed.champion import Searched
from distsens.distributed.endings import MLFLOW_STATUS, Status, explain
from distsens.distributed.sweep_recording import SweepRecorder
from distsens.report.sweep import Outcome, sweep_files, sweep_metrics
from distsens.tracking import impatient, is_store_error, reason


@impatient()
def close_sweep(
    sweep: Searched, recorder: SweepRecorder, outcome: Outcome, status: Status, message: str | None
) -> tuple[Status, str | None]:
    """End the trials' and the sweep's MLflow runs, with the report of what was found; how the sweep ends by that.

    What cannot be done keeps nothing else from being done. It is said in a line, makes a failure of a good end, and is
    done by a resumed sweep.
    """
    faults: list[str] = []

    def attempt(what: str, do: Callable[[], None]) -> bool:
        try:
            do()
        except Exception as error:
            faults.append(f"{what}: {explain(error, sweep.view.say)}")
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
    if faults and status == "finished":
        status = "failed"
    message = "; ".join(filter(None, (message, *faults))) or None
    sweep.view.doing("ending the MLflow run")
    try:
        sweep.tracked.finish(MLFLOW_STATUS[status], message)
    except Exception as error:
        why = reason(error) if is_store_error(error) else explain(error, sweep.view.say)
        fault = f"the MLflow run cannot be ended now ({why}); its guardian goes on trying for some minutes"
        return "failed" if status == "finished" else status, "; ".join(filter(None, (message, fault)))
    return status, message


def _each(files: Mapping[str, bytes], do: Callable[[str, bytes], None]) -> None:
    for path, data in files.items():
        do(path, data)


def _keep(sweep: Searched, path: str, data: bytes) -> None:
    sweep.stored.place.put(f"report/{path}", data)
