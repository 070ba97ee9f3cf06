"""YAML as it is read everywhere: plain values alone, bounded, numbers as people write them, and nothing lost.

What YAML 1.1 makes of plain text and nobody means is text here: ``1:30`` is not 90, ``017`` not 15, ``0x10`` not 16
and ``2026-01-02`` no date. Numbers are decimal: ``12``, ``-3``, ``50_000``, ``0.5``, ``1.0e-3``, ``.inf``. (``1e-3``
is text in YAML 1.1; fields that take numbers read it.) ``yes``, ``no``, ``on`` and ``off`` are true and false as there.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

LONGEST = 200_000
"""Characters that a document may have."""
MOST_VALUES = 10_000
"""Values that it may hold, where each that is repeated by an alias (``*name``) counts again."""
DEEPEST = 20
"""Levels of lists and mappings in one another."""


class RefusedYamlError(yaml.YAMLError):
    """YAML that is not taken although it can be read, because something would be lost or have no end."""


class DuplicateKeyError(RefusedYamlError):
    """A key is twice in one mapping; ``str`` says which, and in which lines."""

    def __init__(self, key: str, first: int, second: int) -> None:
        where = f"in line {first}" if first == second else f"in lines {first} and {second}"
        super().__init__(f"{key} is there twice, {where}: all but the last would be lost")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012
        letter: [one for one in resolvers if one[0].rpartition(":")[2] in ("bool", "null", "merge")]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        # By the identity of a node that is whole: how many values it holds and how many levels, repeated ones included.
        self._sizes: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        """A node and all below it."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise yaml.constructor.ConstructorError(None, None, f"tags ({event.tag}) are not read", event.start_mark)
        alias = event.anchor if isinstance(event, yaml.AliasEvent) else None
        self._level += 1
        if self._level > DEEPEST:
            raise RefusedYamlError(_ENDLESS)
        node = super().compose_node(parent, index)
        assert node is not None
        self._level -= 1
        if alias is not None and id(node) not in self._sizes:
            raise RefusedYamlError(f"*{alias} is a part of itself")
        if alias is None:
            self._sizes[id(node)] = self._size(node)
        return node

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

    def _size(self, node: yaml.Node) -> tuple[int, int]:
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [one for pair in below for one in pair] if isinstance(node, yaml.MappingNode) else below
        sizes = [self._sizes[id(one)] for one in parts]
        values = 1 + sum(count for count, _ in sizes)
        levels = 1 + max((count for _, count in sizes), default=0)
        if values > MOST_VALUES or len(self._sizes) > MOST_VALUES or levels > DEEPEST:
            raise RefusedYamlError(_ENDLESS)
        return values, levels


_ENDLESS = f"it holds more than {MOST_VALUES:,} values, or more than {DEEPEST} levels of them"
# No more digits than Python writes, and than a float can hold: what is longer is text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"(?=.{1,300}\Z)[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)\Z"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"(?:[-+]?(?:[0-9]+(?:_[0-9]+)*\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
    list("-+0123456789."),
)


def load_yaml(text: str) -> Any:
    """The document in a text.

    Raises
    ------
    yaml.YAMLError
        It is none; where it is one and yet not taken, `RefusedYamlError`.
    """
    if len(text) > LONGEST:
        raise RefusedYamlError(f"it has more than {LONGEST:,} characters")
    return yaml.load(text, Loader=_Loader)
