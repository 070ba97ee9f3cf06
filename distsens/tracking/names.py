"""Names under which MLflow takes numbers, as different as those that they stand for."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

_LONGEST = 250
_REFUSED = re.compile(r"[^\w/.\- :]")
_DIGEST = re.compile(r"-[0-9a-f]{10}$")


def names_in_mlflow(names: Iterable[str]) -> dict[str, str]:
    """By name what MLflow is to call it: the name itself wherever MLflow takes it.

    What MLflow refuses becomes ``_``, and the name ends in a digest of what it was, so that two names are never one,
    and a name has the same one in every run and every epoch. MySQL takes letters that differ in case or accents alone
    for the same: of names that do, those with such letters end so too.
    """
    found = {name: _taken(name) for name in names}
    alike = Counter(map(_folded, found.values()))
    return {
        name: _marked(one, name) if alike[_folded(one)] > 1 and one != _folded(one) and one == name else one
        for name, one in found.items()
    }


def _taken(name: str) -> str:
    parts = _REFUSED.sub("_", name).split("/")
    # What looks like a path must be the shortest one to its place.
    taken = "/".join(f"_{part}" if part in ("", ".") or part.startswith("..") else part for part in parts)
    if taken == name and len(name) <= _LONGEST and not _DIGEST.search(name):
        return name
    return _marked(taken, name)


def _marked(taken: str, name: str) -> str:
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:10]
    return f"{taken[: _LONGEST - len(digest) - 1]}-{digest}"


def _folded(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name.casefold())
    return "".join(one for one in letters if not unicodedata.combining(one)).rstrip(" ")
