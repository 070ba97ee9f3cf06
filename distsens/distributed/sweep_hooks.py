"""What Ray Tune calls of ours. It pickles these, so they know their sweep by its name alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from ray import tune
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.search import Searcher

DIED = "its process died"


class Listener(Protocol):
    """Who hears of a sweep's trials; ``handle`` is Ray Tune's id of one."""

    def draw(self, handle: str) -> dict[str, Any]:
        """The values of the next trial."""

    def added(self, handle: str) -> None:
        """Ray Tune has made the next trial of a population, whose values it was given beforehand."""

    def reported(self, handle: str, result: Mapping[str, Any]) -> None:
        """A trial has ended, and this is the last that it reported."""

    def ended(self, handle: str, failure: str | None) -> None:
        """Ray Tune has done with a trial: because it returned or was stopped, or because its process died."""

    def check(self) -> None:
        """Raise what must end the sweep."""


_LISTENERS: dict[str, Listener] = {}


@contextmanager
def listening(sweep: str, listener: Listener) -> Iterator[None]:
    """Have the hooks of the sweep tell this listener for the length of the block."""
    _LISTENERS[sweep] = listener
    try:
        yield
    finally:
        del _LISTENERS[sweep]


class Drawing(Searcher):
    """Asks the sweep for its trials. Nothing of it is kept: the sweep's own record says what was drawn."""

    def __init__(self, sweep: str) -> None:
        super().__init__()
        self._sweep = sweep

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The values of the next trial."""
        return _LISTENERS[self._sweep].draw(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial has ended; one that died, or was never run, has no result."""
        if not error and result is not None and "score" in result:
            _LISTENERS[self._sweep].reported(trial_id, result)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Keep nothing."""


class Population(PopulationBasedTraining):
    """Ray's PBT, which tells the sweep of the trials that are made."""

    def __init__(self, sweep: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._sweep = sweep

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """One of the population has been made."""
        super().on_trial_add(tune_controller, trial)
        _LISTENERS[self._sweep].added(trial.trial_id)


class Telling(tune.Callback):
    """Tells the sweep what Ray Tune has done, and lets it end."""

    def __init__(self, sweep: str) -> None:
        self._sweep = sweep

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """It returned, or was stopped."""
        _LISTENERS[self._sweep].ended(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Its process died, and once too often."""
        _LISTENERS[self._sweep].ended(trial.trial_id, DIED)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002
        """A good moment to end."""
        _LISTENERS[self._sweep].check()
