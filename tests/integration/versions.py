"""Versions of the API, as their descriptors have it: clients of any version, and a server of an older one.

Old clients are made from the descriptors of every release, in protos/released. An old server cannot be: it is today's
server behind a front that knows only what the old descriptors know, so it shows what happens to the messages, not how
an old server behaved. A client of the future has today's API and a new field in every message, a new value in every
enum, and a new RPC in every service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from recall.v1 import admin_pb2, memory_pb2, session_pb2, user_pb2
from recalld.app import Server
from recalld.client import Client

RELEASED = sorted((Path(__file__).parents[2] / "protos" / "released").glob("*.binpb"))
PACKAGE = "recall.v1"
MODULES = (session_pb2, memory_pb2, user_pb2, admin_pb2)
FUTURE = 1000  # number of the fields and enum values to come
UNHEARD_OF = "unheard of"  # what is in those fields
DEADLINE = 30.0  # seconds

Files = list[FileDescriptorProto]
# Calls an RPC by its name, with its request as JSON has it, and returns the responses as JSON has them.
Call = Callable[..., list[dict[str, Any]]]


class Api:
    """The API as one version's descriptors have it."""

    def __init__(self, files: Iterable[FileDescriptorProto]) -> None:
        pool = DescriptorPool()
        names = []
        for file in files:
            pool.AddSerializedFile(file.SerializeToString())
            names += [f"{file.package}.{service.name}" for service in file.service]
        services = [pool.FindServiceByName(name) for name in names]
        self.rpcs: dict[str, MethodDescriptor] = {rpc.name: rpc for service in services for rpc in service.methods}

    def calls(self, channel: grpc.Channel, prepare: Callable[[Message], None] = lambda _: None) -> Call:
        """A client of this version. What it is about to send can be changed by `prepare`."""

        def call(name: str, **fields: Any) -> list[dict[str, Any]]:
            rpc = self.rpcs[name]
            request = json_format.ParseDict(fields, GetMessageClass(rpc.input_type)())
            prepare(request)
            replies = send(channel, rpc, request, DEADLINE)
            return [json_format.MessageToDict(reply, preserving_proto_field_name=True) for reply in replies]

        return call


def send(channel: grpc.Channel, rpc: MethodDescriptor, request: Message, timeout: float | None) -> Iterator[Message]:
    """Calls an RPC, with the types of its own version."""
    encode, decode = type(request).SerializeToString, GetMessageClass(rpc.output_type).FromString
    if rpc.server_streaming:
        yield from channel.unary_stream(path_of(rpc), encode, decode)(request, timeout=timeout)
    else:
        yield channel.unary_unary(path_of(rpc), encode, decode)(request, timeout=timeout)


def path_of(rpc: MethodDescriptor) -> str:
    return f"/{rpc.containing_service.full_name}/{rpc.name}"


def released(image: Path) -> Files:
    return list(FileDescriptorSet.FromString(image.read_bytes()).file)


def todays() -> Files:
    """The files of the generated code, each behind those that it imports."""
    found: dict[str, FileDescriptorProto] = {}

    def add(file: FileDescriptor) -> None:
        for imported in file.dependencies:
            add(imported)
        found[file.name] = FileDescriptorProto.FromString(file.serialized_pb)

    for module in MODULES:
        add(module.DESCRIPTOR)
    return list(found.values())


def own(files: Files) -> Files:
    return [file for file in files if file.package == PACKAGE]


def extended(files: Files) -> Files:
    """What a later version may look like."""
    for file in own(files):
        for message in file.message_type:
            field = message.field.add(name="future", number=FUTURE, type=FieldDescriptorProto.TYPE_STRING)
            field.label = FieldDescriptorProto.LABEL_OPTIONAL
        for enum in file.enum_type:
            enum.value.add(name=f"{enum.name}_FUTURE", number=FUTURE)
        for service in file.service:
            like = service.method[0]
            service.method.add(name=f"Future{service.name}", input_type=like.input_type, output_type=like.output_type)
    return files


def reduced(files: Files) -> Files:
    """What an earlier version may have looked like: without two fields and an RPC of today's."""
    for file in own(files):
        for message in file.message_type:
            for at, field in reversed(list(enumerate(message.field))):
                if (message.name, field.name) in {("Session", "etag"), ("CreateSessionRequest", "metadata")}:
                    del message.field[at]
        for service in file.service:
            for at, rpc in reversed(list(enumerate(service.method))):
                if rpc.name == "StreamUsers":
                    del service.method[at]
    return files


def set_future(message: Message) -> None:
    """Sets the field `future` in a request, and in every message of the API within it."""
    message.future = UNHEARD_OF  # type: ignore[attr-defined]
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.file.package == PACKAGE:
            for one in value if field.is_repeated else [value]:
                set_future(one)


def stub_calls(client: Client) -> Call:
    """A client with the generated stubs."""
    stubs = (client.sessions, client.memory, client.users, client.admin)
    rpcs = Api(todays()).rpcs

    def call(name: str, **fields: Any) -> list[dict[str, Any]]:
        rpc = rpcs[name]
        [method] = [getattr(stub, name) for stub in stubs if hasattr(stub, name)]
        [request] = [getattr(one, rpc.input_type.name) for one in MODULES if hasattr(one, rpc.input_type.name)]
        answer = method(json_format.ParseDict(fields, request()), timeout=DEADLINE)
        replies = answer if rpc.server_streaming else [answer]
        return [json_format.MessageToDict(reply, preserving_proto_field_name=True) for reply in replies]

    return call


# --- an old server


@contextmanager
def front(api: Api, server: Server) -> Iterator[str]:
    """The address of a server that has the methods, fields and values of one version only, in front of today's."""
    with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as behind:
        front = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
        for rpc in api.rpcs.values():
            kind = grpc.unary_stream_rpc_method_handler if rpc.server_streaming else grpc.unary_unary_rpc_method_handler
            handler = kind(
                forwarding(behind, rpc),
                request_deserializer=GetMessageClass(rpc.input_type).FromString,
                response_serializer=GetMessageClass(rpc.output_type).SerializeToString,
            )
            service = rpc.containing_service.full_name
            front.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {rpc.name: handler})])
        port = front.add_insecure_port("127.0.0.1:0")
        front.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            front.stop(None).wait()


def forwarding(behind: grpc.Channel, rpc: MethodDescriptor) -> Callable[[Message, grpc.ServicerContext], Any]:
    """The behaviour of one method: unknown fields go no further, in either direction."""

    def stream(request: Message, context: grpc.ServicerContext) -> Iterator[Message]:
        request.DiscardUnknownFields()
        try:
            for reply in send(behind, rpc, request, context.time_remaining()):
                reply.DiscardUnknownFields()
                yield reply
        except grpc.RpcError as error:
            context.set_trailing_metadata(tuple((one.key, one.value) for one in error.trailing_metadata()))
            context.abort(error.code(), error.details() or "")

    def unary(request: Message, context: grpc.ServicerContext) -> Message:
        [reply] = stream(request, context)
        return reply

    return stream if rpc.server_streaming else unary
