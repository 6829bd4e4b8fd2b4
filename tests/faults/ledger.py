"""Writers who write down what was acknowledged, and what must be found of it whatever was killed meanwhile."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from uuid import UUID

import grpc
import psycopg

from recall.v1.memory_pb2 import AddMemoryRequest, Message
from recalld.client import Client
from tests.waiting import wait_until

# Seconds that a call may take, and that a writer waits before it repeats one.
_TIMEOUT = 5.0
_PAUSE = 0.05

_RETRIED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # while connections hang, others find none
}

# Calls after which a writer goes on in a new session, so that what is to be looked at stays small.
_CALLS_A_SESSION = 40


class Acknowledged(NamedTuple):
    session_id: str
    request_id: str
    messages: int
    first_seq: int


class Ledger:
    """Writers in threads, each appending to sessions of its own, several messages a call.

    A call whose outcome is unknown is repeated under its request_id until it is answered.

    Args:
        clients: of servers on one database; a call goes to any of them, its repetition to another perhaps.
        writers: how many.
    """

    def __init__(self, clients: Sequence[Client], writers: int = 4) -> None:
        self._clients = clients
        self._writers = writers
        self._enough = threading.Event()
        self._failures: list[BaseException] = []
        self.acknowledged: list[Acknowledged] = []
        self.repeated = 0

    @contextmanager
    def kept(self) -> Iterator[None]:
        """The writers write meanwhile."""
        threads = [threading.Thread(target=self._write, args=(number,)) for number in range(self._writers)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._enough.set()
            for thread in threads:
                thread.join()
        for failure in self._failures:
            raise failure

    def wait_for(self, number: int) -> None:
        """Returns when so many more calls were acknowledged."""
        aim = len(self.acknowledged) + number
        wait_until(lambda: len(self.acknowledged) >= aim or bool(self._failures), "no call is acknowledged", 60)

    def _write(self, writer: int) -> None:
        try:
            chance = random.Random(writer)
            calls = 0
            while not self._enough.is_set():
                session_id = f"kept-{writer}-{calls // _CALLS_A_SESSION}"
                self._add(chance, session_id, str(UUID(int=chance.getrandbits(128))), chance.randint(1, 5))
                calls += 1
        except BaseException as error:
            self._failures.append(error)

    def _add(self, chance: random.Random, session_id: str, request_id: str, count: int) -> None:
        messages = [Message(role="user", content=f"{request_id} {place} {count}") for place in range(count)]
        request = AddMemoryRequest(session_id=session_id, messages=messages, request_id=request_id)
        while not self._enough.is_set():
            try:
                added = chance.choice(self._clients).memory.AddMemory(request, timeout=_TIMEOUT)
            except grpc.RpcError as error:
                if error.code() not in _RETRIED:
                    raise
                self.repeated += 1
                self._enough.wait(_PAUSE)
            else:
                self.acknowledged.append(Acknowledged(session_id, request_id, count, added.messages[0].seq))
                return


def wrongs(url: str, acknowledged: Sequence[Acknowledged]) -> list[str]:
    """What is wrong with the writers' sessions in a database, one line each."""
    with psycopg.connect(url) as connection:
        # One statement, so one moment; and later than all that was acknowledged before it.
        rows = connection.execute(
            """select session_id, last_seq, array_agg(seq order by seq), array_agg(content order by seq)
                 from recalld.session join recalld.message using (session_key)
                where session_id like 'kept-%' group by session_id, last_seq"""
        ).fetchall()
    found = []
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    sizes: dict[tuple[str, str], int] = {}
    for session_id, last_seq, seqs, contents in rows:
        if seqs != [*range(1, last_seq + 1)]:
            found.append(f"{session_id} has a gap: {seqs}, last_seq {last_seq}")
        for seq, content in zip(seqs, contents, strict=True):
            request_id, place, count = content.split()
            places[session_id, request_id].append(seq - int(place))
            sizes[session_id, request_id] = int(count)
    for call, firsts in places.items():
        if firsts != [firsts[0]] * sizes[call]:
            found.append(f"{call} of {sizes[call]} messages is stored at {firsts}")
    for each in acknowledged:
        firsts = places.get((each.session_id, each.request_id), [])
        if firsts[:1] != [each.first_seq]:
            found.append(f"{each} is acknowledged and stored at {firsts}")
    return found
