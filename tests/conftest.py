"""Shared by all tests: where the larger data sets are, S3 servers, and a Ray that no other process can disturb."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import ceph_server
import forks
import pytest
import ray
import torch
from forks import fork_server
from hypothesis import HealthCheck, settings
from moto.server import ThreadedMotoServer
from running_ray import OPEN, private_environment, running_ray

from distsens.distributed.ray_internals import loopback_stays

# Examples may take long on a busy machine. In CI they are the same each time, so that a failure belongs to a change.
settings.register_profile(
    "distsens", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("distsens")


# Files whose tests share what takes many seconds to start, one process for each line: a Ray, an S3 server, a cluster.
# The longest come first, so that no process waits for another at the end.
_TOGETHER = {
    "stack": ("infra/test_stack.py",),
    "train": ("jobs/test_train.py", "jobs/test_train_bucket.py", "jobs/test_benchmark.py"),
    "jobs": (
        "jobs/test_tune.py",
        "jobs/test_evaluate.py",
        "jobs/test_analyze.py",
        "jobs/test_lost_nodes.py",
        "jobs/test_outage.py",
    ),
    "clusters": ("cluster/test_local.py", "cluster/test_hosts.py", "distributed/test_autoscaling.py"),
    "ceph": ("jobs/test_train_s3.py", "services/test_ceph.py", "storage/"),
    "actors": ("distributed/",),
    "aws": ("infra/test_aws_permissions.py", "infra/test_aws_template.py"),
}
_TESTS = Path(__file__).parent


def _group(path: Path) -> tuple[int, str]:
    """Which process a file's tests share, and how early they are begun."""
    name = path.relative_to(_TESTS).as_posix()
    for place, (group, files) in enumerate(_TOGETHER.items()):
        if name.startswith(files):
            return place, group
    return len(_TOGETHER), name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test has said travels between processes as UTF-8, which names of strangers need not be."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first."""
    items.sort(key=lambda item: _group(item.path)[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a file go to one process, and so do files that share a server."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(config.rootpath / nodeid.partition("::")[0])[1]

    return ByGroup(config, log)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The networks are too small to share out, and threads that wait for one another are slow on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Whoever runs the tests in the background may have Ctrl-C ignored, and what they start would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of MNIST and other data sets that are too large for the repository."""
    root = os.environ.get("DISTSENS_DATA")
    if not root or not (Path(root) / "MNIST" / "raw").is_dir():
        pytest.skip("set DISTSENS_DATA to a folder that holds MNIST/raw to run this test")
    return Path(root)


@pytest.fixture(scope="session")
def ray_environment() -> Iterator[dict[str, str]]:
    """Environment of a process that starts a Ray of its own."""
    with private_environment() as environment:
        yield environment


@pytest.fixture(scope="session")
def forked() -> Iterator[dict[str, str]]:
    """Variables of a job that is to begin as a fork, as its Ray workers are: many seconds sooner."""
    with fork_server() as variables:
        yield variables


@pytest.fixture(scope="session")
def running(forked: dict[str, str], moto: dict[str, str]) -> Iterator[dict[str, str]]:
    """Environment of a job that joins a Ray with three cores, which runs as long as the tests do; a fork.

    The job and its workers find the imitation of S3.
    """
    with running_ray({**forked, **moto}, cpus=3) as environment:
        yield environment


@pytest.fixture(scope="module")
def local_ray(running: dict[str, str]) -> Iterator[None]:
    """Be connected to that Ray, for tests that use its actors from this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_TMPDIR", "HOME", "RAY_RUNTIME_ENV_HOOK", forks.SOCKET, *OPEN):
            patch.setenv(name, running[name])
        with loopback_stays():
            ray.init(address=running["RAY_ADDRESS"], log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def ceph() -> Iterator[ceph_server.S3Server]:
    """A real S3 server, which checks signatures."""
    if missing := ceph_server.missing():
        pytest.skip(f"Ceph is not installed: no {', '.join(missing)}")
    with ceph_server.running() as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[dict[str, str]]:
    """The AWS variables for an imitation of S3 that runs anywhere, and takes any credentials."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
    }
    server.stop()


@pytest.fixture
def use_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], None]:
    """Give this process these AWS variables, and none of the machine's own settings."""

    def use(environment: Mapping[str, str]) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return use


@pytest.fixture
def use_s3(use_aws: Callable[[Mapping[str, str]], None]) -> Callable[[Mapping[str, str]], str]:
    """Make this process use the S3 server behind these AWS variables; the URL of a new bucket there."""

    def use(environment: Mapping[str, str]) -> str:
        use_aws(environment)
        bucket = f"test-{secrets.token_hex(8)}"
        boto3.session.Session().client("s3").create_bucket(Bucket=bucket)
        return f"s3://{bucket}"

    return use
