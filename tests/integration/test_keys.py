"""`recalld keys`: made, listed, replaced and revoked on a real database, and obeyed by running servers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from recall.v1.session_pb2 import CreateSessionRequest, ListSessionsRequest
from recalld.cli import run
from recalld.limits import REVOCATION_SECONDS
from recalld.storage import migrate
from tests.integration.callers import Caller, calling, with_credential
from tests.integration.conftest import serving
from tests.postgres import Databases
from tests.waiting import wait_until

KEY = re.compile(r"recalld_([0-9a-f]{12})_([0-9A-Za-z_-]{43})\n")
USAGE = 2
FAILURE = 1


class Keys:
    """`recalld keys` on one database."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._url = url
        self._capsys = capsys

    def run(self, command: str, *arguments: str) -> tuple[int, str, str]:
        """The exit status, stdout and stderr of a command."""
        self._capsys.readouterr()
        status = run(["keys", command, "--database-url", self._url, *arguments])
        captured = self._capsys.readouterr()
        return status, captured.out, captured.err

    def create(self, *arguments: str) -> str:
        """A new key's text. In namespace `acme` with the scope `read`, unless arguments say otherwise."""
        status, out, err = self.run("create", *(arguments or ("--namespace", "acme", "--scope", "read")))
        assert status == 0, err
        return out.strip()

    def list(self, *arguments: str) -> list[dict[str, Any]]:
        status, out, err = self.run("list", "--json", *arguments)
        assert (status, err) == (0, "")
        listed: list[dict[str, Any]] = json.loads(out)
        return listed

    def complaint(self, status: int, command: str, *arguments: str) -> str:
        """The one line that a command which must fail leaves on stderr."""
        got, out, err = self.run(command, *arguments)
        assert (got, out) == (status, "")
        [line] = err.splitlines()
        assert line.startswith("recalld: ")
        return line.removeprefix("recalld: ")


@pytest.fixture
def keys(database_url: str, capsys: pytest.CaptureFixture[str]) -> Keys:
    return Keys(database_url, capsys)


def id_of(text: str) -> str:
    return text.split("_")[1]


