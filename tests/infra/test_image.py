"""The container image: hadolint finds nothing, it holds no secret, and its packages are those of the lock file."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clone import commit_all, copy_of_the_project

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "infra" / "image" / "Dockerfile").read_text()


SECRET = re.compile(r"(?i)secret|passw|token|_key|credential")


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Its instructions in order, each with its arguments on one line."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile, flags=re.MULTILINE).replace("\\\n", " ")
    words = [line.strip().partition(" ") for line in text.splitlines() if line.strip()]
    return [(name.upper(), " ".join(arguments.split())) for name, _, arguments in words]


def faults(dockerfile: str) -> list[str]:
    """What must not be in an image of ours, and no linter knows."""
    found = []
    steps = instructions(dockerfile)
    last_stage = steps[max(number for number, (name, _) in enumerate(steps) if name == "FROM") :]
    users = [arguments for name, arguments in last_stage if name == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        found.append("it runs as root, or as a user that Kubernetes cannot tell from root")
    if not any(name == "HEALTHCHECK" for name, _ in last_stage):
        found.append("it has no health check")
    if any(name in ("ADD", "COPY") and ". " in f"{arguments} " for name, arguments in steps):
        found.append("it copies whatever is there")
    for name, arguments in steps:
        variables = re.findall(r"(\w+)=", arguments) or [arguments]
        if name in ("ARG", "ENV") and any(SECRET.search(one) for one in variables):
            found.append(f"it carries a secret: {name} {arguments}")
        installs = re.findall(r"pip install (.*?)(?:&&|$)", arguments) if name == "RUN" else []
        locked = re.compile(r".*--require-hashes .*|--no-cache-dir uv==[\d.]+ ?")
        found += [f"it installs what is not locked: {install}" for install in installs if not locked.fullmatch(install)]
    return found


def hadolint(dockerfile: str) -> str:
    """What the linter says of it."""
    program = Path(sys.executable).with_name("hadolint")
    found = str(program) if program.exists() else shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint has no wheel for this platform")
    done = subprocess.run([found, "--no-color", "-"], input=dockerfile, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_the_linter_finds_nothing() -> None:
    assert hadolint(DOCKERFILE) == ""


def test_a_build_is_sent_what_it_copies_and_nothing_else() -> None:
    first, *others = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert first == "*"
    sent = {line[1:] for line in others if line.startswith("!")}
    copied = [arguments.split()[:-1] for name, arguments in instructions(DOCKERFILE) if name == "COPY"]
    assert sent == {source for sources in copied if "--from=build" not in sources for source in sources}


def test_it_runs_as_nobody_special_holds_no_secret_and_installs_what_is_locked() -> None:
    assert faults(DOCKERFILE) == []


def test_it_says_its_commit_and_a_commit_leaves_the_layers_with_packages_as_they_are() -> None:
    steps = instructions(DOCKERFILE)
    place = steps.index(("ENV", "DISTSENS_COMMIT=${DISTSENS_COMMIT}"))
    assert steps[place - 1] == ("ARG", "DISTSENS_COMMIT=unknown")
    assert not [name for name, _ in steps[place:] if name in ("RUN", "COPY", "FROM")]


def test_make_tells_it_the_commit_and_whether_the_clone_is_changed(tmp_path: Path) -> None:
    copy_of_the_project(tmp_path)

    def told() -> str:
        done = subprocess.run(
            ["make", "--silent", "image", "BUILDER=echo"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return re.findall(r"--build-arg DISTSENS_COMMIT=(\S+)", done.stdout)[0]

    assert told() == "unknown"
    commit = commit_all(tmp_path)
    assert told() == commit
    (tmp_path / "jobs" / "another.py").write_text("")
    assert told() == f"{commit}-dirty"


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ("ARG BASE=docker.io/nvidia/cuda:13.2.1-base-ubuntu24.04\n\nFROM ${BASE}", "FROM nvidia/cuda:latest", "DL3007"),
        ("    && rm -rf /var/lib/apt/lists/*\n\nFROM python AS build", "\nFROM python AS build", "DL3009"),
        ("--no-install-recommends ca-certificates", "ca-certificates", "DL3015"),
        ("COPY distsens", "ADD distsens", "DL3020"),
        ("USER 1000:1000", "USER root", "DL3002"),
        ("WORKDIR /app", "WORKDIR app", "DL3000"),
        ('CMD ["python", "jobs/train.py", "--help"]', "CMD python jobs/train.py --help", "DL3025"),
    ],
)
def test_the_linter_finds_a_planted_mistake(right: str, wrong: str, rule: str) -> None:
    assert DOCKERFILE.count(right) == 1
    assert rule in hadolint(DOCKERFILE.replace(right, wrong))


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("USER 1000:1000", "", "root"),
        ("USER 1000:1000", "USER 0", "root"),
        ("USER 1000:1000", "USER distsens", "root"),
        ("HEALTHCHECK --interval", "# HEALTHCHECK --interval", "health"),
        ("COPY jobs /app/jobs", "COPY . /app", "whatever"),
        ("WORKDIR /app", "ENV AWS_SECRET_ACCESS_KEY=abc", "secret"),
        ("WORKDIR /app", "ARG MLFLOW_PASSWORD", "secret"),
        ("WORKDIR /app", "ENV RAY_AUTH_TOKEN=abc", "secret"),
        ("--require-hashes", "", "not locked"),
        ("uv==0.13.9", "uv", "not locked"),
        ("uv==0.13.9", "uv==0.13.9 flask", "not locked"),
    ],
)
def test_what_the_linter_does_not_know_is_found(right: str, wrong: str, says: str) -> None:
    assert DOCKERFILE.count(right) == 1
    assert any(says in fault for fault in faults(DOCKERFILE.replace(right, wrong)))
