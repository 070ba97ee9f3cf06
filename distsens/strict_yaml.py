"""YAML as it is read everywhere: safe, and no key twice in one place, of which the first would be lost."""

from __future__ import annotations

from typing import Any

import yaml


class DuplicateKeyError(yaml.MarkedYAMLError):
    """A key is twice in one mapping; ``str`` says which, and in which lines."""

    def __init__(self, key: str, first: int, second: int) -> None:
        super().__init__()
        where = f"in line {first}" if first == second else f"in lines {first} and {second}"
        self.words = f"{key} is there twice, {where}: all but the last would be lost"

    def __str__(self) -> str:
        return self.words


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """When a mapping is read, and so before anything is merged into it (``<<``)."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if (same := (key.tag, key.value)) in lines:
                    raise DuplicateKeyError(key.value, lines[same], line)
                lines[same] = line
        return node


def load_yaml(text: str) -> Any:
    """The document in a text.

    Raises
    ------
    yaml.YAMLError, ValueError
        It is none; of a key that is there twice `DuplicateKeyError`.
    """
    return yaml.load(text, Loader=_Loader)