def stored(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute("select * from recalld.api_key order by create_time, key_id").fetchall()


def listed_time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


# --- create


def test_a_key_is_printed_once_and_only_a_hash_of_it_is_stored(keys: Keys, database_url: str) -> None:
    status, out, err = keys.run("create", "--namespace", "acme", "--scope", "write", "--scope", "read", "--name", "CI")
    assert status == 0
    match = KEY.fullmatch(out)
    assert match
    key_id, secret = match.groups()
    assert err == f"key {key_id} for namespace acme: read, write; good for ever\n"
    [row] = stored(database_url)
    assert row[:5] == (key_id, sha256(secret.encode()).digest(), "acme", ["read", "write"], "CI")
    assert secret not in repr(row)
    listed = keys.run("list")[1] + keys.run("list", "--json")[1]
    assert key_id in listed
    assert secret not in listed


def test_each_key_is_another(keys: Keys) -> None:
    assert len({id_of(keys.create()) for _ in range(5)} | {keys.create() for _ in range(5)}) == 10


def test_a_scope_said_twice_counts_once(keys: Keys) -> None:
    keys.create("--namespace", "acme", "--scope", "read", "--scope", "read")
    assert [row["scopes"] for row in keys.list()] == [["read"]]


@pytest.mark.parametrize(("expires", "lifetime"), [("90d", timedelta(days=90)), ("36500d", timedelta(days=36500))])
def test_a_key_can_be_good_for_a_while(keys: Keys, expires: str, lifetime: timedelta) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    keys.create("--namespace", "acme", "--scope", "read", "--expires", expires)
    [row] = keys.list()
    assert before + lifetime <= listed_time(row["expire_time"]) <= datetime.now(UTC) + lifetime
    assert row["state"] == "active"


# --- replace


def test_a_replacement_is_for_the_same_while_the_old_key_goes_on_for_a_while(keys: Keys) -> None:
    old = keys.create("--namespace", "acme", "--scope", "read", "--scope", "admin", "--name", "CI")
    status, out, err = keys.run("create", "--replace", id_of(old), "--overlap", "1h", "--expires", "30d")
    assert status == 0
    first, second = keys.list()
    assert err == (
        f"key {id_of(out)} replaces {id_of(old)}, which works until {first['expire_time']};"
        f" good until {second['expire_time']}\n"
    )
    assert (first["key_id"], second["key_id"]) == (id_of(old), id_of(out))
    same = ("namespace", "scopes", "name", "state")
    assert (
        [first[field] for field in same]
        == [second[field] for field in same]
        == ["acme", ["admin", "read"], "CI", "active"]
    )
    now = datetime.now(UTC)
    assert timedelta(minutes=59) < listed_time(first["expire_time"]) - now <= timedelta(hours=1)
    assert timedelta(days=29) < listed_time(second["expire_time"]) - now <= timedelta(days=30)


def test_replacing_never_lengthens_a_key_s_life(keys: Keys) -> None:
    old = keys.create("--namespace", "acme", "--scope", "read", "--expires", "1h")
    before = keys.list()[0]["expire_time"]
    keys.create("--replace", id_of(old), "--overlap", "7d")
    assert keys.list()[0]["expire_time"] == before


@pytest.mark.parametrize(
    ("given", "chosen", "lifetime"),
    [("90d", (), timedelta(days=90)), ("90d", ("--expires", "7d"), timedelta(days=7)), (None, (), None)],
)
def test_a_replacement_is_good_for_as_long_as_the_old_key_was(
    keys: Keys, given: str | None, chosen: tuple[str, ...], lifetime: timedelta | None
) -> None:
    old = keys.create("--namespace", "acme", "--scope", "read", *(("--expires", given) if given else ()))
    before = datetime.now(UTC).replace(microsecond=0)
    _, _, said = keys.run("create", "--replace", id_of(old), *chosen)
    ends = keys.list()[1]["expire_time"]
    if lifetime is None:
        assert ends == ""
        assert said.endswith("; good for ever\n")
    else:
        assert before + lifetime <= listed_time(ends) <= datetime.now(UTC) + lifetime
        assert said.endswith(f"; good until {ends}\n")


def test_of_an_old_key_it_is_told_when_it_ends_or_ended(keys: Keys, database_url: str) -> None:
    soon = keys.create("--namespace", "acme", "--scope", "read", "--expires", "1h")
    _, _, said = keys.run("create", "--replace", id_of(soon), "--overlap", "24h")
    assert f"{id_of(soon)}, which works until {keys.list()[0]['expire_time']};" in said
    with psycopg.connect(database_url) as connection:
        connection.execute("update recalld.api_key set expire_time = now() - interval '1 day'")
    _, _, said = keys.run("create", "--replace", id_of(soon), "--overlap", "24h")
    assert f"{id_of(soon)}, which ended at {keys.list()[0]['expire_time']};" in said


def test_a_key_replaced_without_overlap_ends_at_once(keys: Keys) -> None:
    old = keys.create()
    _, _, said = keys.run("create", "--replace", id_of(old), "--overlap", "0")
    assert f"{id_of(old)}, which ended at " in said
    assert [row["state"] for row in keys.list()] == ["expired", "active"]


def test_a_revoked_key_cannot_be_replaced(keys: Keys, database_url: str) -> None:
    old = keys.create()
    keys.run("revoke", id_of(old))
    said = keys.complaint(FAILURE, "create", "--replace", id_of(old))
    assert said == f"there is no key {id_of(old)}, or it is revoked"
    assert len(stored(database_url)) == 1


# --- list and revoke


def test_a_database_without_keys_lists_none(keys: Keys) -> None:
    assert keys.list() == []
    status, out, _ = keys.run("list")
    assert (status, out.split()) == (0, ["Key", "Namespace", "Scopes", "Name", "State", "Created", "Expires"])


def test_keys_are_listed_oldest_first_the_ended_ones_too(keys: Keys) -> None:
    texts = [keys.create("--namespace", namespace, "--scope", "read") for namespace in ("a", "b", "a")]
    keys.run("revoke", id_of(texts[0]))
    assert [row["key_id"] for row in keys.list()] == [id_of(text) for text in texts]
    assert [row["state"] for row in keys.list()] == ["revoked", "active", "active"]
    assert [row["key_id"] for row in keys.list("--namespace", "a")] == [id_of(texts[0]), id_of(texts[2])]
    assert keys.list("--namespace", "c") == []


def test_a_narrow_terminal_cuts_nothing(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = keys.create("--namespace", "n" * 20, "--scope", "read", "--name", "checkout service", "--expires", "90d")

    _, shown, _ = keys.run("list")

    assert id_of(text) in shown
    assert "…" not in shown  # what stands for the rest of a text that was cut


def test_revoking_again_changes_nothing(keys: Keys, database_url: str) -> None:
    text = keys.create()
    status, first, _ = keys.run("revoke", id_of(text))
    assert status == 0
    assert re.fullmatch(rf"revoked {id_of(text)} at \S+Z: within 10 s of that no server takes it\n", first)
    rows = stored(database_url)
    assert keys.run("revoke", id_of(text)) == (0, first, "")
    assert stored(database_url) == rows


# --- what goes wrong


WRONG_USAGE = {
    "nothing said": [],
    "no scope": ["--namespace", "acme"],
    "no namespace": ["--scope", "read"],
    "an empty namespace": ["--namespace", "", "--scope", "read"],
    "an unknown scope": ["--namespace", "acme", "--scope", "root"],
    "a namespace with a space": ["--namespace", "a b", "--scope", "read"],
    "a namespace with a line break": ["--namespace", "a\nb", "--scope", "read"],
    "a namespace too long": ["--namespace", "n" * 65, "--scope", "read"],
    "a name with a line break": ["--namespace", "acme", "--scope", "read", "--name", "a\nb"],
    "a name that is no text": ["--namespace", "acme", "--scope", "read", "--name", "a\udcff"],
    "a name with an escape": ["--namespace", "acme", "--scope", "read", "--name", "\x1b[31m"],
    "a name too long": ["--namespace", "acme", "--scope", "read", "--name", "n" * 257],
    "a lifetime of nothing": ["--namespace", "acme", "--scope", "read", "--expires", "0"],
    "a replacement with a lifetime of nothing": ["--replace", "0123456789ab", "--expires", "0d"],
    "a lifetime that is none": ["--namespace", "acme", "--scope", "read", "--expires", "soon"],
    "a lifetime beyond all calendars": ["--namespace", "acme", "--scope", "read", "--expires", "9999999d"],
    "a replacement for another namespace": ["--replace", "0123456789ab", "--namespace", "acme", "--scope", "read"],
    "a replacement with another scope": ["--replace", "0123456789ab", "--scope", "read"],
    "a replacement with another name": ["--replace", "0123456789ab", "--name", "CI"],
    "an overlap beyond all calendars": ["--replace", "0123456789ab", "--overlap", "9999999d"],
}


@pytest.mark.parametrize("arguments", WRONG_USAGE.values(), ids=WRONG_USAGE.keys())
def test_wrong_usage_is_one_line_and_makes_no_key(keys: Keys, database_url: str, arguments: list[str]) -> None:
    said = keys.complaint(USAGE, "create", *arguments)
    assert not arguments or any(option in said for option in arguments if option.startswith("--"))
    assert stored(database_url) == []


@pytest.mark.parametrize("key_id", ["0123456789ab", "' or true --", "*"])
def test_an_unknown_key_is_one_line(keys: Keys, database_url: str, key_id: str) -> None:
    keys.create()
    before = stored(database_url)
    assert keys.complaint(FAILURE, "revoke", key_id) == f"there is no key {key_id}"
    assert keys.complaint(FAILURE, "create", "--replace", key_id).startswith(f"there is no key {key_id}, ")
    assert stored(database_url) == before


COMMANDS = {
    "create": ["create", "--namespace", "acme", "--scope", "read"],
    "replace": ["create", "--replace", "0123456789ab"],
    "list": ["list"],
    "revoke": ["revoke", "0123456789ab"],
}
EVERY_COMMAND = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())


@EVERY_COMMAND
def test_without_a_database_there_is_one_line(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    keys = Keys("postgresql://me:hunter2@127.0.0.1:1/memory", capsys)
    said = keys.complaint(FAILURE, *command)
    assert said.startswith("the database is not available: ")
    assert said.endswith(": check RECALLD_DATABASE_URL, the network, Postgres")
    assert "hunter2" not in said


@EVERY_COMMAND
def test_a_database_that_is_not_migrated_is_one_line(
    databases: Databases, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    with databases.empty() as url:
        said = Keys(url, capsys).complaint(FAILURE, *command)
    assert said == "the database has no keys yet: run `recalld migrate` first"


@EVERY_COMMAND
def test_a_database_that_is_read_only_is_one_line(
    database_url: str, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """As a standby is."""
    options = quote("-c default_transaction_read_only=on")
    joined = "&" if urlsplit(database_url).query else "?"
    keys = Keys(f"{database_url}{joined}options={options}", capsys)
    if command == ["list"]:
        assert keys.list() == []
    else:
        assert "read-only" in keys.complaint(FAILURE, *command)


@contextmanager
def role(url: str, *, granted: bool) -> Iterator[str]:
    """The URL of the database for a role with the rights of a server, or none."""
    name = f"recalld_test_{uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("create role {} login password 'hunter2'").format(sql.Identifier(name)))
        try:
            if granted:
                migrate(url, "english", grant_to=name)
            parts = urlsplit(url)
            yield parts._replace(netloc=f"{name}:hunter2@{parts.netloc.rpartition('@')[2]}").geturl()
        finally:
            connection.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))
            connection.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


@EVERY_COMMAND
def test_a_role_without_the_right_is_one_line(
    database_url: str, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    with role(database_url, granted=False) as url:
        said = Keys(url, capsys).complaint(FAILURE, *command)
    assert said == "the database's role may not do that: take the one of `recalld migrate`"


def test_a_server_s_role_reads_keys_and_makes_none(
    keys: Keys, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = keys.create()
    with role(database_url, granted=True) as url:
        servers = Keys(url, capsys)
        assert [row["key_id"] for row in servers.list()] == [id_of(text)]
        for command in ("create", "replace", "revoke"):
            servers.complaint(FAILURE, *(part.replace("0123456789ab", id_of(text)) for part in COMMANDS[command]))
    assert [row["state"] for row in keys.list()] == ["active"]


# --- on running servers


def test_a_key_works_on_a_server_that_was_running_before_it_was_made(keys: Keys, database_url: str) -> None:
    with serving(database_url, auth=True) as server, calling(server) as nobody:
        assert nobody.refused(ListSessionsRequest()).reason == "CREDENTIAL_MISSING"
        text = keys.create()
        reader = with_credential(nobody, text)
        reader.call(ListSessionsRequest())
        assert reader.refused(CreateSessionRequest(session_id="s")).reason == "SCOPE_MISSING"
        forged = with_credential(nobody, text[:-1] + ("B" if text.endswith("A") else "A"))
        assert forged.refused(ListSessionsRequest()).reason == "CREDENTIAL_INVALID"


def test_a_revoked_key_stops_on_every_replica_in_time(keys: Keys, database_url: str) -> None:
    text, other = keys.create(), keys.create()
    with (
        serving(database_url, auth=True) as one,
        serving(database_url, auth=True) as two,
        calling(one, text) as first,
        calling(two, text) as second,
    ):
        callers = [first, second]
        for caller in callers:
            caller.call(ListSessionsRequest())
        assert keys.run("revoke", id_of(text))[0] == 0
        revoked = time.monotonic()
        while callers:
            # The key is used all the time, as the last moment at which it may work is what counts.
            sent = time.monotonic()
            callers = [caller for caller in callers if accepted(caller)]
            assert not callers or sent - revoked < REVOCATION_SECONDS, "still accepted"
            time.sleep(0.05)
        for caller in (first, second):
            assert caller.refused(ListSessionsRequest()).reason == "CREDENTIAL_INVALID"
            with_credential(caller, other).call(ListSessionsRequest())


def accepted(caller: Caller) -> bool:
    try:
        caller.call(ListSessionsRequest())
    except Exception:
        return False
    return True


def test_an_expired_key_is_told_so(keys: Keys, database_url: str) -> None:
    text = keys.create("--namespace", "acme", "--scope", "read", "--expires", "2s")
    with serving(database_url, auth=True) as server, calling(server, text) as caller:
        wait_until(lambda: not accepted(caller), "still accepted")
        assert caller.refused(ListSessionsRequest()).reason == "CREDENTIAL_EXPIRED"
        assert [row["state"] for row in keys.list()] == ["expired"]


def test_a_replaced_key_and_its_replacement_open_the_same_namespace(keys: Keys, database_url: str) -> None:
    old = keys.create("--namespace", "acme", "--scope", "read", "--scope", "write")
    new = keys.create("--replace", id_of(old))
    with serving(database_url, auth=True) as server, calling(server, old) as caller:
        caller.call(CreateSessionRequest(session_id="s"))
        [response] = with_credential(caller, new).call(ListSessionsRequest())
        assert [session.session_id for session in response.sessions] == ["s"]
