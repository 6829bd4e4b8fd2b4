"""`python -m tests.bench.echo serve …`: recalld in all but what its calls do, as the floor to measure against.

Same processes, options, threads and interceptors; only the services are others, whose answers are made beforehand. They
are the answers of a real server, in files of the directory ECHO_ANSWERS.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import grpc

import recalld.app
from recall.v1 import memory_pb2, memory_pb2_grpc
from recalld.__main__ import main

ANSWERS_VARIABLE: Final = "ECHO_ANSWERS"


class EchoServicer(memory_pb2_grpc.MemoryServiceServicer):
    """Answers every call with the same message, which gRPC serialises each time as it would any other."""

    def __init__(self, answers: Path) -> None:
        self._added = memory_pb2.AddMemoryResponse.FromString((answers / "AddMemory").read_bytes())
        self._memory = memory_pb2.GetMemoryResponse.FromString((answers / "GetMemory").read_bytes())

    def AddMemory(
        self, request: memory_pb2.AddMemoryRequest, context: grpc.ServicerContext
    ) -> memory_pb2.AddMemoryResponse:
        return self._added

    def GetMemory(
        self, request: memory_pb2.GetMemoryRequest, context: grpc.ServicerContext
    ) -> memory_pb2.GetMemoryResponse:
        return self._memory


def add_echo(server: grpc.Server, *_: Any) -> None:
    """Takes the place of recalld.services.add_services."""
    # Abstract for mypy alone; what it does not override answers UNIMPLEMENTED.
    servicer = EchoServicer(Path(os.environ[ANSWERS_VARIABLE]))  # type: ignore[abstract]
    memory_pb2_grpc.add_MemoryServiceServicer_to_server(servicer, server)


# Worker processes start by importing the main program under another name.
if __name__ in ("__main__", "__mp_main__"):
    recalld.app.add_services = add_echo  # type: ignore[assignment,attr-defined]

if __name__ == "__main__":
    main()
