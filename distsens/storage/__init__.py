"""Checkpoints and results in a place that holds whole files: complete or absent, never half; checked by digest.

A place is a folder or a prefix of an S3 bucket. `published` holds the models that finished runs leave for others.
"""

from distsens.storage import published
from distsens.storage.checkpoint import Checkpoint, CheckpointError
from distsens.storage.checkpoints import Checkpoints, Found
from distsens.storage.json_files import check_digest, read_json, with_digest, write_json
from distsens.storage.local import LocalPlace
from distsens.storage.manifest import FileRecord, Manifest
from distsens.storage.move import Move
from distsens.storage.place import Place, address, check_room, open_place, place_name
from distsens.storage.run_record import RUN_FILE, RunRecord, read_run, write_run
from distsens.storage.sealed_table import SealedTable, seal, unseal

__all__ = [
    "RUN_FILE",
    "Checkpoint",
    "CheckpointError",
    "Checkpoints",
    "FileRecord",
    "Found",
    "LocalPlace",
    "Manifest",
    "Move",
    "Place",
    "RunRecord",
    "SealedTable",
    "address",
    "check_digest",
    "check_room",
    "open_place",
    "place_name",
    "published",
    "read_json",
    "read_run",
    "seal",
    "unseal",
    "with_digest",
    "write_json",
    "write_run",
]
