"""By hand, with nothing but grpcurl: reflection tells all there is to call, every RPC can be called, errors explain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from recall.v1 import admin_pb2, memory_pb2, session_pb2, user_pb2
from tests.certificates import Authority
from tests.grpcurl import documents, needs_grpcurl, run_grpcurl
from tests.integration.callers import create_key
from tests.integration.conftest import serving, wait_until_serving
from tests.postgres import Databases

pytestmark = needs_grpcurl

Json = dict[str, Any]

FILES: list[Any] = [session_pb2.DESCRIPTOR, memory_pb2.DESCRIPTOR, user_pb2.DESCRIPTOR, admin_pb2.DESCRIPTOR]
SERVICES = [service for file in FILES for service in file.services_by_name.values()]
METHODS = [method for service in SERVICES for method in service.methods]

# What grpcurl exits with: for a status, 64 and its code.
FAILED = 1
NOT_FOUND, INVALID_ARGUMENT, ABORTED, UNAUTHENTICATED = (64 + code for code in (5, 3, 10, 16))
RESOURCE_EXHAUSTED = 64 + 8

SCALARS = {
    getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name
    for name in ("bool", "bytes", "double", "float", "int32", "int64", "string")
}

MESSAGE_ID = "5f0c6a52-8d1e-4c55-9f57-0d5a3a1f6b02"

# Every RPC once or more, in an order that works on an empty namespace: its name, the request, and a part of its answer,
# of the last one if it streams. grpcurl takes an update_mask as a message, not in the short form of JSON.
ROUND: list[tuple[str, Json, Json]] = [
    ("UserService/CreateUser", {"user_id": "ada", "first_name": "Ada"}, {"user": {"user_id": "ada"}}),
    ("UserService/GetUser", {"user_id": "ada"}, {"user": {"first_name": "Ada"}}),
    ("UserService/UpdateUser", {"user_id": "ada", "email": "a@b.example"}, {"user": {"email": "a@b.example"}}),
    ("UserService/ListUsers", {"page_size": 10}, {"users": [{"user_id": "ada"}]}),
    ("UserService/StreamUsers", {"chunk_size": 10}, {"users": [{"user_id": "ada"}]}),
    ("SessionService/CreateSession", {"session_id": "s", "user_id": "ada"}, {"session": {"user_id": "ada"}}),
    (
        "MemoryService/AddMemory",
        {
            "session_id": "s",
            "messages": [{"message_id": MESSAGE_ID, "role": "user", "content": "Größe: 東京"}, {"role": "assistant"}],
        },
        {"messages": [{"message_id": MESSAGE_ID, "seq": "1"}, {"seq": "2"}]},
    ),
    ("SessionService/GetSession", {"session_id": "s"}, {"session": {"message_count": "2", "last_seq": "2"}}),
    (
        "SessionService/UpdateSession",
        {"session_id": "s", "metadata": {"a": {"b": [1, None]}}},
        {"session": {"metadata": {"a": {"b": [1, None]}}}},
    ),
    (
        "SessionService/ListSessions",
        {"filter": {"user_id": "ada", "metadata": {"a": {}}}, "order_by": "SESSION_ORDER_CREATE_TIME_DESC"},
        {"sessions": [{"session_id": "s"}]},
    ),
    ("SessionService/StreamSessions", {"chunk_size": 1}, {"sessions": [{"session_id": "s"}]}),
    ("MemoryService/GetMemory", {"session_id": "s", "last_n": 1}, {"messages": [{"seq": "2", "role": "assistant"}]}),
    ("MemoryService/ListMessages", {"session_id": "s", "page_size": 1}, {"messages": [{"seq": "1"}]}),
    (
        "MemoryService/GetMessage",
        {"session_id": "s", "message_id": MESSAGE_ID},
        {"message": {"content": "Größe: 東京"}},
    ),
    (
        "MemoryService/UpdateMessage",
        {"session_id": "s", "message_id": MESSAGE_ID, "content": "An umbrella", "update_mask": {"paths": ["content"]}},
        {"message": {"content": "An umbrella", "role": "user"}},
    ),
    ("MemoryService/SearchMemory", {"query": "umbrellas"}, {"results": [{"message": {"seq": "1"}}]}),
    ("MemoryService/DeleteMessage", {"session_id": "s", "message_id": MESSAGE_ID}, {"message": {"seq": "1"}}),
    ("MemoryService/ClearMemory", {"session_id": "s"}, {"session": {"session_id": "s", "last_seq": "2"}}),
    ("SessionService/DeleteSession", {"session_id": "s"}, {"session": {"session_id": "s"}}),
    ("SessionService/UndeleteSession", {"session_id": "s"}, {"session": {"user_id": "ada"}}),
    ("UserService/DeleteUser", {"user_id": "ada"}, {"user": {"user_id": "ada"}}),
    ("UserService/UndeleteUser", {"user_id": "ada"}, {"user": {"first_name": "Ada"}}),
    ("AdminService/Purge", {"older_than": "0s"}, {"sessions": "1", "messages": "2", "done": True}),
]


@dataclass(frozen=True)
class Endpoint:
    """A server, and the flags that reach it; with `headers`, those that let a caller in besides."""

    address: str
    flags: tuple[str, ...]
    headers: tuple[str, ...] = ()

    def ask(self, *words: str) -> str:
        """What a verb such as `list` prints; reflection needs no credential."""
        done = run_grpcurl(*self.flags, self.address, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def call(self, method: str, request: Json) -> list[Json]:
        """The answers of a call that succeeds."""
        status, out, err = self.attempt(method, request)
        assert status == 0, err
        return documents(out)

    def refusal(self, method: str, request: Json) -> tuple[int, Json]:
        """The exit status of a call that fails, and its google.rpc.Status."""
        status, _, err = self.attempt(method, request, "-format-error")
        [document] = documents(err)
        return status, document

    def attempt(self, method: str, request: Json, *flags: str) -> tuple[int, str, str]:
        data = json.dumps(request, ensure_ascii=False)
        done = run_grpcurl(*self.flags, *self.headers, *flags, "-d", data, self.address, f"recall.v1.{method}")
        return done.returncode, done.stdout, done.stderr


def has(actual: Any, part: Any) -> bool:
    """Whether `actual` is `part`, but for members of objects that `part` does not name."""
    if isinstance(part, dict) and isinstance(actual, dict):
        return all(key in actual and has(actual[key], value) for key, value in part.items())
    if isinstance(part, list) and isinstance(actual, list):
        return len(actual) == len(part) and all(map(has, actual, part))
    return bool(actual == part)


@contextmanager
def reached(database_url: str, directory: Path, *, tls: bool, auth: bool, **settings: Any) -> Iterator[Endpoint]:
    """A server that serves, with TLS, with credentials, with both or neither, and how it is reached."""
    flags: tuple[str, ...] = ("-plaintext",)
    credentials = None
    if tls:
        authority = Authority(directory)
        server_pair = authority.issue("server")
        settings |= {"tls_cert_file": server_pair.cert_file, "tls_key_file": server_pair.key_file}
        flags = ("-cacert", str(authority.cert_file))
        credentials = grpc.ssl_channel_credentials(authority.cert)
    with serving(database_url, auth=auth, **settings) as server:
        address = server.address
        with grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address) as channel:
            wait_until_serving(channel)
        key = create_key(database_url, "acme") if auth else None
        yield Endpoint(address, flags, ("-H", f"authorization: Bearer {key}") if key else ())


WAYS = {
    "plaintext": {"tls": False, "auth": False},
    "tls": {"tls": True, "auth": False},
    "bearer": {"tls": False, "auth": True},
    "tls-bearer": {"tls": True, "auth": True},
}


@pytest.fixture(scope="module", params=WAYS)
def endpoint(
    request: pytest.FixtureRequest, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    """A server in each of the ways in turn, on a database of its own."""
    directory = tmp_path_factory.mktemp("tls")
    with databases.copy() as url, reached(url, directory, **WAYS[request.param]) as endpoint:
        yield endpoint


@pytest.fixture
def secured(database_url: str, tmp_path: Path) -> Iterator[Endpoint]:
    with reached(database_url, tmp_path, tls=True, auth=True) as endpoint:
        yield endpoint


@pytest.fixture
def plain(database_url: str, tmp_path: Path) -> Iterator[Endpoint]:
    with reached(database_url, tmp_path, tls=False, auth=False) as endpoint:
        yield endpoint


# --- what there is


def test_list_names_every_service_and_method(endpoint: Endpoint) -> None:
    services = endpoint.ask("list").split()
    assert [name for name in services if name.startswith("recall.")] == sorted(each.full_name for each in SERVICES)
    assert {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} < set(services)
    for service in SERVICES:
        assert endpoint.ask("list", service.full_name).split() == sorted(each.full_name for each in service.methods)


def test_describe_shows_every_service(endpoint: Endpoint) -> None:
    for service in SERVICES:
        described = endpoint.ask("describe", service.full_name)
        assert described.startswith(f"{service.full_name} is a service:\n")
        assert lines(described) >= {signature(method) for method in service.methods}


def test_describe_shows_every_method(plain: Endpoint) -> None:
    for method in METHODS:
        described = lines(plain.ask("describe", method.full_name))
        assert described == {f"{method.full_name} is a method:", signature(method)}


def test_describe_shows_every_message_and_enum(plain: Endpoint) -> None:
    for file in FILES:
        for message in file.message_types_by_name.values():
            described = plain.ask("describe", message.full_name)
            assert described.startswith(f"{message.full_name} is a message:\n")
            assert lines(described) >= fields(message)
        for enum in file.enum_types_by_name.values():
            described = plain.ask("describe", enum.full_name)
            assert lines(described) >= {f"{value.name} = {value.number};" for value in enum.values}


@pytest.mark.parametrize("symbol", ["recall.v1.MemoryService.Forget", "recall.v1.Nothing", "recall.v1.MemoryService."])
def test_what_does_not_exist_is_not_described(symbol: str, plain: Endpoint) -> None:
    done = run_grpcurl(*plain.flags, plain.address, "describe", symbol)
    assert done.returncode == FAILED
    assert "not found" in done.stderr.lower()


def lines(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines()}


def signature(method: Any) -> str:
    stream = "stream " if method.server_streaming else ""
    return f"rpc {method.name} ( .{method.input_type.full_name} ) returns ( {stream}.{method.output_type.full_name} );"


def fields(message: Descriptor) -> set[str]:
    """The fields as proto has them."""
    return {f"{label(field)}{kind(field)} {field.name} = {field.number};" for field in message.fields}


def label(field: FieldDescriptor) -> str:
    if field.is_repeated:
        return "repeated "
    optional = field.containing_oneof is not None and field.containing_oneof.name == f"_{field.name}"
    return "optional " if optional else ""


def kind(field: FieldDescriptor) -> str:
    made = field.message_type or field.enum_type
    if made is not None:
        return f".{made.full_name}"
    return SCALARS[field.type]


# --- what can be called


def test_every_rpc_can_be_called(endpoint: Endpoint) -> None:
    assert {name for name, _, _ in ROUND} == {f"{each.containing_service.name}/{each.name}" for each in METHODS}
    for method, request, expected in ROUND:
        answers = endpoint.call(method, request)
        assert has(answers[-1], expected), f"{method}: {answers}"


@pytest.mark.parametrize(
    ("part", "there"),
    [
        ({"a": 1}, True),
        ({"a": 2}, False),
        ({"c": 1}, False),
        ({"b": [{"c": 1}]}, True),
        ({"b": []}, False),
        ({"b": [{"c": 2}]}, False),
    ],
)
def test_a_missing_part_is_found(part: Json, there: bool) -> None:
    assert has({"a": 1, "b": [{"c": 1, "d": 2}]}, part) is there


# --- what an error says


def test_an_error_shows_its_details_to_the_reader(endpoint: Endpoint) -> None:
    status, out, err = endpoint.attempt("SessionService/GetSession", {"session_id": "nobody"})
    assert (status, out) == (NOT_FOUND, "")
    assert {"Code: NotFound", '"reason": "SESSION_NOT_FOUND"', '"resource_name": "nobody",'} <= lines(err)


def test_not_found_names_the_resource(plain: Endpoint) -> None:
    status, error = plain.refusal("SessionService/GetSession", {"session_id": "nobody"})
    assert status == NOT_FOUND
    assert detail(error, "ErrorInfo") == {"reason": "SESSION_NOT_FOUND", "domain": "recalld"}
    assert has(detail(error, "ResourceInfo"), {"resource_type": "session", "resource_name": "nobody"})


def test_invalid_argument_names_the_field(plain: Endpoint) -> None:
    status, error = plain.refusal("MemoryService/AddMemory", {"session_id": "s", "messages": [{"content": "Who?"}]})
    assert status == INVALID_ARGUMENT
    assert detail(error, "ErrorInfo")["reason"] == "INVALID_FIELD"
    assert has(detail(error, "BadRequest"), {"field_violations": [{"field": "messages[0].role"}]})


def test_a_failed_compare_and_append_tells_the_last_seq(plain: Endpoint) -> None:
    append = {"session_id": "s", "messages": [{"role": "user"}]}
    plain.call("MemoryService/AddMemory", append)
    status, error = plain.refusal("MemoryService/AddMemory", {**append, "expected_last_seq": "0"})
    assert status == ABORTED
    assert has(detail(error, "ErrorInfo"), {"reason": "SEQ_MISMATCH", "metadata": {"last_seq": "1"}})


def test_a_quota_tells_when_to_come_again(database_url: str, tmp_path: Path) -> None:
    a_call_an_hour = 1 / 3600
    with reached(database_url, tmp_path, tls=False, auth=False, rate_limit=a_call_an_hour) as limited:
        limited.call("SessionService/ListSessions", {})
        status, error = limited.refusal("SessionService/ListSessions", {})
    assert status == RESOURCE_EXHAUSTED
    assert detail(error, "ErrorInfo")["reason"] == "LIMIT_EXCEEDED"
    assert float(detail(error, "RetryInfo")["retry_delay"].removesuffix("s")) > 0


def detail(error: Json, name: str) -> Json:
    """The one detail of this type, decoded by grpcurl, without its type."""
    [found] = [each for each in error["details"] if each["@type"] == f"type.googleapis.com/google.rpc.{name}"]
    return {key: value for key, value in found.items() if key != "@type"}


# --- who is let in


def test_without_a_credential_only_reflection_and_health_answer(secured: Endpoint) -> None:
    assert secured.call("SessionService/ListSessions", {}) == [{}]
    stranger = replace(secured, headers=())
    status, error = stranger.refusal("SessionService/ListSessions", {})
    assert status == UNAUTHENTICATED
    assert detail(error, "ErrorInfo")["reason"] == "CREDENTIAL_MISSING"
    assert has(documents(stranger.ask("grpc.health.v1.Health/Check")), [{"status": "SERVING"}])


def test_with_a_wrong_credential_nobody_is_let_in(secured: Endpoint) -> None:
    forger = replace(secured, headers=("-H", "authorization: Bearer recalld_000000000000_nothing"))
    status, error = forger.refusal("SessionService/ListSessions", {})
    assert status == UNAUTHENTICATED
    assert detail(error, "ErrorInfo")["reason"] == "CREDENTIAL_INVALID"


def test_a_server_with_a_certificate_of_another_authority_is_not_trusted(secured: Endpoint, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    done = run_grpcurl("-cacert", str(other.cert_file), "-connect-timeout", "5", secured.address, "list")
    assert done.returncode == FAILED
    assert "certificate signed by unknown authority" in done.stderr
