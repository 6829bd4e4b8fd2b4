"""Every method of the API, read from the descriptors: a new one is under attack as soon as it is generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf import message_factory
from google.protobuf.message import Message

from recall.v1 import admin_pb2, memory_pb2, session_pb2, user_pb2


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        path: as HTTP/2 has it, `/recall.v1.MemoryService/AddMemory`.
        streams: whether it answers with a stream.
    """

    path: str
    request: type[Message]
    response: type[Message]
    streams: bool

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def __str__(self) -> str:
        return self.name


def _methods() -> list[Method]:
    files: list[Any] = [session_pb2.DESCRIPTOR, memory_pb2.DESCRIPTOR, user_pb2.DESCRIPTOR, admin_pb2.DESCRIPTOR]
    return [
        Method(
            path=f"/{service.full_name}/{method.name}",
            request=message_factory.GetMessageClass(method.input_type),
            response=message_factory.GetMessageClass(method.output_type),
            streams=method.server_streaming,
        )
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
    ]


METHODS = _methods()
_BY_REQUEST = {method.request: method for method in METHODS}


def method_of(request: Message) -> Method:
    """The method that takes requests of this type: each has a type of its own."""
    return _BY_REQUEST[type(request)]
