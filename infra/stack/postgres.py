"""MLflow's PostgreSQL, from Debian's packages, on loopback and behind a password."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
from pathlib import Path

from daemons import Daemons, StackError, run

DATABASE = USER = "mlflow"
_NAME = "postgres"
_DEBIANS = Path("/usr/lib/postgresql")


class Postgres:
    """A server whose data lie in a folder. It refuses to be root: then it is the user ``postgres``."""

    def __init__(self, folder: Path, daemons: Daemons, port: int) -> None:
        self._data = folder
        self._daemons = daemons
        self._port = port
        self._user = "postgres" if os.getuid() == 0 else None

    def start(self, password: str) -> None:
        """Start the server, with an empty database if there is none yet, and wait until it answers."""
        if not (self._data / "PG_VERSION").exists():  # initdb leaves nothing when it is interrupted
            self._make()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": str(self._data),
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._daemons.start(_NAME, [_program("postgres"), "-D", self._data, *options], user=self._user)
        self._daemons.wait(_NAME, self._answers)
        # What is there stays as it is. Nothing of it is in a list of processes, or in a log.
        role = (
            f"SELECT $$CREATE ROLE {USER} LOGIN PASSWORD '{password}'$$ "
            f"WHERE '{USER}' NOT IN (SELECT rolname FROM pg_roles)"
        )
        database = (
            f"SELECT 'CREATE DATABASE {DATABASE} OWNER {USER}' "
            f"WHERE '{DATABASE}' NOT IN (SELECT datname FROM pg_database)"
        )
        self._tell(f"{role} \\gexec\n{database} \\gexec\n")

    def runs(self) -> bool:
        """Whether it runs."""
        return self._daemons.process(_NAME) is not None

    def stop(self) -> bool:
        """End it, whoever is still connected; whether it ran."""
        return self._daemons.stop(_NAME, how=signal.SIGINT)

    def _make(self) -> None:
        self._data.mkdir(mode=0o700, exist_ok=True)
        if self._user is not None:
            shutil.chown(self._data, self._user, self._user)
        # Whoever is the same user of this machine gets in by the socket, everybody else by a password.
        command: list[str | Path] = [
            _program("initdb"),
            f"--pgdata={self._data}",
            f"--username={self._owner}",
            "--auth-local=peer",
        ]
        run([*command, "--auth-host=scram-sha-256", "--encoding=UTF8", "--no-locale"], user=self._user)

    @property
    def _owner(self) -> str:
        return self._user or getpass.getuser()

    def _answers(self) -> bool:
        try:
            self._tell("SELECT 1;")
        except StackError:
            return False
        return True

    def _tell(self, statements: str) -> None:
        """Run statements as the owner, by the socket."""
        command: list[str | Path] = [
            _program("psql"),
            f"--host={self._data}",
            f"--port={self._port}",
            f"--username={self._owner}",
        ]
        options = ["--dbname=postgres", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
        run([*command, *options], user=self._user, given=statements)


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in ("initdb", "postgres", "psql") if _find(name) is None]


def _program(name: str) -> Path:
    found = _find(name)
    if found is None:
        raise StackError(f"{name} is not installed")
    return found


def _find(name: str) -> Path | None:
    """Debian keeps a server's programs off the path, in a folder of its version."""
    versions = sorted((path for path in _DEBIANS.glob("*") if path.name.isdecimal()), key=lambda path: int(path.name))
    folders = [str(path / "bin") for path in reversed(versions)]
    found = shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)]))
    return None if found is None else Path(found)
