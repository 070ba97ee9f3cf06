"""What is said before anything is submitted, and what goes along."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest
import ray
import yaml
from clone import commit_all, copy_of_the_project
from ray._private.runtime_env.packaging import create_package

from distsens.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
JOB = ("--", "python", "jobs/train.py")

Dashboard = Callable[..., int]


@pytest.fixture(scope="module")
def submit() -> ModuleType:
    specification = importlib.util.spec_from_file_location("submit", ROOT / "cluster" / "submit.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["submit"] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    """Start what answers as a dashboard does when it is asked for its version; its port."""
    servers = []

    def start(body: str | None = None, *, version: str = ray.__version__, token: str | None = None) -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if token is not None and self.headers.get("Authorization") is None:
                    self.send_error(401)
                    return
                self.send_response(200)
                self.end_headers()
                self.wfile.write((body or json.dumps({"version": "4", "ray_version": version})).encode())

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("0.0.0.0", 0), Handler)
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return int(server.server_port)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def own_address() -> str:
    """An address of this machine that others reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no network")
        return str(one.getsockname()[0])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "command line: got None; name the job"),
        (("--address", "http://127.0.0.1:1"), "command line: got None; name the job"),
        (("--allow-open", "--", "python", "jobs/trian.py"), "job: got 'jobs/trian.py'; there is no such file"),
        (("--recipe", "quickstart", *JOB), "the job and its flags stand behind --"),
        (JOB, "address: got None; name the cluster's dashboard"),
        (("--address", "127.0.0.1:8265", *JOB), "name the cluster's dashboard, as in --address http://"),
        (("--address", "http://127.0.0.1:none", *JOB), "name the cluster's dashboard"),
        (("--address", "http://127.0.0.1:1", *JOB), "no Ray dashboard answers there: "),
        (("--address", "http://127.0.0.1:1/a b", *JOB), "no Ray dashboard answers there: "),
        (("--address", f"http://{'a' * 70}.invalid", *JOB), "no Ray dashboard answers there: "),
        (("--address", "http://127.0.0.1:99999", *JOB), "name the cluster's dashboard"),
        (("--address", "http://127.0.0.1:1", "--", "python", f"{'a' * 5000}.py"), "there is no such file in"),
    ],
)
def test_wrong_input_is_said_in_one_line(submit: ModuleType, arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError) as caught:
        submit.main(arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def run_script(*arguments: str, environment: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "cluster" / "submit.py"), *arguments]
    environment = {**environment, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_wrong_input_ends_with_2() -> None:
    done = run_script("--address", "http://127.0.0.1:1", *JOB)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: address: got 'http://127.0.0.1:1'; no Ray dashboard answers there")
    assert done.stderr.count("\n") == 1


def test_a_password_in_the_address_is_refused_and_not_repeated(submit: ModuleType) -> None:
    with pytest.raises(InputError, match="credentials do not belong into an address") as caught:
        submit.main(["--address", "http://me:s3cret@127.0.0.1:1", *JOB])
    assert "s3cret" not in str(caught.value)


def test_an_open_dashboard_is_taken_on_loopback_alone_unless_it_is_allowed(
    submit: ModuleType, dashboard: Dashboard
) -> None:
    port = dashboard()
    submit.check_cluster(f"http://127.0.0.1:{port}", allow_open=False)
    submit.check_cluster(f"http://localhost:{port}", allow_open=False)
    elsewhere = f"http://{own_address()}:{port}"
    with pytest.raises(InputError, match=r"it asks nobody for a token.*--allow-open"):
        submit.check_cluster(elsewhere, allow_open=False)
    submit.check_cluster(elsewhere, allow_open=True)


def test_a_dashboard_that_asks_for_a_token_is_given_none_that_nobody_set(dashboard: Dashboard, tmp_path: Path) -> None:
    # A process of its own: Ray reads the mode and the token once per process.
    address = f"http://127.0.0.1:{dashboard(token='secret')}"
    nobody = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = run_script("--address", address, *JOB, environment={**nobody, "HOME": str(tmp_path)})
    assert (done.returncode, done.stdout) == (2, "")
    says = "the cluster asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file that holds it\n"
    assert done.stderr == f"error: address: got '{address}'; {says}"


def test_a_cluster_whose_ray_is_too_old_is_refused(submit: ModuleType, dashboard: Dashboard) -> None:
    address = f"http://127.0.0.1:{dashboard(version='2.9.3')}"
    with pytest.raises(InputError, match=r"the cluster runs Ray 2\.9\.3, and the jobs need ray<2\.\d+,>=2\.\d+$"):
        submit.check_cluster(address, allow_open=False)


@pytest.mark.parametrize("body", ["<html>hello</html>", "[]", "{}"])
def test_what_is_no_dashboard_is_refused(submit: ModuleType, dashboard: Dashboard, body: str) -> None:
    with pytest.raises(InputError, match="is no Ray dashboard"):
        submit.check_cluster(f"http://127.0.0.1:{dashboard(body)}", allow_open=False)


def test_the_package_of_a_used_clone_holds_the_code_alone(tmp_path: Path) -> None:
    clone, package = tmp_path / "clone", tmp_path / "package.zip"
    copy_of_the_project(clone)
    commit_all(clone)
    large = secrets.token_bytes(6 << 20)
    left_out = (".venv/lib/x.so", "runs/a/x.pt", "data/MNIST/x", ".cluster/token", ".mypy_cache/x", ".git/objects/x")
    for name in left_out:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(large)
    (clone / "infra" / "stack" / ".env").write_text("the stack's passwords")
    (clone / "my_models.py").write_text("")
    excludes = yaml.safe_load((clone / "cluster" / "runtime_env.yaml").read_text())["excludes"]
    # Without .gitignore's help: a folder that is no git checkout has none.
    create_package(str(clone), package, include_gitignore=False, excludes=excludes)
    assert package.stat().st_size < 5_000_000
    with zipfile.ZipFile(package) as archive:
        names = set(archive.namelist())
    code = {str(path.relative_to(clone)) for part in ("distsens", "jobs") for path in (clone / part).rglob("*.*")}
    assert {name for name in code if "pictures" not in name} | {"pyproject.toml", "my_models.py"} <= names
    assert not [
        name for name in names if name.startswith((".git/", ".venv", "runs", "data", ".cluster", ".mypy", "tests"))
    ]
    assert "infra/stack/compose.yaml" in names
    assert "infra/stack/.env" not in names
