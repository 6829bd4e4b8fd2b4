"""The load of a soak: every kind of call, readers that are slow, callers that leave, and some that cannot wait."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final
from uuid import uuid4

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from recall.v1.admin_pb2 import PurgeRequest
from recall.v1.memory_pb2 import (
    AddMemoryRequest,
    ClearMemoryRequest,
    GetMemoryRequest,
    ListMessagesRequest,
    Message,
    SearchMemoryRequest,
)
from recall.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    GetSessionRequest,
    ListSessionsRequest,
    StreamSessionsRequest,
    UndeleteSessionRequest,
    UpdateSessionRequest,
)
from recall.v1.user_pb2 import CreateUserRequest, DeleteUserRequest, GetUserRequest, ListUsersRequest, UpdateUserRequest
from recalld.client import Client

Act = Callable[[Client, random.Random], Any]

# Seconds that a call may take of which nothing is asked but an answer.
_PATIENCE: Final = 30.0

# Seconds between two calls of one caller: the machine is to be busy, not the test to measure how fast it is.
_PAUSE: Final = 0.01

# Few, so that callers meet, and what they wrote is soon deleted again.
_SESSIONS: Final = 100
_USERS: Final = 20

_WORDS: Final = ["apple", "bread", "coffee", "dinner", "evening", "flight", "garden", "holiday", "idea", "journey"]

# What callers do to each other: they delete, recreate and change the same few sessions and users.
_MUTUAL: Final = {"NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "ABORTED"}


def _session(chance: random.Random) -> str:
    return f"session-{chance.randrange(_SESSIONS)}"


def _user(chance: random.Random) -> str:
    return f"user-{chance.randrange(_USERS)}"


def _document(chance: random.Random) -> Struct:
    document = Struct()
    document.update({chance.choice(_WORDS): chance.random(), "nested": {"word": chance.choice(_WORDS)}})
    return document


def _messages(chance: random.Random) -> list[Message]:
    return [
        Message(role=role, content=" ".join(chance.choices(_WORDS, k=20)), metadata=_document(chance))
        for role in ("user", "assistant")
    ]


def _add(client: Client, chance: random.Random) -> None:
    request = AddMemoryRequest(session_id=_session(chance), messages=_messages(chance), request_id=str(uuid4()))
    client.memory.AddMemory(request, timeout=_PATIENCE)
    if chance.random() < 0.1:
        client.memory.AddMemory(request, timeout=_PATIENCE)


def _get(client: Client, chance: random.Random) -> None:
    client.memory.GetMemory(GetMemoryRequest(session_id=_session(chance), last_n=20), timeout=_PATIENCE)


def _purge(client: Client, chance: random.Random) -> None:
    request = PurgeRequest(older_than=Duration(), session_id=_session(chance))
    list(client.admin.Purge(request, timeout=_PATIENCE))


def _unary(method: Callable[[Client], Any], request: Callable[[random.Random], Any]) -> Act:
    return lambda client, chance: method(client)(request(chance), timeout=_PATIENCE)


_CALLS: Final[list[Act]] = [
    *[_add] * 6,
    *[_get] * 6,
    _purge,
    _unary(lambda c: c.memory.ListMessages, lambda r: ListMessagesRequest(session_id=_session(r), page_size=20)),
    _unary(lambda c: c.memory.SearchMemory, lambda r: SearchMemoryRequest(query=" ".join(r.choices(_WORDS, k=2)))),
    _unary(lambda c: c.memory.ClearMemory, lambda r: ClearMemoryRequest(session_id=_session(r))),
    _unary(
        lambda c: c.sessions.CreateSession, lambda r: CreateSessionRequest(session_id=_session(r), user_id=_user(r))
    ),
    _unary(lambda c: c.sessions.GetSession, lambda r: GetSessionRequest(session_id=_session(r))),
    _unary(
        lambda c: c.sessions.UpdateSession,
        lambda r: UpdateSessionRequest(session_id=_session(r), metadata=_document(r)),
    ),
    *[_unary(lambda c: c.sessions.DeleteSession, lambda r: DeleteSessionRequest(session_id=_session(r)))] * 2,
    _unary(lambda c: c.sessions.UndeleteSession, lambda r: UndeleteSessionRequest(session_id=_session(r))),
    _unary(lambda c: c.sessions.ListSessions, lambda r: ListSessionsRequest(page_size=50)),
    *[_unary(lambda c: c.users.CreateUser, lambda r: CreateUserRequest(user_id=_user(r)))] * 2,
    _unary(lambda c: c.users.GetUser, lambda r: GetUserRequest(user_id=_user(r))),
    _unary(lambda c: c.users.UpdateUser, lambda r: UpdateUserRequest(user_id=_user(r), first_name=r.choice(_WORDS))),
    _unary(lambda c: c.users.ListUsers, lambda r: ListUsersRequest(page_size=10)),
    _unary(lambda c: c.users.DeleteUser, lambda r: DeleteUserRequest(user_id=_user(r))),
]


def everything(client: Client, chance: random.Random) -> None:
    """One call of any kind."""
    chance.choice(_CALLS)(client, chance)


def slow_stream(client: Client, chance: random.Random) -> None:
    """Reads a stream a session at a time, and leaves it when it likes."""
    stream = client.sessions.StreamSessions(StreamSessionsRequest(chunk_size=1), timeout=_PATIENCE)
    for _, _ in zip(range(chance.randrange(1, 30)), stream, strict=False):
        time.sleep(0.02)  # that is what makes it slow
    stream.cancel()


def cancel(client: Client, chance: random.Random) -> None:
    """Calls, and goes away: at once, in the middle, or when the answer is there."""
    request = AddMemoryRequest(session_id=_session(chance), messages=_messages(chance))
    call = client.memory.AddMemory.future(request, timeout=_PATIENCE)
    time.sleep(chance.choice((0, 0.001, 0.005)))
    call.cancel()


def hurry(client: Client, chance: random.Random) -> None:
    """Calls with less time than it takes, or hardly enough."""
    request = SearchMemoryRequest(query=" ".join(chance.choices(_WORDS, k=3)))
    client.memory.SearchMemory(request, timeout=chance.choice((0.001, 0.003, 0.01)))


# Who does what, how many of them, and which errors they may meet.
_CALLERS: Final[list[tuple[Act, int, set[str]]]] = [
    (everything, 4, _MUTUAL),
    (slow_stream, 2, set()),
    (cancel, 1, set()),
    (hurry, 1, {"DEADLINE_EXCEEDED"}),
]


class Load:
    """Callers of one server, until `stop`.

    Args:
        address: of the server.
        excused: status codes that any call may end with, because the server is disturbed.
    """

    def __init__(self, address: str, excused: Iterable[str] = ()) -> None:
        self.calls = 0
        self.errors: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()
        self._excused = set(excused)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        self._client = Client(grpc.insecure_channel(address, options))
        self._threads = [
            threading.Thread(target=self._run, args=(act, expected), name=f"{act.__name__}-{number}")
            for act, callers, expected in _CALLERS
            for number in range(callers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def failed(self) -> int:
        """How many calls ended with an error, expected or not."""
        return self.errors.total()

    def stop(self) -> None:
        """Returns when every caller has ended its last call."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * _PATIENCE)
        self._client.close()

    def _run(self, act: Act, expected: set[str]) -> None:
        chance = random.Random()
        while not self._stopping.wait(_PAUSE):
            try:
                act(self._client, chance)
                code = ""
            except grpc.RpcError as error:
                code = error.code().name
            except Exception as error:  # a defect of the load itself must not pass for silence
                code = type(error).__name__
            with self._lock:
                self.calls += 1
                if code:
                    self.errors[code] += 1
                if code and code not in expected | self._excused:
                    self.unexpected[f"{act.__name__}: {code}"] += 1
