"""The published models of a storage: list them, fetch one verified by its SHA-256, delete the oldest.

python jobs/models.py --storage.path s3://bucket/prefix
python jobs/models.py --fetch mnist-sns-20260102-030405-abcd --to ./mnist-sns
python jobs/models.py --prune 10 --protect mnist-sns-20260102-030405-abcd
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from distsens.command_line import parse_flags, run_job, show_help, take_options
from distsens.errors import InputError, printable
from distsens.experiment import Experiment, StoragePlace

if TYPE_CHECKING:
    from distsens.storage import Place


@dataclass(frozen=True)
class Options:
    """What is done; without any of them the models are listed, the oldest first."""

    fetch: str | None = None
    """Copy the model of this run, every file verified, to a new folder, which evaluate.py and analyze.py take."""
    to: str | None = None
    """The folder."""
    prune: str | None = None
    """Delete all models but the newest so many."""
    protect: tuple[str, ...] = ()
    """Models that stay whatever their age."""


@dataclass(frozen=True)
class Where:
    """Where the models are."""

    storage: StoragePlace = field(default_factory=StoragePlace)


def main(arguments: Sequence[str]) -> int:
    """Run the job; its exit code is 0, or 2 for wrong input."""
    if "--help" in arguments or "-h" in arguments:
        show_help(__doc__ or "", Options(), Where())
    flags = parse_flags(arguments)
    if isinstance(number := flags.get("prune"), int) and not isinstance(number, bool):
        flags["prune"] = str(number)
    options = take_options(Options, flags)
    experiment = Experiment.parse({"storage": flags.pop("storage", {})})
    if flags:
        name = next(iter(flags))
        raise InputError(name, flags[name], "there is no such option; allowed are fetch, to, prune, protect, storage")
    if (options.fetch is None) != (options.to is None):
        raise InputError("to", options.to, "a folder, if and only if --fetch names a model")
    if options.prune is None and options.protect:
        raise InputError("protect", options.protect, "only with --prune")
    if options.prune is not None and not re.fullmatch(r"[1-9][0-9]{0,8}", options.prune):
        raise InputError("prune", options.prune, "how many models stay: a whole number, 1 or more")
    return _look_after(options, experiment)


def _look_after(options: Options, experiment: Experiment) -> int:
    from distsens.distributed.preflight import storage_url
    from distsens.storage import open_place

    storage = open_place(storage_url(experiment))
    if options.fetch is not None and options.to is not None:
        _fetch(storage, options.fetch, Path(options.to).absolute())
    elif options.prune is not None:
        _prune(storage, int(options.prune), options.protect)
    else:
        _show(storage)
    return 0


def _show(storage: Place) -> None:
    from rich.console import Console

    from distsens.console import print_line
    from distsens.report import print_table
    from distsens.storage import published

    rows = []
    for name, manifest in published.models(storage).items():
        accuracies = (manifest.metrics.get(f"validation/{kind}_accuracy") for kind in ("clean", "robust"))
        shown = ("" if one is None else f"{one:.1%}" for one in accuracies)
        size = sum(record.size for record in manifest.files.values()) / 1e6
        rows.append((name, manifest.created[:19], str(manifest.epoch), *shown, f"{size:.1f}"))
    console = Console()
    print_table(console, ("model", "published", "epoch", "clean", "robust", "MB"), rows)
    print_line(console, f"{len(rows)} models in {storage.url}")


def _fetch(storage: Place, name: str, folder: Path) -> None:
    from distsens.storage import CheckpointError, published

    if name not in published.models(storage):
        raise InputError("fetch", name, f"there is no such model in {storage.url}")
    if folder.exists():
        raise InputError("to", str(folder), "it is there already; name a new folder")
    try:
        published.copy(storage, name, folder)
    except (CheckpointError, OSError) as error:
        raise InputError("fetch", name, str(error)) from None
    print(printable(f"{folder} holds {name}, verified"))


def _prune(storage: Place, keep: int, protect: Sequence[str]) -> None:
    from distsens.storage import published

    before = published.models(storage)
    if unknown := [name for name in protect if name not in before]:
        raise InputError("protect", unknown[0], f"there is no such model in {storage.url}")
    published.prune(storage, keep, protect)
    after = published.models(storage)
    for name in before:
        if name not in after:
            print(printable(f"deleted {name}"))
    print(printable(f"{len(after)} models stay in {storage.url}"))


if __name__ == "__main__":
    run_job(main)
