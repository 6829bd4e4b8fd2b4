"""What clients see of a defect: a status of the contract, and nothing from inside."""

from __future__ import annotations

import grpc
import psycopg
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from recall.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    StreamSessionsRequest,
    UpdateSessionRequest,
)
from recalld.client import Client
from tests.integration.conftest import connected, serving


def test_a_database_error_that_nobody_foresaw_is_internal_with_an_id_that_is_in_the_log(
    client: Client, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.sessions.CreateSession(CreateSessionRequest(session_id="s"), timeout=30)
    _break(database_url)
    update = UpdateSessionRequest(session_id="s")
    update.metadata.update({"a": 1})

    with pytest.raises(grpc.RpcError) as raised:
        client.sessions.UpdateSession(update, timeout=30)

    _is_opaque(raised.value, caplog)


def test_so_is_one_in_the_middle_of_a_stream(
    client: Client, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.sessions.CreateSession(CreateSessionRequest(session_id="s"), timeout=30)
    _break(database_url)

    with pytest.raises(grpc.RpcError) as raised:
        list(client.sessions.StreamSessions(StreamSessionsRequest(), timeout=30))

    _is_opaque(raised.value, caplog)


def test_a_statement_that_takes_too_long_is_stopped_and_says_so(database_url: str) -> None:
    with serving(database_url, statement_timeout="200ms") as server, connected(server) as client:
        client.sessions.CreateSession(CreateSessionRequest(session_id="s"), timeout=30)
        with psycopg.connect(database_url) as connection:
            connection.execute("select from recalld.session for update")

            with pytest.raises(grpc.RpcError) as raised:
                client.sessions.DeleteSession(DeleteSessionRequest(session_id="s"), timeout=30)

        assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert raised.value.details() == "the call takes longer than the server allows"
        client.sessions.DeleteSession(DeleteSessionRequest(session_id="s"), timeout=30)


def _break(database_url: str) -> None:
    """From now on whoever looks at a session divides by zero."""
    with psycopg.connect(database_url) as connection:
        connection.execute("alter table recalld.session rename to gone")
        connection.execute(
            "create view recalld.session as select * from recalld.gone where 1 / (version - version) = 1"
        )


def _is_opaque(error: grpc.RpcError, caplog: pytest.LogCaptureFixture) -> None:
    assert error.code() == grpc.StatusCode.INTERNAL
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("INTERNAL", "recalld")
    error_id = info.metadata["error_id"]
    assert status.message == f"internal error {error_id}"
    assert any(error_id in message for message in caplog.messages)
