"""A store that is out of reach is asked again for a while, which is bounded as a whole and not for each request."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PATIENCE_S = 45.0
_PATIENCE_WHEN_LOST_S = 5.0
_LONGEST_PAUSE_S = 8.0
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"


class PatientClient:
    """An MLflow client that asks a server which is out of reach again, for 45 seconds and then no more.

    MLflow itself waits four minutes for each request to a server that has gone, and twenty for one that hangs. Here the
    first request that fails uses them up, whatever it waits for, and those after it, by which a run is ended, have
    five seconds until one of them is answered. What would be made twice if it were asked for twice, is asked for
    again only where the server was not reached. MLflow's variables win where they are set: its retries and its timeout.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._patience_s = _PATIENCE_S
        self._one_at_a_time = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return self._patient(found) if callable(found) else found

    def _patient(self, ask: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(ask)
        def patient(*arguments: Any, **named: Any) -> Any:
            with self._one_at_a_time:
                return self._ask(lambda: ask(*arguments, **named), makes=ask.__name__.startswith("create_"))

        return patient

    def _ask(self, ask: Callable[[], Any], *, makes: bool) -> Any:
        end, pause = time.monotonic() + self._patience_s, 1.0
        while True:
            try:
                with asked_once(max(1, round(end - time.monotonic()))):
                    answer = ask()
            except Exception as error:
                if not _is_out_of_reach(error):
                    raise
                self._patience_s = _PATIENCE_WHEN_LOST_S
                if _RETRIES in os.environ or time.monotonic() + pause > end or (makes and _was_reached(error)):
                    raise
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            except KeyboardInterrupt:
                self._patience_s = _PATIENCE_WHEN_LOST_S  # whoever interrupts it does not wait for it again
                raise
            else:
                self._patience_s = _PATIENCE_S
                return answer


@contextmanager
def asked_once(seconds: int) -> Iterator[None]:
    """In the block a server is asked once for each request, and waited for so long, unless the user says otherwise."""
    ours = {_RETRIES: "0", _TIMEOUT: str(seconds)}
    with environment({name: value for name, value in ours.items() if name not in os.environ}):
        yield


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """MLflow reads its patience from the environment at every request."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _is_out_of_reach(error: BaseException) -> bool:
    """Whether a server did not answer, or said that it cannot now, rather than refused what it was asked."""
    from requests import exceptions

    passing = (exceptions.ConnectionError, exceptions.RetryError, exceptions.Timeout)
    return any(isinstance(one, passing) for one in _causes(error))


def _was_reached(error: BaseException) -> bool:
    from urllib3.exceptions import NewConnectionError

    return not any(isinstance(one, NewConnectionError) for one in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__
