"""Files that were spoiled, or forged so that their digests are right, are read as they were, or refused in one line.

Every case is drawn from the seed and its number; a failure names both, and FUZZ_CASE=NUMBER repeats it.
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from distsens.errors import InputError
from distsens.storage import (
    CheckpointError,
)
from tests.fuzz.kinds_of_files import Kind, kinds_in
from tests.fuzz.spoiled_files import (
    spoiled_bytes,
)

SEED, FEW, CASES = 17, 260, 5000
SECONDS, LONGEST = 5.0, 20_000
GIBIBYTES = 1.0
"""That all cases together may need, above what reading whole files takes."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Kind]]:
    """Files as a small training and an evaluation of it leave them."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield kinds_in(folder)


def same(left: Any, right: Any) -> bool:
    """Equal values, wherever they are tensors, arrays or tables."""
    return digest_of(left) == digest_of(right)


def digest_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if isinstance(value, pd.DataFrame):
        return value.to_csv() + str(value.dtypes.tolist())
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{key!r}:{digest_of(one)}" for key, one in value.items())) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(digest_of, value)) + "]"
    return repr(value)


class TooLongError(Exception):
    """A case took longer than any file may."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLongError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def spoil(kinds: list[Kind], number: int) -> tuple[Kind, bytes, bool]:
    """The case of this number: what is read, the content of its file, and whether it is forged."""
    draw = random.Random(f"{SEED}:{number}")
    kind = kinds[number % len(kinds)]
    content = kind.path.read_bytes()
    if draw.random() < 0.6:
        with suppress(Exception):  # of some values no such file can be written
            return kind, kind.forge(draw, content), True
    others = [content, kinds[draw.randrange(len(kinds))].path.read_bytes()]
    return kind, spoiled_bytes(draw, content, others), False


def fault_of(kind: Kind, expected: Any, forged: bool) -> str | None:
    """What is wrong with how a spoiled file is read; None if nothing."""
    try:
        with at_most(SECONDS):
            found = kind.read()
    except (InputError, CheckpointError) as error:
        line = str(error)
        return None if line.isprintable() and len(line) < LONGEST else f"a refusal of {len(line)} characters: {line!r}"
    except BaseException:
        return traceback.format_exc()
    if kind.absent and found is None:
        return None
    return f"read as {found!r}"[:2000] if kind.whole and not forged and not same(found, expected) else None


@pytest.mark.parametrize("cases", [FEW, pytest.param(CASES, marks=pytest.mark.drill)])
def test_spoiled_and_forged_files_are_read_as_they_were_or_refused_in_one_line(kinds: list[Kind], cases: int) -> None:
    only = os.environ.get("FUZZ_CASE")
    expected = {kind.name: kind.read() for kind in kinds}
    assert not [kind.name for kind in kinds if not same(kind.read(), expected[kind.name])]
    faults: list[str] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(cases) if only is None else [int(only)]:
        beside = {
            path: path.read_bytes() for path in kinds[number % len(kinds)].path.parent.iterdir() if path.is_file()
        }
        kind, content, forged = spoil(kinds, number)
        kind.path.write_bytes(content)
        if (fault := fault_of(kind, expected[kind.name], forged)) is not None:
            faults.append(f"case {number} of seed {SEED} ({kind.name}, {'forged' if forged else 'spoiled'}): {fault}")
        for path, was in beside.items():
            path.write_bytes(was)
    needed = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    assert not faults, f"{len(faults)} of {cases}; FUZZ_CASE=NUMBER repeats one\n" + "\n".join(faults[:20])
    assert needed < GIBIBYTES, "memory was taken for what a header claims"
