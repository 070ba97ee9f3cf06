"""Ports for servers that are told theirs: nobody's, and given to nobody."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from distsens.distributed import ports
from distsens.distributed.ports import free_ports


def test_they_are_free_and_each_another() -> None:
    found = free_ports(50)
    assert len(set(found)) == 50
    for port in found:
        socket.create_server(("127.0.0.1", port)).close()


def test_none_is_one_that_a_connection_may_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        assert max(free_ports(50)) < given.getsockname()[1]
    monkeypatch.setattr(ports, "_GIVEN", tmp_path / "none")
    assert max(free_ports(50)) < 49152


def test_those_in_use_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = free_ports(1)
    (tmp_path / "range").write_text(f"{first + 1}\t60999\n")
    monkeypatch.setattr(ports, "_FIRST", first)
    monkeypatch.setattr(ports, "_GIVEN", tmp_path / "range")
    assert free_ports(1) == [first]
    with socket.create_server(("127.0.0.1", first)), pytest.raises(OSError, match="fewer than 1 are free"):
        free_ports(1)
