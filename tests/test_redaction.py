"""No secret of an address is shown, whatever it is made of; what is none stays as it is."""

from __future__ import annotations

import string
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from distsens.errors import InputError, printable
from distsens.redaction import without_secrets
from distsens.tracking import absolute_uri

# Long enough not to be found elsewhere by chance.
SECRETS = st.text(
    st.characters(codec="utf-8", min_codepoint=33, exclude_characters="@&"), min_size=12, max_size=40
).filter(lambda text: not any(map(str.isspace, text)))
ENCODED = st.text(min_size=12, max_size=20).map(lambda text: quote(text, safe="")).filter(lambda text: len(text) > 11)
NAMES = st.text(string.ascii_letters + string.digits + "_-.", min_size=1, max_size=12)
DATABASES = st.sampled_from(["postgresql", "mysql", "mysql+pymysql", "postgresql+psycopg2", "mssql"])
SERVERS = st.sampled_from(["http", "https", "s3", "ray", "ftp"])
AROUND = st.sampled_from(
    [("", ""), ("cannot reach ", " now"), ("('", "')"), ("<", ">"), ("at ", "; allowed: http://host")]
)


@given(SECRETS | ENCODED, DATABASES | SERVERS, NAMES | st.just(""), AROUND)
def test_a_password_is_not_shown(secret: str, scheme: str, user: str, around: tuple[str, str]) -> None:
    address = f"{scheme}://{user}:{secret}@host:5432/name"
    shown = without_secrets(address.join(around))
    assert shown == f"{scheme}://{user}:***@host:5432/name".join(around)
    assert without_secrets(shown) == shown
    assert f":{secret}" not in str(InputError("tracking.uri", address, f"{address} does not answer"))
    assert f":{secret}" not in printable(address)


@given(SECRETS | ENCODED, SERVERS, AROUND)
def test_a_token_alone_before_the_host_is_not_shown(secret: str, scheme: str, around: tuple[str, str]) -> None:
    secret = secret.translate(dict.fromkeys(map(ord, ":/?#")))  # by which a host would end, or a password begin
    assume(secret)
    shown = without_secrets(f"{scheme}://{secret}@host/x".join(around))
    assert shown == f"{scheme}://***@host/x".join(around)


@given(SECRETS | ENCODED, DATABASES | SERVERS, NAMES, AROUND)
def test_a_value_of_a_query_is_not_shown(secret: str, scheme: str, name: str, around: tuple[str, str]) -> None:
    name = f"x{name}"  # none of those that are known
    address = f"{scheme}://host/name?sslmode=require&{name}={secret}&charset=utf8"
    assert without_secrets(address.join(around)) == address.replace(f"={secret}&", "=***&").join(around)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me:pa/ss?w#rd@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@host/db?password=hunter2", "postgresql://me@host/db?password=***"),
        ("mysql+pymysql://host/db?pass%77d=hunter2", "mysql+pymysql://host/db?pass%77d=***"),
        ("https://host/x?X-Amz-Signature=abc&X-Amz-Date=1", "https://host/x?X-Amz-Signature=***&X-Amz-Date=***"),
        ("https://host/#access_token=abc", "https://host/#access_token=***"),
        ("https://me:a:b@host", "https://me:***@host"),
        ("https://me:a@b@host", "https://me:***@host"),
        ("https://me:a/b?c#d@host/x", "https://me:***@host/x"),
        ("https://me:12345@host", "https://me:***@host"),
        ("postgresql://host/db?password=a'b;c#d?e\"f", "postgresql://host/db?password=***"),
        ("('http://host/?token=abc', 1)", "('http://host/?token=***', 1)"),
        ("connection failed: host=h password=hunter2 user=u", "connection failed: host=h password=*** user=u"),
    ],
)
def test_secrets_are_found_wherever_they_are(address: str, shown: str) -> None:
    assert without_secrets(address) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me/runs/mlflow.db",
        "sqlite:///file:/a/mlflow.db?mode=ro&uri=true",
        "postgresql://mlflow@10.0.0.1:5432/mlflow?sslmode=verify-full&sslrootcert=/etc/ca.pem",
        "http://127.0.0.1:5000/#/experiments/1",
        "http://127.0.0.1:5000/a@b",
        "s3://bucket/prefix/run@2/models/a.pt@nets:small",
        "models:/name@champion",
        "net.pt@my_models:net",
        "threat.eps: got 8; x=3, user@host: a = b",
        "me@example.org",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


@given(st.sampled_from(["postgresql", "mysql+pymysql"]), SECRETS | ENCODED)
def test_what_sqlalchemy_takes_for_a_password_is_one(scheme: str, secret: str) -> None:
    address = f"{scheme}://me:{secret}@host/db"
    for one in (address, absolute_uri(address)):
        assert make_url(one).password == make_url(address).password
        assert make_url(without_secrets(f"{one} is down").removesuffix(" is down")).password == "***"


@pytest.mark.parametrize(
    "text",
    ["x", "://", "http://", "postgres", "postgresql://a:b ", "http://h?", "?a", "=", "@", "a=b@c:", "token", ":@"],
)
def test_texts_of_any_length_are_looked_through(text: str) -> None:
    long = "@=" + text * (200_000 // len(text))
    assert len(without_secrets(long)) > 1000
