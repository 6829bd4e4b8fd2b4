"""What drives a program: it sends each call to both sides, and compares what they answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis.stateful import RuleBasedStateMachine

from recall.v1 import admin_pb2, session_pb2
from recalld.domain import LocalCall, SessionQuery
from recalld.limits import DEFAULT_NAMESPACE
from tests.model.sides import METHODS, Answer, Clock, Side
from tests.reference import ReferenceStore

OK = grpc.StatusCode.OK
_CALL = LocalCall(DEFAULT_NAMESPACE)

Arrangement = Callable[[list[Any]], list[Any]]


@dataclass
class Sides:
    """Both servers, what they share, and what the programs have reached so far."""

    real: Side
    reference: Side
    store: ReferenceStore
    clock: Clock
    erase: Callable[[], None]
    calls: Counter[str] = field(default_factory=Counter)  # by method, successful ones
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)  # by code and reason
    events: Counter[str] = field(default_factory=Counter)


@dataclass
class Reader:
    """Reads the sessions of one side page by page. `token` is the next page's."""

    side: Side
    token: str = ""
    ended: bool = False
    seen: list[str] = field(default_factory=list)

    def read(self, size: int) -> None:
        request = session_pb2.ListSessionsRequest(page_size=size, page_token=self.token)
        (page,) = self.side.ask("ListSessions", request).responses
        self.seen += [session.session_id for session in page.sessions]
        self.token = page.next_page_token
        self.ended = not self.token


class Machine(RuleBasedStateMachine):
    """A state machine that has no rules yet: it asks both sides, which are empty at first."""

    def __init__(self, sides: Sides) -> None:
        super().__init__()
        self.sides = sides
        sides.erase()

    def both(self, method: str, ask: Callable[[Side], Answer]) -> Answer:
        """Asks both sides, and returns the reference's answer when both gave the same."""
        real, expected = ask(self.sides.real), ask(self.sides.reference)
        assert real == expected, f"{method} ended with {real}, not {expected}"
        self.sides.real.number_etags(real.responses)
        self.sides.reference.number_etags(expected.responses)
        self.sides.clock.advance(timedelta(milliseconds=1))
        if expected.code is OK:
            self.sides.calls[method] += 1
            assert list(real.responses) == list(expected.responses), method
        else:
            self.sides.errors[expected.code.name, expected.reason] += 1
        return expected

    def send(self, method: str, request: Message) -> Answer:
        return self.both(method, lambda side: side.ask(method, request))

    def send_with_etag(self, method: str, resource: str, etag: str, **fields: Any) -> Answer:
        request_class = GetMessageClass(METHODS[method].input_type)
        return self.both(method, lambda side: side.ask(method, request_class(**fields, etag=side.etag(resource, etag))))

    def all_pages(self, method: str, request: Any, rows: str, arranged: Arrangement = list) -> None:
        """Compares the whole listing, whatever the sides' pages are."""

        def ask(side: Side) -> Answer:
            found: list[Any] = []
            page = type(request)()
            page.CopyFrom(request)
            while True:
                answer = side.ask(method, page)
                if answer.code is not OK:
                    return answer
                (response,) = answer.responses
                assert len(getattr(response, rows)) <= (request.page_size or 100)
                found += getattr(response, rows)
                page.page_token = response.next_page_token
                if not page.page_token:
                    return Answer(OK, responses=arranged(found))

        self.both(method, ask)

    def all_chunks(self, method: str, request: Any, rows: str, resume: int, arranged: Arrangement = list) -> None:
        """Compares the whole stream, and on each side its end, sent again from one of its tokens."""

        def ask(side: Side) -> Answer:
            answer = side.ask(method, request)
            chunks = answer.responses
            if chunks:
                behind = resume % len(chunks)
                again = type(request)()
                again.CopyFrom(request)
                again.resume_token = chunks[behind].resume_token
                assert list(side.ask(method, again).responses) == list(chunks[behind + 1 :])
            assert all(1 <= len(getattr(chunk, rows)) <= (request.chunk_size or 100) for chunk in chunks)
            return Answer(answer.code, responses=arranged([row for chunk in chunks for row in getattr(chunk, rows)]))

        self.both(method, ask)

    def purge_totals(self, request: admin_pb2.PurgeRequest) -> admin_pb2.PurgeResponse:
        """Compares what was removed in all, whatever the steps were."""

        def ask(side: Side) -> Answer:
            answer = side.ask("Purge", request)
            totals = [(each.sessions, each.messages, each.users, each.done) for each in answer.responses]
            assert totals == sorted(totals)
            assert [each.done for each in answer.responses].index(True) == len(totals) - 1
            return Answer(answer.code, responses=answer.responses[-1:])

        (totals,) = self.both("Purge", ask).responses
        assert isinstance(totals, admin_pb2.PurgeResponse)
        return totals

    # --- what is live, by the reference

    def live_sessions(self) -> list[str]:
        page = self.sides.store.list_sessions(_CALL, SessionQuery(), None, 100)
        return [session.session_id for session, _ in page.sessions]

    def live_etags(self) -> dict[str, str]:
        page = self.sides.store.list_sessions(_CALL, SessionQuery(), None, 100)
        return {session.session_id: session.etag for session, _ in page.sessions}

    def live_users(self) -> list[str]:
        return [user.user_id for user, _ in self.sides.store.list_users(_CALL, None, 100).users]

    def live_addresses(self) -> list[tuple[str, str]]:
        return [
            (session_id, message.message_id)
            for session_id in self.live_sessions()
            for message in self.sides.store.list_messages(_CALL, session_id, None, 100).messages
        ]


def arranged_by(order: session_pb2.SessionOrder.ValueType) -> Arrangement:
    """Update times order sessions to the minute; those of one minute may come in any order."""
    if order not in (session_pb2.SESSION_ORDER_UPDATE_TIME_ASC, session_pb2.SESSION_ORDER_UPDATE_TIME_DESC):
        return list

    def arranged(sessions: list[Any]) -> list[Any]:
        minutes = [session.update_time.seconds // 60 for session in sessions]
        assert minutes == sorted(minutes, reverse=order == session_pb2.SESSION_ORDER_UPDATE_TIME_DESC)
        return sorted(sessions, key=lambda session: (session.update_time.seconds // 60, session.session_id))

    return arranged
