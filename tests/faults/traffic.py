"""Callers at work while something happens to the servers, who remember what they were promised."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self
from uuid import uuid4

import grpc

from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, ListMessagesRequest, Message
from recall.v1.session_pb2 import CreateSessionRequest, GetSessionRequest, StreamSessionsRequest, UpdateSessionRequest
from recalld.client import Client
from tests.processes import DEADLINE
from tests.waiting import becomes

# Seconds that one call may take, all its attempts together.
CALL = 20.0


class Traffic:
    """Threads that call until the end of the context; each has a session of its own, and reads all sessions too.

    Args:
        client: of the servers, used by all threads.
        callers: how many threads.
        name: what their sessions' ids begin with.
    """

    def __init__(self, client: Client, callers: int = 6, name: str = "caller") -> None:
        self.failures: list[str] = []
        self.calls = 0
        self.slowest = 0.0
        self._client = client
        self._callers = [f"{name}-{n}" for n in range(callers)]
        self._promised: dict[str, list[str]] = {caller: [] for caller in self._callers}
        self._updates = dict.fromkeys(self._callers, 0)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(caller,), name=caller) for caller in self._callers]

    def __enter__(self) -> Self:
        for caller in self._callers:
            self._client.sessions.CreateSession(CreateSessionRequest(session_id=caller), timeout=CALL)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * CALL)

    def wait_for_calls(self, number: int) -> None:
        """Returns when so many more calls have ended."""
        aim = self.calls + number
        enough = becomes(lambda: self.calls >= aim)
        assert enough, f"{aim - self.calls} of {number} calls are missing: {self.failures}"

    def wait_until_stuck(self) -> None:
        """Returns when no call has ended for a second: every caller waits for something."""
        deadline, calls, since = time.monotonic() + DEADLINE, self.calls, time.monotonic()
        while time.monotonic() - since < 1.0:
            assert time.monotonic() < deadline, "callers get answers all the time"
            if self.calls != calls:
                calls, since = self.calls, time.monotonic()
            time.sleep(0.02)

    def check(self, client: Client) -> None:
        """Asserts that what was acknowledged is there: all of it, once, in order.

        A write that failed may be there or not; so this is for traffic of which nothing failed.
        """
        for caller, promised in self._promised.items():
            request = ListMessagesRequest(session_id=caller, page_size=1000)
            found: list[str] = []
            while True:
                page = client.memory.ListMessages(request, timeout=CALL)
                found += [message.content for message in page.messages]
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
            assert found == promised, f"{caller}: {len(found)} messages, not {len(promised)}"
            session = client.sessions.GetSession(GetSessionRequest(session_id=caller), timeout=CALL).session
            assert session.message_count == session.last_seq == len(promised)
            assert sorted(session.metadata) == sorted(f"k{n}" for n in range(self._updates[caller]))

    def _run(self, caller: str) -> None:
        turn = 0
        while not self._stopping.is_set():
            turn += 1
            kinds = (self._add, self._get, self._add, self._update, self._add, self._stream)
            self._do(kinds[turn % len(kinds)], caller, turn)

    def _do(self, kind: Callable[[str, int], None], caller: str, turn: int) -> None:
        began = time.monotonic()
        try:
            kind(caller, turn)
        except grpc.RpcError as error:
            self.failures.append(f"{kind.__name__} {error.code().name}: {error.details()}")
        except AssertionError as error:
            self.failures.append(f"{kind.__name__}: {error}")
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.calls += 1

    def _add(self, caller: str, turn: int) -> None:
        contents = [f"{turn} {part}" for part in ("question", "answer")]
        messages = [Message(role="user", content=content) for content in contents]
        request = AddMemoryRequest(session_id=caller, messages=messages, request_id=str(uuid4()))
        added = self._client.memory.AddMemory(request, timeout=CALL)
        promised = self._promised[caller]
        promised += contents
        seqs = [message.seq for message in added.messages]
        assert seqs == [len(promised) - 1, len(promised)], f"{caller} has {seqs} after {len(promised)} messages"

    def _get(self, caller: str, turn: int) -> None:
        memory = self._client.memory.GetMemory(GetMemoryRequest(session_id=caller, last_n=4), timeout=CALL)
        found = [message.content for message in memory.messages]
        assert found == self._promised[caller][-4:], f"{caller} reads {found}"

    def _update(self, caller: str, turn: int) -> None:
        request = UpdateSessionRequest(session_id=caller)
        request.metadata.update({f"k{self._updates[caller]}": turn})
        self._client.sessions.UpdateSession(request, timeout=CALL)
        self._updates[caller] += 1

    def _stream(self, caller: str, turn: int) -> None:
        """Reads all sessions, and goes on behind the last chunk when a stream breaks."""
        seen: list[str] = []
        request = StreamSessionsRequest(chunk_size=2)
        deadline = time.monotonic() + CALL
        while True:
            try:
                for chunk in self._client.sessions.StreamSessions(request, timeout=CALL):
                    seen += [session.session_id for session in chunk.sessions]
                    request.resume_token = chunk.resume_token
                break
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    raise
        ours = [session_id for session_id in seen if session_id in self._promised]
        assert sorted(ours) == sorted(self._callers), f"the stream has {ours}"
