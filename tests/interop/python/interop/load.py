"""Many AddMemory calls, each repeated under its request_id until it is known to have succeeded."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import grpc

from recall.v1.memory_pb2 import AddMemoryRequest, Message
from recall.v1.memory_pb2_grpc import MemoryServiceStub

CONCURRENCY = 16
SESSIONS = 10
GIVE_UP_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0

# After these the outcome is unknown, or the server asks to come again.
REPEAT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


def load(memory: MemoryServiceStub, calls: int) -> int:
    """Makes the calls and returns how many the server acknowledged; raises what no repetition mends."""
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return sum(pool.map(lambda number: _add(memory, _request(number)), range(calls)))


def _request(number: int) -> AddMemoryRequest:
    return AddMemoryRequest(
        session_id=f"load-{number % SESSIONS}",
        messages=[
            Message(role="user", content=f"question {number}"),
            Message(role="assistant", content=f"answer {number}"),
        ],
        request_id=str(uuid4()),
    )


def _add(memory: MemoryServiceStub, request: AddMemoryRequest) -> bool:
    """Whether the server acknowledged the request in time."""
    give_up = time.monotonic() + GIVE_UP_SECONDS
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            memory.AddMemory(request)
            return True
        except grpc.RpcError as error:
            if error.code() not in REPEAT:
                raise
        if time.monotonic() + pause > give_up:
            return False
        time.sleep(random.uniform(0, pause))  # spread out, so that refused callers do not come back all at once
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
