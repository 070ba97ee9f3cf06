"""The READMEs' tables of what crosses a boundary: every variable and port of the shipped files, and no other port."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import stack
from clone import project_files
from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
from ray.dashboard.consts import DASHBOARD_METRIC_PORT

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("cluster", "infra")

VARIABLE = re.compile(r"\b(?:AWS|DISTSENS|GLOO|MLFLOW|NCCL|POSTGRES|RAY|S3|STORAGE)_[A-Z0-9_]+\b|\bPGPASSFILE\b")
# Of programs among themselves: nobody sets these.
INSIDE = {
    "DISTSENS_CLUSTER",  # by it cluster.py knows its own processes
    "POSTGRES_DB",  # by these the compose file tells PostgreSQL's image what to make
    "POSTGRES_PASSWORD_FILE",
    "POSTGRES_USER",
    "RAY_HEAD_IP",  # by it ray up tells its workers where the head is
}
PORT = re.compile(r"""(?i)(?:port["']?\s*[:= ]\s*["']?|://[\w.$\{\}-]+:|(?:127\.0\.0\.1|localhost):)(\d{2,5})\b""")
# What Ray's head listens at besides, whether it is told or not.
OF_RAY = {10001, AUTOSCALER_METRIC_PORT, DASHBOARD_METRIC_PORT}


def shipped(room: str) -> Iterator[str]:
    """The files of a room but its pages and pictures."""
    for name in project_files():
        if name.parts[0] == room and name.suffix not in (".md", ".json"):
            yield (ROOT / name).read_text()


def variables(room: str) -> set[str]:
    return {name for text in shipped(room) for name in VARIABLE.findall(text)} - INSIDE


def ports(room: str) -> set[int]:
    # A rule for pings has types in the place of ports.
    lines = [line for text in shipped(room) for line in text.splitlines() if "icmp" not in line]
    found = {int(port) for line in lines for port in PORT.findall(line)}
    return found | (set(stack.PORTS.values()) if room == "infra" else OF_RAY)


def settings(page: str) -> list[str]:
    """The first cells of its tables' rows."""
    return re.findall(r"^\| (.*?) \|", page, re.MULTILINE)


def variables_of(page: str) -> set[str]:
    return {name for cell in settings(page) for name in VARIABLE.findall(cell)}


def named_ports_of(page: str) -> set[int]:
    cells = [cell for cell in settings(page) if re.search(r"\bports?\b", cell)]
    return {int(port) for cell in cells for port in re.findall(r"\b\d{2,5}\b", cell)}


def ports_of(page: str) -> set[int]:
    """Those that are named, and those of ranges, too."""
    ranges = re.findall(r"\b(\d{2,5}) to (\d{2,5})\b", " ".join(settings(page)))
    return named_ports_of(page) | {port for first, last in ranges for port in range(int(first), int(last) + 1)}


def page_of(room: str) -> str:
    return (ROOT / room / "README.md").read_text()


@pytest.mark.parametrize("room", ROOMS)
def test_every_variable_and_every_port_is_in_its_table(room: str) -> None:
    assert variables(room) - variables_of(page_of(room)) == set()
    assert ports(room) - ports_of(page_of(room)) == set()


def test_no_table_names_a_port_that_is_nowhere() -> None:
    named = {port for room in ROOMS for port in named_ports_of(page_of(room))}
    assert named - ports("cluster") - ports("infra") == set()


@pytest.mark.parametrize(
    ("room", "row", "missed"),
    [
        ("cluster", "| ports 6380 to 6383, ", {6381}),
        ("cluster", "| port 8080; of the head, ", {44217, 44227}),
        ("cluster", "| `GLOO_SOCKET_IFNAME`", {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"}),
        ("infra", "| ports 22, 5000, ", {22, 5432}),
        ("infra", "| `RAY_AUTH_MODE=token`", {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"}),
    ],
)
def test_a_row_that_is_left_out_is_missed(room: str, row: str, missed: set[int | str]) -> None:
    lines = page_of(room).splitlines()
    page = "\n".join(line for line in lines if not line.startswith(row))
    assert len(page.splitlines()) == len(lines) - 1
    assert missed <= (variables(room) - variables_of(page)) | (ports(room) - ports_of(page))
