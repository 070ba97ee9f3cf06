"""A folder of runs that is not where they began: moved, renamed or copied, alone or with what is around it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distsens.storage.local import LocalPlace
from distsens.storage.place import address, open_place

_SELECTED = re.compile(r".+#(best|last|\d+)")


@dataclass(frozen=True)
class Move:
    """Where things under a folder are now.

    before, now : the highest folders that can tell: what their two paths end with in common was not renamed.
    """

    before: Path
    now: Path

    @staticmethod
    def between(before: str, now: str) -> Move | None:
        """The move between two addresses of places; None where it is the same place, or a bucket."""
        places = open_place(before), open_place(now)
        first, second = (place.root if isinstance(place, LocalPlace) else None for place in places)
        if first is None or second is None or first == second:
            return None
        while first.name and first.name == second.name:
            first, second = first.parent, second.parent
        return Move(first, second)

    def of(self, path: Path) -> Path:
        """Where an absolute path would be now."""
        return self.now / path.relative_to(self.before) if path.is_relative_to(self.before) else path

    def followed(self, address: str) -> str:
        """The address of what belongs to the runs: the moved one where it is there, or the former one is not."""
        return self._chosen(address, lambda old, new: new if new.exists() or not old.exists() else old)

    def found(self, address: str) -> str:
        """The address of what others may use too: the former one as long as it is there."""
        return self._chosen(address, lambda old, new: new if new.exists() and not old.exists() else old)

    def _chosen(self, given: str, choose: Callable[[Path, Path], Path]) -> str:
        path, mark, selected = given.rpartition("#") if _SELECTED.fullmatch(given) else (given, "", "")
        url = path.startswith("file:///")
        old = Path(address(path))
        new = self.of(old)
        if new == old:  # a relative path and what is no path, too
            return given
        chosen = choose(old, new)
        return f"{chosen.as_uri() if url else chosen}{mark}{selected}"
