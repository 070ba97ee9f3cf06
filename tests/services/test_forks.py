from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forks
import pytest
from processes import processes_with

SCRIPT = """
import atexit, json, os, sys, threading, time
atexit.register(lambda: print("at exit", flush=True))
said = {"words": sys.argv, "main": __name__, "folder": os.getcwd(), "mine": os.environ.get("MINE"),
        "theirs": os.environ.get("PATH"), "there": sys.path[0], "leader": os.getpid() == os.getsid(0),
        "imported": "torch" in sys.modules}
print(json.dumps(said), flush=True)
if "wait" in sys.argv:
    time.sleep(600)
if "fail" in sys.argv:
    raise RuntimeError("as I was told")
threading.Thread(target=lambda: (time.sleep(0.2), print("a thread ends first", flush=True))).start()
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    path = tmp_path / "there" / "script.py"
    path.write_text(SCRIPT)
    return path


def test_a_fork_is_as_python_with_these_words_and_ends_as_the_script_does(
    forked: dict[str, str], script: Path, tmp_path: Path
) -> None:
    process = forks.start([str(script), "3", "a b"], env={**forked, "MINE": "set"}, cwd=tmp_path)
    assert process.stdout is not None
    said, *rest = process.stdout.read().splitlines()
    assert json.loads(said) == {
        "words": [str(script), "3", "a b"],
        "main": "__main__",
        "folder": str(tmp_path),
        "mine": "set",
        "theirs": None,
        "there": str(script.parent),
        "leader": True,
        "imported": True,
    }
    assert rest == ["a thread ends first", "at exit"]
    assert (process.wait(timeout=30), process.poll()) == (3, 3)


def test_an_exception_is_shown_and_ends_a_fork_with_1(forked: dict[str, str], script: Path, tmp_path: Path) -> None:
    process = forks.start([str(script), "fail"], env=forked, cwd=tmp_path)
    assert process.stdout is not None
    assert "RuntimeError: as I was told" in process.stdout.read()
    assert process.wait(timeout=30) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_a_fork_and_its_exit_code_tells_them(
    forked: dict[str, str], script: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = forks.start([str(script), "wait"], env=forked, cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.1)
    process.send_signal(number)
    assert process.wait(timeout=30) == (1 if number == signal.SIGINT else -number)


def test_the_command_stands_for_python(forked: dict[str, str], script: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-I", forks.__file__, forked[forks.SOCKET], str(script), "4"]
    done = subprocess.run(
        command, env={**os.environ, "MINE": "ours"}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    said = json.loads(done.stdout.splitlines()[0])
    assert (done.returncode, said["mine"], said["imported"], done.stderr) == (4, "ours", True, "")


def test_without_the_variable_a_process_is_started_as_ever(script: Path, tmp_path: Path) -> None:
    process = forks.start([str(script), "5"], env=os.environ, cwd=tmp_path)
    assert process.stdout is not None
    assert not json.loads(process.stdout.readline())["imported"]
    assert process.wait(timeout=30) == 5


ACTOR = """
import sys
import ray
ray.init(log_to_driver=False)
@ray.remote(num_cpus=0)
class Actor:
    def imported(self):
        return "torch" in sys.modules
actor = Actor.remote()
print(ray.get(actor.imported.remote()), flush=True)
sys.stdin.readline()
"""


@pytest.mark.ray
def test_a_ray_worker_is_a_fork_and_its_caller_is_there_as_long_as_it_with_the_environment_of_its_ray(
    running: dict[str, str],
) -> None:
    def callers() -> int:
        return sum(forks.__file__ in line for line in processes_with(running["RAY_TMPDIR"]).values())

    before = callers()
    process = subprocess.Popen(
        [sys.executable, "-c", ACTOR], env=running, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    assert callers() == before + 1
    process.communicate("end\n")
    deadline = time.monotonic() + 60
    while callers() > before:
        assert time.monotonic() < deadline
        time.sleep(0.2)
