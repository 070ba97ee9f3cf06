"""A factory that a file of a stranger names is imported only where it is installed, or where the user names it, too."""

from __future__ import annotations

import site
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distsens.errors import InputError
from distsens.models import check_named, words_for
from distsens.models.strangers import factories_in, is_installed

EVIL = "from pathlib import Path\nPath({!r}).touch()\n"


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with modules that leave a file when they are imported."""
    left = tmp_path / "left"
    here = tmp_path / "here"
    for folder in (here, here / "a_package", here / "a_bare_one", tmp_path / "named"):
        folder.mkdir()
    for module in ("here/evil.py", "here/a_package/__init__.py", "here/a_bare_one/evil.py", "named/elsewhere.py"):
        (tmp_path / module).write_text(EVIL.format(str(left)))
    (here / "linked.py").symlink_to("a_package/__init__.py")
    (here / "a_linked_package").symlink_to("../named/a_package")
    (tmp_path / "named" / "a_package").mkdir()
    (tmp_path / "named" / "a_package" / "__init__.py").write_text(EVIL.format(str(left)))
    monkeypatch.chdir(here)
    yield here
    assert not left.exists(), "it was imported"


@pytest.mark.parametrize(
    "name",
    ["evil:net", "a_package:net", "a_package.deep.er:net", "a_bare_one.evil:net", "linked:net", "a_linked_package:net"],
)
def test_what_is_in_the_current_folder_is_not_installed(planted: Path, name: str) -> None:
    assert not is_installed(name)
    with pytest.raises(InputError) as raised:
        check_named("runs/theirs", {"model": {"name": name}})
    assert str(raised.value) == (
        f"factory: got None; runs/theirs names {name}, which is not installed: it is imported from the current folder "
        f"or PYTHONPATH where you name it, too, by --factory {name}"
    )
    with pytest.raises(InputError, match="got 'another:net'"):
        check_named("runs/theirs", name, ["another:net"])
    check_named("runs/theirs", name, ["another:net", name])
    assert words_for({"a": name, "b": f"net.pt@{name}"}) == ["--factory", name]


def test_what_pythonpath_names_is_not_installed(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(planted.parent / "named")
    monkeypatch.syspath_prepend(folder)
    assert is_installed("elsewhere:net"), "as by a .pth file"
    monkeypatch.setenv("PYTHONPATH", f"/nowhere:{folder}")
    assert not is_installed("elsewhere:net")


def test_what_is_installed_needs_no_word(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("distsens.models.lenet:lenet5", "json.tool:main", "pytest_timeout:net", "sys:exit", "nowhere:net"):
        assert is_installed(name), name
    check_named("runs/theirs", ["lenet5", "torchvision:resnet18", "wrn28_10", "s3://bucket/run", None, 3])
    assert words_for("lenet5") == []
    user_site = planted.parent / "user-site"
    user_site.mkdir()
    (user_site / "theirs.py").touch()
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(user_site))
    monkeypatch.setenv("PYTHONPATH", str(user_site))
    monkeypatch.setattr(sys, "path", [*sys.path, str(user_site)])
    assert is_installed("theirs:net")


def test_what_the_current_folder_hides_is_not_installed(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pytest_timeout", raising=False)
    (planted / "pytest_timeout.py").write_text((planted / "evil.py").read_text())
    assert not is_installed("pytest_timeout:net")


def test_factories_are_found_wherever_a_document_names_them() -> None:
    document = {
        "model": {"name": "a:b", "address": "some net.pt@c.d:e", "weights": "f:/g"},
        "search": {"model.name": {"choice": ["lenet5", "h:i"]}},
        "transfer": "s3://bucket/net.pt@j:k",
        "tracking": {"uri": "postgresql://u:p@host:5432/db"},
    }
    assert set(factories_in(document)) == {"a:b", "c.d:e", "h:i", "j:k"}
