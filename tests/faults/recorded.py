"""Callers that do everything to few sessions at once, and record what they asked and were answered."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any, Final
from uuid import UUID

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from recall.v1.admin_pb2 import PurgeRequest
from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, Message
from recall.v1.session_pb2 import DeleteSessionRequest, UndeleteSessionRequest
from recalld.client import Client
from tests.faults.history import (
    Add,
    Added,
    Answer,
    Call,
    Delete,
    Done,
    Get,
    History,
    Memory,
    Operation,
    Purge,
    Purged,
    Refused,
    Undelete,
)

# A call that finds no server waits for one, so that what fails has most likely been sent. The deadline (seconds) is
# short, so that some pass while a database is away.
_PATIENTLY: Final[dict[str, Any]] = {"timeout": 3.0, "wait_for_ready": True}

# Errors after which a call may have happened, or may yet.
_UNKNOWN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    # Nothing happened, but for a purge, which may have made some of its steps.
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_REFUSALS = {"SESSION_NOT_FOUND", "NOT_DELETED", "SEQ_MISMATCH", "MESSAGE_ID_CONFLICT"}

# Seconds to wait after that: what may have happened at any time makes a history hard to check, and says little.
_PAUSE = 0.2

# How often an AddMemory whose outcome is unknown is tried, under the same request_id.
_ATTEMPTS = 3


class Callers:
    """Callers in threads.

    Args:
        replicas: servers on one database; each call goes to any of them.
        history: where all is recorded.
        sessions: how many sessions they share.
        callers: how many of them there are.
        chance: decides what they do.
    """

    def __init__(
        self, replicas: Sequence[Client], history: History, chance: random.Random, *, sessions: int, callers: int
    ) -> None:
        self._replicas = replicas
        self._history = history
        self._sessions = [f"s{n}" for n in range(sessions)]
        self._chances = [random.Random(chance.random()) for _ in range(callers)]
        # The newest seq that each caller has seen of each session, to read on from and to compare with.
        self._seen: list[Counter[str]] = [Counter() for _ in range(callers)]

    def work(self, enough: Event) -> None:
        """Calls from all callers until told that it is enough, and returns when the last call has returned."""
        with ThreadPoolExecutor(len(self._chances)) as threads:
            for work in [threads.submit(self._work, caller, enough) for caller in range(len(self._chances))]:
                work.result()

    def read_all(self) -> None:
        """Reads every session, by every replica, one after the other."""
        for session_id in self._sessions:
            for replica in self._replicas:
                self._call(0, replica, session_id, Get())

    def _work(self, caller: int, enough: Event) -> None:
        chance, seen = self._chances[caller], self._seen[caller]
        while not enough.is_set():
            session_id = chance.choice(self._sessions)
            operation = self._choose(chance, seen[session_id])
            for _ in range(_ATTEMPTS if isinstance(operation, Add) else 1):
                call = self._call(caller, chance.choice(self._replicas), session_id, operation)
                if call.answer is not None:
                    break
                enough.wait(_PAUSE)
            match call.answer:
                case Memory(last_seq=int(last_seq)) | Done(last_seq) | Refused(last_seq=int(last_seq)):
                    seen[session_id] = last_seq
                case Added(first_seq, count):
                    seen[session_id] = first_seq + count - 1

    def _choose(self, chance: random.Random, seen: int) -> Operation:
        def add() -> Operation:
            expected = seen if chance.random() < 0.3 else None
            return Add(str(UUID(int=chance.getrandbits(128))), chance.randint(1, 4), expected)

        def add_again() -> Operation:
            """A request_id that others use as well, often at the same time."""
            return Add(str(UUID(int=chance.randint(1, 5))), 2)

        choices: dict[Callable[[], Operation], int] = {
            add: 30,
            add_again: 10,
            Get: 20,
            lambda: Get(after_seq=seen): 15,
            Delete: 9,
            Undelete: 6,
            Purge: 6,
        }
        [chosen] = chance.choices([*choices], [*choices.values()])
        return chosen()

    def _call(self, caller: int, replica: Client, session_id: str, operation: Operation) -> Call:
        with self._history.recorded(caller, session_id, operation) as call:
            try:
                call.answer = _ask(replica, session_id, operation)
            except grpc.RpcError as error:
                call.answer = _refusal(error)
        return call


def _ask(client: Client, session_id: str, operation: Operation) -> Answer:
    match operation:
        case Add(request, count, expected_last_seq):
            messages = [Message(role="user", content=f"{request}/{place}") for place in range(count)]
            add = AddMemoryRequest(
                session_id=session_id, messages=messages, request_id=request, expected_last_seq=expected_last_seq
            )
            added = client.memory.AddMemory(add, **_PATIENTLY)
            first, last = added.messages[0].seq, added.messages[-1].seq
            return Added(first, last - first + 1, added.session_created, added.session_undeleted)
        case Get(after_seq):
            get = GetMemoryRequest(session_id=session_id, last_n=1000, after_seq=after_seq)
            memory = client.memory.GetMemory(get, **_PATIENTLY)
            found = tuple((message.seq, message.content) for message in memory.messages)
            last_seq = memory.session.last_seq if memory.HasField("session") else None
            return Memory(last_seq, memory.session.message_count, found)
        case Delete():
            deleted = client.sessions.DeleteSession(DeleteSessionRequest(session_id=session_id), **_PATIENTLY)
            return Done(deleted.session.last_seq)
        case Undelete():
            undeleted = client.sessions.UndeleteSession(UndeleteSessionRequest(session_id=session_id), **_PATIENTLY)
            return Done(undeleted.session.last_seq)
        case Purge():
            purge = PurgeRequest(session_id=session_id, older_than=Duration())
            *_, end = client.admin.Purge(purge, **_PATIENTLY)
            assert end.done
            return Purged(end.sessions, end.messages)


def _refusal(error: grpc.RpcError) -> Refused | None:
    """What an error says for certain; None when the outcome is unknown. Raises what should not happen."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    if status is not None and status.details and status.details[0].Unpack(info) and info.reason in _REFUSALS:
        last_seq = info.metadata.get("last_seq")
        return Refused(info.reason, None if last_seq is None else int(last_seq))
    if error.code() not in _UNKNOWN:
        raise error
    return None
