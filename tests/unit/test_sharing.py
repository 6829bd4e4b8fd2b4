"""What a namespace may have at once, and how many streams there may be: counted, given back, and told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from recall.v1 import session_pb2
from recall.v1.session_pb2_grpc import SessionServiceStub
from recalld.access import Principal
from recalld.access.quotas import Quotas
from recalld.domain import Call, Position, SessionPage, SessionQuery
from recalld.errors import Overloaded, QuotaExceeded
from recalld.limits import REVOCATION_SECONDS
from recalld.services.admission import CredentialAdmission, sharing
from recalld.services.call import principal
from recalld.services.wrapping import Handler
from tests.access import Clock, Context, Keys, bearer, key_id_of
from tests.reference import ReferenceStore
from tests.unit.handlers import DEADLINE, Responses, called, failure, opened, reason_of, serving, streaming, unary
from tests.unit.rpc import detail

GET = "/recall.v1.SessionService/GetSession"


# --- quotas and streams


def sharing_of(quotas: Quotas, most_streams: int = 100) -> Callable[[Handler], Handler]:
    wrap = sharing(quotas, most_streams)
    return lambda handler: wrap(GET, handler)


def free(quotas: Quotas) -> bool:
    """Whether a call of the namespace may enter."""
    try:
        quotas.enter(principal.get().namespace)
    except QuotaExceeded:
        return False
    quotas.leave(principal.get().namespace)
    return True


def test_a_unary_call_counts_while_it_runs_however_it_ends() -> None:
    quotas = Quotas(0, 1)
    seen: list[bool] = []

    def behaviour(request: Any, context: grpc.ServicerContext) -> Any:
        seen.append(free(quotas))
        if len(seen) > 1:
            raise ValueError("a defect")
        return request

    handler = sharing_of(quotas)(unary(behaviour))
    called(handler, Context())
    with pytest.raises(ValueError, match="a defect"):
        called(handler, Context())
    assert seen == [False, False]
    assert free(quotas)


def test_a_call_counts_for_the_namespace_of_its_principal() -> None:
    quotas = Quotas(0, 1)
    handler = sharing_of(quotas)(unary(lambda request, context: principal.get().namespace))
    quotas.enter("busy")
    principal.set(Principal("idle", frozenset(), ""))
    assert called(handler, Context()) == "idle"
    principal.set(Principal("busy", frozenset(), ""))
    with pytest.raises(QuotaExceeded):
        called(handler, Context())


@pytest.mark.parametrize("end", ["read to its end", "left by the client", "broken by an error", "never read"])
def test_a_stream_gives_back_its_place_however_it_ends(end: str) -> None:
    quotas = Quotas(0, 1)

    def behaviour(request: Any, context: grpc.ServicerContext) -> Iterator[int]:
        yield 1
        if end == "broken by an error":
            raise ValueError("a defect")

    handler = sharing_of(quotas, most_streams=1)(streaming(behaviour))
    for _ in range(3):
        stream = opened(handler, Context())
        if end != "never read":
            next(stream)
            assert not free(quotas)
        if end == "read to its end":
            assert list(stream) == []
        elif end == "broken by an error":
            with pytest.raises(ValueError, match="a defect"):
                next(stream)
        stream.close()
        assert free(quotas)


def test_one_stream_too_many_is_turned_away_and_counts_nowhere() -> None:
    quotas = Quotas(0, 5)
    handler = sharing_of(quotas, most_streams=2)(streaming(Responses()))
    streams = [opened(handler, Context()) for _ in range(2)]
    for stream in streams:
        next(stream)
    for _ in range(10):
        with pytest.raises(Overloaded):
            next(opened(handler, Context()))
    streams[0].close()
    assert next(opened(handler, Context())) == 0


def test_streams_of_all_namespaces_share_the_places() -> None:
    handler = sharing_of(Quotas(0, 0), most_streams=1)(streaming(Responses()))
    principal.set(Principal("one", frozenset(), ""))
    stream = opened(handler, Context())
    next(stream)
    principal.set(Principal("other", frozenset(), ""))
    with pytest.raises(Overloaded):
        next(opened(handler, Context()))


def test_open_streams_leave_unary_calls_alone() -> None:
    wrapped = sharing_of(Quotas(0, 0), most_streams=1)
    stream = opened(wrapped(streaming(Responses())), Context())
    next(stream)
    assert called(wrapped(unary(lambda request, context: 7)), Context()) == 7


# --- over a real connection


def test_beyond_the_rate_a_call_is_told_when_to_come_again(keys: Keys, admission: CredentialAdmission) -> None:
    credential = bearer(keys.create(namespace="acme"))
    clock = Clock()
    with serving(ReferenceStore(), admission, Quotas(4, 0, clock)) as channel:

        def call() -> Any:
            request = session_pb2.ListSessionsRequest()
            return SessionServiceStub(channel).ListSessions(request, metadata=(credential,), timeout=DEADLINE)

        for _ in range(4):
            call()
        error = failure(call)
        clock.advance(0.25)
        call()
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
    retry = detail(rpc_status.from_call(error), error_details_pb2.RetryInfo)
    # As long as it must be, or up to twice.
    assert 250 <= retry.retry_delay.ToMilliseconds() <= 500
    pushback = int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])
    assert 0 <= pushback - retry.retry_delay.ToMicroseconds() / 1000 < 1


class InterruptedStore(ReferenceStore):
    """Something happens before it lists a second page."""

    def __init__(self, interrupt: Callable[[], None]) -> None:
        super().__init__()
        self._interrupt = interrupt

    def list_sessions(self, call: Call, query: SessionQuery, after: Position | None, limit: int) -> SessionPage:
        if after:
            self._interrupt()
        return super().list_sessions(call, query, after, limit)


def test_a_stream_that_lost_its_credential_gives_back_its_place(
    keys: Keys, clock: Clock, admission: CredentialAdmission
) -> None:
    lost, kept = keys.create(), keys.create()

    def interrupt() -> None:
        keys.stored.pop(key_id_of(lost), None)
        clock.advance(REVOCATION_SECONDS)

    with serving(InterruptedStore(interrupt), admission, Quotas(0, 1), most_streams=1) as channel:
        stub = SessionServiceStub(channel)
        for number in range(3):
            request = session_pb2.CreateSessionRequest(session_id=str(number))
            stub.CreateSession(request, metadata=(bearer(kept),), timeout=DEADLINE)

        def read(text: str) -> int:
            request = session_pb2.StreamSessionsRequest(chunk_size=1)
            return len(list(stub.StreamSessions(request, metadata=(bearer(text),), timeout=DEADLINE)))

        assert reason_of(failure(lambda: read(lost))) == "CREDENTIAL_INVALID"
        assert read(kept) == 3
