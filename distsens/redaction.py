"""Addresses without what is secret in them: passwords, tokens, signatures."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

MASK = "***"

# Nothing here looks at a letter more than a few times, however long a text is.
_ADDRESS = re.compile(r"(?<![\w+.-])(?P<scheme>[A-Za-z][\w+.-]{0,40})://(?P<rest>\S*)")
# SQLAlchemy takes a database's password up to the `@`, whatever is in it, and writes it so: spaces, too. What is a port
# begins none. Of other addresses it ends with the host.
_DATABASE = r"(?i:postgres|mysql|mariadb|mssql|oracle)[\w+]{0,20}"
_WITH_SPACES = re.compile(
    rf"(?<![\w+.-])(?P<begin>{_DATABASE}://[^:/@\s]{{0,100}}):(?!\d{{1,5}}(?:[/?\s]|$))[^@]{{0,1000}}@"
)
_DATABASES_USER = re.compile(r"(?P<user>[^:/@]*)(?P<password>:[^@]*)?@")
_USER = re.compile(r"(?P<user>[^:/@?#]*)(?P<password>:[^/?#]*)?@")
_VALUE = re.compile(r"[^'\"<>]*")
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
    database = re.match(_DATABASE, scheme) is not None
    user = (_DATABASES_USER if database else _USER).match(rest)
    before = ""
    if user is not None:
        rest = rest[user.end() :]
        alone = user["user"] if database or not user["user"] else MASK
        before = f"{user['user']}:{MASK}@" if user["password"] else f"{alone}@"
    place, mark, query = re.fullmatch(r"([^?#]*)([?#]?)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{scheme}://{before}{place}{mark}{''.join(map(_pair, re.split(r'([&;?#])', query)))}"


def _pair(part: str) -> str:
    """A part of a query; behind its value a text around the address may go on."""
    name, equals, rest = part.partition("=")
    value = _VALUE.match(rest)
    if not equals or value is None or not value[0] or unquote_plus(name).lower() in _HARMLESS:
        return part
    return f"{name}={MASK}{rest[value.end() :]}"


def _said(found: re.Match[str]) -> str:
    return f"{found['name']}={MASK}"
