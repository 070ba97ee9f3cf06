"""Addresses without what is secret in them: passwords, tokens, signatures."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

MASK = "***"

# Nothing here looks at a letter more than a few times, however long a text is.
_ADDRESS = re.compile(r"(?<![\w+.-])(?P<scheme>[A-Za-z][\w+.-]{0,40})://(?P<rest>\S*)")
# SQLAlchemy takes a database's password up to the `@`, whatever is in it, and writes it so: spaces, too.
_NO_PORT = r"(?!\d{1,5}(?:[/?#\s]|$))"
_WITH_SPACES = re.compile(
    r"(?<![\w+.-])(?P<begin>(?i:postgres|mysql|mariadb|mssql|oracle)[\w+]{0,20}://[^:/@\s]{0,100}):"
    + _NO_PORT
    + "[^@]{0,1000}@"
)
_DATABASE = re.compile("(?i:postgres|mysql|mariadb|mssql|oracle)")
# A password may hold what ends a host, and an `@` of its own.
_USER = re.compile(rf"(?P<user>[^:/@?#]*)(?P<password>:{_NO_PORT}[^@]*)?@(?:[^@/?#]*@)*")
# What a text puts behind an address that it quotes.
_BEHIND = "'\"<>()[]{},;."
# Of a query any value may be a secret but these.
_HARMLESS = frozenset(
    "application_name cache charset connect_timeout dbname host mode port read_timeout sslcert sslmode sslrootcert "
    "ssl_ca ssl_cert target_session_attrs timeout uri user write_timeout".split()
)
_SAID = re.compile(
    r"(?i)\b(?P<name>(?:ssl)?pass(?:word|wd)?|pwd|(?:access_?|auth_?)?token|secret)=(?P<value>[^\s&;,'\"]+)"
)


def without_secrets(text: str) -> str:
    """A text in which addresses may stand, with three stars for each secret of them.

    Secret are a password before the ``@``; what stands there alone, unless it is the user of a database; and each value
    of a query but those known to be none, such as ``sslmode``. What is no address, and addresses without a secret, stay
    as they are.
    """
    if "=" not in text and "@" not in text:
        return text
    return _SAID.sub(_said, _ADDRESS.sub(_masked, _WITH_SPACES.sub(rf"\g<begin>:{MASK}@", text)))


def _masked(found: re.Match[str]) -> str:
    scheme, rest = found["scheme"], found["rest"]
    database = _DATABASE.match(scheme) is not None
    user = _USER.match(rest)
    before = ""
    if user is not None:
        rest = rest[user.end() :]
        alone = user["user"] if database or not user["user"] else MASK
        before = f"{user['user']}:{MASK}@" if user["password"] else f"{alone}@"
    place, mark, query = re.fullmatch(r"([^?#]*)([?#]?)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    *pairs, last = query.split("&")
    # It may be the last of the address, and then something of the text.
    end = last.rstrip(_BEHIND)
    masked = "&".join(map(_pair, [*pairs, end]))
    return f"{scheme}://{before}{place}{mark}{masked}{last[len(end) :]}"


def _pair(pair: str) -> str:
    name, _, value = pair.partition("=")
    return pair if not value or unquote_plus(name).lower() in _HARMLESS else f"{name}={MASK}"


def _said(found: re.Match[str]) -> str:
    return f"{found['name']}={MASK}"
