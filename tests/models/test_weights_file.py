"""Every file in which people keep weights is read, what is none says what it is, and nothing of any file is run."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import enum
import functools
import io
import os
import pathlib
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distsens.errors import InputError
from distsens.models import find_state, named_as_weights, read_weights, split_part, state_of, state_to_bytes

NETWORK = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))
STATE: dict[str, Tensor] = dict(NETWORK.state_dict())


def saved(content: object, **options: Any) -> bytes:
    """A file of torch.save."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def arrays(**content: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **content)
    return file.getvalue()


def refusal(content: bytes) -> str:
    with pytest.raises(InputError) as raised:
        find_state(content, "net.pt")
    assert str(raised.value).isprintable()
    assert not any(word in str(raised.value) for word in ("weights_only", "trust", "add_safe_globals"))
    assert (raised.value.field, raised.value.value) == ("model.weights", "net.pt")
    return raised.value.allowed


def check_is_state(found: dict[str, Tensor]) -> None:
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


class Colour(enum.Enum):
    RED = 1


class AttributeDict(dict[str, Any]):
    """As trainings keep their settings."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(fields)
        self.__dict__ = self


class Items(list[int]):
    pass


class Slots:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 3


Pair = collections.namedtuple("Pair", "a b")


def function(step: int) -> float:
    return 1 / (step + 1)


def trained() -> torch.optim.Optimizer:
    """An optimizer that has taken a step."""
    made = torch.optim.Adam(NETWORK.parameters(), lr=0.0)
    NETWORK(torch.rand(2, 1, 8, 8)).sum().backward()
    made.step()
    return made


BESIDE: dict[str, Callable[[], object]] = {
    "numbers of NumPy": lambda: (np.float64(0.5), np.int64(3), np.bool_(True), np.dtype("f4")),
    "arrays": lambda: [np.arange(5), np.array(["a", None], dtype=object), np.random.get_state()],
    "a Namespace": lambda: argparse.Namespace(lr=0.1, path=Path("x"), inner=argparse.Namespace(a=[1])),
    "settings": lambda: AttributeDict(a=1, inner=AttributeDict(b=2)),
    "paths and times": lambda: (Path("/tmp"), datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)),
    "a function": lambda: function,
    "a part of one": lambda: functools.partial(function, 3),
    "a method": lambda: AttributeDict(a=1).keys and Path("x").exists,
    "an enumeration": lambda: {Colour.RED: Colour.RED},
    "containers": lambda: (Items([1]), collections.deque([1], maxlen=3), collections.defaultdict(list, {1: [2]})),
    "a namedtuple": lambda: Pair(1, 2),
    "slots": Slots,
    "an optimizer": lambda: (trained().state_dict(), trained()),
    "generators": lambda: (random.getstate(), torch.get_rng_state()),
    "a scheduler": lambda: torch.optim.lr_scheduler.LambdaLR(trained(), function).state_dict(),
    "a class": lambda: AttributeDict,
    "odd numbers": lambda: (10**40, 1j, range(3), slice(1), ..., bytearray(b"a"), frozenset((1,))),
}  # fmt: skip


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("legacy", [False, True])
def test_objects_beside_the_weights_are_passed_over(beside: str, legacy: bool) -> None:
    content = saved(
        {"before": BESIDE[beside](), "state_dict": STATE, "after": [BESIDE[beside]()]},
        _use_new_zipfile_serialization=not legacy,
    )
    found = find_state(content, "net.pt")
    check_is_state(found.state)
    assert (found.entry, found.others) == ("state_dict", ())


def test_a_whole_module_beside_the_weights_is_passed_over() -> None:
    check_is_state(state_of(saved({"module": NETWORK, "state_dict": STATE}), "net.pt"))


def evil(how: str) -> object:
    """An object that makes a file named evil when it is unpickled."""
    calls: dict[str, tuple[Any, ...]] = {
        "os.system": (os.system, ("touch evil",)),
        "eval": (eval, ("open('evil', 'w')",)),
        "exec": (exec, ("open('evil', 'w')",)),
        "open": (open, ("evil", "w")),
        "method": (pathlib.Path.touch, (pathlib.Path("evil"),)),
        "partial": (functools.reduce, (functools.partial(open, "evil"), ["w"], "w")),
    }

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return calls[how]

    return Evil()


@pytest.mark.parametrize("how", ["os.system", "eval", "exec", "open", "method", "partial"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("where", ["beside", "instead", "within"])
def test_no_code_of_a_file_runs(
    how: str, where: str, legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    holds = {
        "beside": {"state_dict": STATE, "args": evil(how)},
        "instead": evil(how),
        "within": {"state_dict": {**STATE, "x": evil(how)}},
    }
    content = saved(holds[where], _use_new_zipfile_serialization=not legacy)
    if how == "os.system":
        assert "which no weights need: such a file is not read" in refusal(content)
    elif where == "instead":
        assert "holds no state dict" in refusal(content)
    else:
        check_is_state(state_of(content, "net.pt"))
    assert list(tmp_path.iterdir()) == []
    if how != "partial":  # the check can fail: Python's own reader runs it
        pickle.loads(pickle.dumps(evil(how)))
        assert [path.name for path in tmp_path.iterdir()] == ["evil"]


def test_nothing_that_stood_in_for_a_file_is_left_to_the_next() -> None:
    before = set(torch.serialization.get_safe_globals())
    state_of(saved({"state_dict": STATE, "args": argparse.Namespace()}), "net.pt")
    assert set(torch.serialization.get_safe_globals()) == before


ENTRIES = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module"),
    *("student", "ema", "state_dict_ema", "model_ema", "ema_state_dict", "teacher", "a_word_of_ones_own"),
)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("around", [lambda entry: entry, lambda entry: {"checkpoint": entry}], ids=["", "deeper"])
def test_the_weights_may_be_an_entry_of_a_checkpoint(entry: str, around: Any) -> None:
    checkpoint = {"epoch": 7, "best": torch.tensor(0.5), "optimizer": trained().state_dict(), entry: STATE}
    check_is_state(state_of(saved(around(checkpoint)), "net.pt"))


def test_weights_come_before_their_average_and_what_else_could_be_meant_is_known() -> None:
    average = {name: tensor + 1 for name, tensor in STATE.items()}
    content = saved({"state_dict_ema": average, "model": {"state_dict": STATE}, "discriminator": average})
    found = find_state(content, "net.pt")
    check_is_state(found.state)
    assert (found.entry, found.others) == ("model.state_dict", ("state_dict_ema",))
    for part in ("state_dict_ema", "discriminator"):
        assert torch.equal(state_of(content, "net.pt", part)["0.bias"], average["0.bias"])
    with pytest.raises(InputError, match="nothing of the name 'emma', but a dict with the keys state_dict_ema, model"):
        state_of(content, "net.pt", "emma")


@pytest.mark.parametrize(
    "content",
    [
        saved(STATE), saved(STATE, _use_new_zipfile_serialization=False), saved(STATE, pickle_protocol=3),
        saved(AttributeDict(net=AttributeDict(**STATE))),
        saved({**STATE, "version": 3, "note": "text"}), state_to_bytes(STATE),
        arrays(**{name: tensor.numpy() for name, tensor in STATE.items()}),
        arrays(**{name: tensor.numpy().astype(">f4") for name, tensor in STATE.items()}),
    ],
)  # fmt: skip
def test_the_content_of_a_file_and_no_suffix_tells_how_it_is_read(content: bytes) -> None:
    for name in ("net.pt", "net.SafeTensors", "net", "net.pth.tar"):
        check_is_state(state_of(content, name))


@pytest.mark.parametrize(
    "suffix", [".pt", ".PT", ".pth", ".Pth.Tar", ".ckpt", ".bin", ".SafeTensors", ".npz", ".pt#ema"]
)
def test_addresses_of_files_are_known_by_their_suffixes_in_any_case(suffix: str) -> None:
    assert named_as_weights(f"s3://bucket/net{suffix}")
    assert not named_as_weights(f"s3://bucket/net{suffix}/checkpoints")


def test_a_path_that_is_there_with_its_number_sign_is_that_path(tmp_path: Path) -> None:
    address = f"{tmp_path}/net.pt#ema"
    assert split_part(address) == (f"{tmp_path}/net.pt", "ema")
    Path(address).touch()
    assert split_part(address) == (address, None)


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("net.pt"))
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:`torch.jit")
def traced() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2)), file)
    return file.getvalue()


WHOLE = "write torch.save(model.state_dict(), FILE)"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\0" * 99, "is nothing but zeros, as a download that did not end leaves"),
        (b"Hello \x1b[31mworld\n", "is text, which begins 'Hello \\x1b[31mworld'"),
        ("\ufeffGrüße".encode(), "is text, which begins 'Grüße'"),
        (b'{"weight_map": {}}', "is text, which begins '{\"weight_map\": {}}'"),
        (b"\n<!DOCTYPE html><html>" + b"x" * 9999, "is an HTML page"),
        (b"<HTML lang='en'>", "is an HTML page"),
        (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "is an XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
        (b"\x1f\x8b\x08" + b"x" * 20, "is a gzip archive: unpack it"),
        (tarred(), "is a tar archive: unpack it"),
        (zipped("a.txt", "b.txt"), "is a zip archive, and none of torch.save (a.txt, b.txt)"),
        (zipped(), "is an empty zip archive"),
        (b"\x89HDF\r\n\x1a\n" + b"x" * 20, "is an HDF5 file"),
        (bytes(range(256)), "is of no format of weights that is known"),
        *((pickle.dumps({"a": 1}, protocol), "is a raw pickle") for protocol in range(6)),
        (saved(nn.Linear(2, 2)), "is a whole module of class torch.nn.modules.linear.Linear, which only its"),
        (saved(nn.Linear(2, 2), _use_new_zipfile_serialization=False), "holds a whole module, which only its"),
        (saved({"epoch": 3, "model": nn.Linear(2, 2)}), "a whole module under model (its keys are epoch, model)"),
        (traced(), f"is a TorchScript program (torch.jit.save) and no state dict: {WHOLE}"),
        (zipped("net/archive_format", "net/models/model.json"), "is an exported program (torch.export.save)"),
        (saved(STATE, pickle_protocol=5), "is written in protocol 5 of pickle"),
        (saved([STATE, {"lr": 1}]), "but a list of 2: a dict with the keys 0.weight, 0.bias, 2.weight, 2.bias; a dict"),
        (saved({"a": STATE, "b": STATE, "\x1b[2J": 1}), "but a dict with the keys a, b, \\x1b[2J"),
        (saved({str(n): n for n in range(9)}), "but a dict with the keys 0, 1, 2, 3, 4, 5 and 3 more"),
        (saved({"optimizer": {"state": {0: STATE}}}), "but a dict with the keys optimizer"),
        (saved({}), "but an empty dict"),
        (saved(torch.zeros(2)), "but a tensor of shape (2,)"),
        (saved(None), "but nothing"),
        (saved(argparse.Namespace(a=1)), "but an object of class argparse.Namespace"),
        (arrays(a=np.array([None])), "is an npz that is damaged or holds Python objects"),
        (arrays(a=np.array(["text"])), "but an empty dict"),
        (saved({"a": torch.eye(3).to_sparse()}), "holds a quantized, sparse or without its values"),
        (saved({"a": torch.empty(3, device="meta")}), "holds a quantized, sparse or without its values"),
    ],
)  # fmt: skip
def test_what_holds_no_weights_says_what_it_is(content: bytes, says: str) -> None:
    assert says in refusal(content)


@pytest.mark.parametrize("legacy", [False, True, None])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_a_file_that_was_cut_off_is_refused(legacy: bool | None, part: float) -> None:
    content = state_to_bytes(STATE) if legacy is None else saved(STATE, _use_new_zipfile_serialization=not legacy)
    assert "damaged" in refusal(content[: int(part * len(content))])


@pytest.mark.parametrize("byte", range(0, 400, 7))
def test_a_file_with_a_wrong_byte_is_read_or_refused(byte: int) -> None:
    for content in (saved(STATE), saved(STATE, _use_new_zipfile_serialization=False), state_to_bytes(STATE)):
        broken = bytearray(content)
        broken[byte % len(broken)] ^= 0xFF
        with contextlib.suppress(InputError):
            state_of(bytes(broken), "net.pt")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "a.pt", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=rf"cannot be read \({says}\)"):
            read_weights(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_weights(Path("a\0b.pt"))


def test_a_flipped_bit_in_a_file_of_torch_save_is_noticed_by_its_checksums() -> None:
    buffer = io.BytesIO()
    torch.save({"weight": torch.full((50, 50), 3.0), "bias": torch.zeros(50)}, buffer)
    flipped = bytearray(buffer.getvalue())
    flipped[flipped.index(torch.full((9,), 3.0).numpy().tobytes()) + 3] ^= 4
    with pytest.raises(InputError, match=r"is damaged or was cut off \(archive/data/0\)"):
        state_of(bytes(flipped), "net.pt")
