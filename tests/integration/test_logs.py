"""What a server writes to stderr and into statuses, when things go wrong: nothing that users or operators keep secret.

A process at its most talkative; what must stay secret has marks to be found by.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

import grpc
import psycopg
import pytest
from google.protobuf.struct_pb2 import Struct

from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, Message
from recall.v1.session_pb2 import CreateSessionRequest, GetSessionRequest, UpdateSessionRequest
from recalld.services import interceptors
from tests.integration.callers import (
    Caller,
    Refusal,
    a_round,
    bearer,
    calling,
    create_key,
    row_locked,
    with_credential,
)
from tests.integration.conftest import serving
from tests.processes import SERVING, Process, await_health, start
from tests.waiting import becomes

_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) [\w.]+: [^\x00-\x1f\x7f-\x9f]*")

# What would pass for a line of the log, and colour it.
_INJECTION = "\n2026-01-01 00:00:00,000 ERROR recalld: forged\r\x1b[31m\x9b31m"


@dataclass(frozen=True)
class Secrets:
    """Marks, each unlike anything else."""

    content: str
    value: str
    credential: str
    password: str

    def found_in(self, text: str | bytes) -> set[str]:
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        return {name for name, mark in vars(self).items() if mark in text}


@pytest.fixture
def secrets(database_url: str) -> Secrets:
    password = urlsplit(database_url).password or f"password{token_hex(8)}"
    # As long as the secret of a key is.
    return Secrets(f"content{token_hex(8)}", f"value{token_hex(8)}", f"{token_hex(21)}x", password)


@pytest.fixture
def process(database_url: str, secrets: Secrets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    """A server with authentication, which logs all that it can."""
    parts = urlsplit(database_url)
    user, _, host = parts.netloc.rpartition("@")
    netloc = f"{user.partition(':')[0]}:{secrets.password}@{host}"
    monkeypatch.setenv("RECALLD_DATABASE_URL", parts._replace(netloc=netloc).geturl())
    with start(["--auth", "--log-level", "DEBUG"], tmp_path / "stderr") as popen:
        try:
            process = Process(popen, tmp_path / "stderr")
            await_health(process.address, SERVING)
            yield process
        finally:
            popen.terminate()


@pytest.fixture
def caller(process: Process, database_url: str) -> Iterator[Caller]:
    key = create_key(database_url, "n")
    with grpc.insecure_channel(process.address) as channel:
        yield Caller(channel, bearer(key))


def test_nothing_secret_gets_out_and_every_event_is_one_line(
    process: Process, caller: Caller, database_url: str, secrets: Secrets
) -> None:
    document = Struct()
    document.update({f"key{_INJECTION}": secrets.value + _INJECTION})
    said = Message(role="user", content=secrets.content + _INJECTION, metadata=document)
    write = AddMemoryRequest(session_id="s", messages=[said])
    statuses: list[Refusal] = []

    for request in a_round(secrets.content):
        caller.call(request)
    caller.call(write)
    marked = Caller(caller.channel, (*caller.metadata, ("x-mark", secrets.value)))
    marked.call(GetMemoryRequest(session_id="s"))

    # Credentials that are none: of no kind, of an unknown key, of a known key with another secret, and a token.
    key_id = str(caller.metadata[0][1]).split("_")[1]
    for text in (
        secrets.credential,
        f"recalld_000000000000_{secrets.credential}",
        f"recalld_{key_id}_{secrets.credential}",
        f"a.{secrets.credential}.c",
    ):
        statuses.append(with_credential(caller, text).refused(write))

    # Requests that are wrong in what they hold.
    statuses.append(marked.refused(GetSessionRequest(session_id=f"s{_INJECTION}")))
    statuses.append(marked.refused(UpdateSessionRequest(session_id="unknown", metadata=document)))
    statuses.append(marked.refused(AddMemoryRequest(session_id="s", messages=[said], request_id=secrets.value)))

    # A defect, whose text in the database quotes the row.
    with psycopg.connect(database_url) as connection:
        connection.execute("alter table recalld.session add constraint no check (metadata = '{}') not valid")
    defect = marked.refused(CreateSessionRequest(session_id="defect", metadata=document))
    statuses.append(defect)

    # The database ends the connection in the middle of a statement.
    caller.call(AddMemoryRequest(session_id="t", messages=[said]))
    with row_locked(database_url, "n", "t") as waiting:
        lost = caller.begin(AddMemoryRequest(session_id="t", messages=[said]))
        assert becomes(lambda: waiting() == 1)
        _terminate_servers(database_url)
        statuses.append(Refusal(lost.exception()))
    assert becomes(lambda: caller.code(GetMemoryRequest(session_id="t")) == grpc.StatusCode.OK)

    assert [status.reason for status in statuses] == [
        *["CREDENTIAL_INVALID"] * 4,
        "INVALID_FIELD",
        "SESSION_NOT_FOUND",
        "INVALID_FIELD",
        "INTERNAL",
        "STORAGE_UNAVAILABLE",
    ]
    for status in statuses:
        assert secrets.found_in(f"{status.status} {status.trailing}") == set()
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", status.status.message)

    log = process.stderr
    # The control: both defects are told of, and this is all that there is.
    assert defect.info.metadata["error_id"] in log
    assert "57P01" in log
    assert secrets.found_in(log) == set()
    assert "forged" not in log
    assert [line for line in log.splitlines() if not _LINE.fullmatch(line)] == []


def _terminate_servers(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'recalld' and datname = current_database()"
        )


@pytest.mark.parametrize("told", ["type and place", "text"])
def test_the_text_of_a_defect_would_give_content_away(
    database_url: str, secrets: Secrets, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """The control of the test above: it could find what it looks for."""
    if told == "text":
        monkeypatch.setattr(interceptors, "_where", str)
    with psycopg.connect(database_url) as connection:
        connection.execute("alter table recalld.session add constraint no check (metadata = '{}') not valid")
    request: Any = CreateSessionRequest(session_id="s")
    request.metadata.update({"a": secrets.value})
    with serving(database_url) as server, calling(server) as caller:
        assert caller.refused(request).reason == "INTERNAL"
    assert secrets.found_in(caplog.text) == ({"value"} if told == "text" else set())
