"""What README.md shows is what happens: its Python blocks, grpcurl lines, commands and queries, on a fresh server.

Each line of a sh block is followed by its answer, in comments. Times, ids made by the server, tokens, etags and scores
differ from run to run: they must be there, whatever they are. At the start of a stream, "…" stands for all but its last
answers. The grpcurl lines go through grpcurl where there is one (see tests/grpcurl.py), and always through Python, by
reflection and the JSON form of protobuf.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import psycopg
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from recalld.app import Server
from recalld.cli import run
from recalld.client import Client
from tests import grpcurl

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
ADDRESS = "127.0.0.1:50051"

VARYING = re.compile(r"(\w+_)?(time|token|message_id|etag|score)")

# Runs a grpcurl line, given as its arguments with the real server's address, and returns what it prints.
Ask = Callable[[list[str]], str]


class Block(NamedTuple):
    language: str
    line: int
    text: str


@dataclass
class Command:
    line: str
    answer: str = ""


BLOCKS = [
    Block(match[1], README.count("\n", 0, match.start()) + 2, match[2])
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
]


def commands(block: Block) -> list[Command]:
    """The commands of a sh block, each with the comments behind it."""
    found: list[Command] = []
    for line in block.text.splitlines():
        if line.startswith("#"):
            found[-1].answer += line.removeprefix("#").removeprefix(" ") + "\n"
        else:
            found.append(Command(line))
    return found


SHOWN = [command for block in BLOCKS if block.language == "sh" for command in commands(block)]
GRPCURL_LINES = [command for command in SHOWN if command.line.startswith("grpcurl ")]
PURGES = [command for command in SHOWN if command.line.startswith(".venv/bin/recalld purge ")]


# --- what is shown and what happens


def assert_alike(actual: Any, shown: Any) -> None:
    """Equal, but for values that differ from run to run, which must only be there."""
    if isinstance(shown, dict) and isinstance(actual, dict):
        assert actual.keys() == shown.keys()
        for key, value in shown.items():
            if VARYING.fullmatch(key):
                assert actual[key]
            else:
                assert_alike(actual[key], value)
    elif isinstance(shown, list) and isinstance(actual, list):
        assert len(actual) == len(shown)
        for one, other in zip(actual, shown, strict=True):
            assert_alike(one, other)
    else:
        assert actual == shown


def run_python(block: Block, address: str, names: dict[str, Any]) -> None:
    """Runs a block, and compares what it prints with the comments behind its print calls."""
    source = "\n" * (block.line - 1) + block.text.replace(ADDRESS, address)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(source, "README.md", "exec"), names)
    assert printed.getvalue().splitlines() == re.findall(r"^\s*print\(.*\)  # (.*)$", block.text, re.MULTILINE)


def run_grpcurl(command: Command, address: str, ask: Ask) -> None:
    """Runs a line, and compares what it prints with the answer shown."""
    assert ADDRESS in command.line
    printed = ask(shlex.split(command.line.replace(ADDRESS, address))[1:])
    if command.answer.startswith(("{", "…")):
        shown = grpcurl.documents(command.answer.removeprefix("…"))
        answers = grpcurl.documents(printed)
        assert_alike(answers[-len(shown) :] if command.answer.startswith("…") else answers, shown)
    else:
        assert printed.split() == command.answer.split()


# --- two ways to ask


def ask_grpcurl(arguments: list[str]) -> str:
    done = grpcurl.run_grpcurl(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask_by_reflection(arguments: list[str]) -> str:
    assert arguments.pop(0) == "-plaintext"
    data = "{}"
    if arguments[0] == "-d":
        data = arguments[1]
        del arguments[:2]
    address, method = arguments
    with grpc.insecure_channel(address) as channel:
        reflected = ProtoReflectionDescriptorDatabase(channel)
        if method == "list":
            return "\n".join(sorted(reflected.get_services()))
        service, _, name = method.partition("/")
        described = DescriptorPool(reflected).FindServiceByName(service).FindMethodByName(name)
        request = json_format.Parse(data, GetMessageClass(described.input_type)())
        answer = GetMessageClass(described.output_type).FromString
        path, send = f"/{service}/{name}", type(request).SerializeToString
        replies: list[Any]
        if described.server_streaming:
            replies = list(channel.unary_stream(path, send, answer)(request, timeout=grpcurl.DEADLINE))
        else:
            replies = [channel.unary_unary(path, send, answer)(request, timeout=grpcurl.DEADLINE)]
        return "\n".join(json_format.MessageToJson(reply, preserving_proto_field_name=True) for reply in replies)


@pytest.fixture(params=[pytest.param(ask_grpcurl, marks=grpcurl.needs_grpcurl, id="grpcurl"), ask_by_reflection])
def ask(request: pytest.FixtureRequest) -> Ask:
    way: Ask = request.param
    return way


@pytest.fixture
def names() -> Iterator[dict[str, Any]]:
    """The namespace of the Python blocks."""
    made: dict[str, Any] = {}
    yield made
    made["channel"].close()


# --- the page


def test_there_is_something_of_every_kind() -> None:
    assert len([block for block in BLOCKS if block.language == "python"]) > 10
    assert len(GRPCURL_LINES) > 10
    assert all(command.answer for command in [*GRPCURL_LINES, *PURGES])
    assert PURGES


def test_the_page_works_from_top_to_bottom(server: Server, client: Client, ask: Ask, names: dict[str, Any]) -> None:
    for block in BLOCKS:
        if block.language == "python":
            run_python(block, server.address, names)
        elif block.language == "sh":
            for command in commands(block):
                if command.line.startswith("grpcurl "):
                    run_grpcurl(command, server.address, ask)


def test_the_python_blocks_work_by_themselves(server: Server, client: Client, names: dict[str, Any]) -> None:
    for block in BLOCKS:
        if block.language == "python":
            run_python(block, server.address, names)


def test_the_grpcurl_lines_work_by_themselves(server: Server, client: Client, ask: Ask) -> None:
    for command in GRPCURL_LINES:
        run_grpcurl(command, server.address, ask)


def test_the_purge_says_what_is_shown(server: Server, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    for command in PURGES:
        assert run([*shlex.split(command.line)[1:], "--target", server.address]) == 0
        assert capsys.readouterr().out == command.answer


def test_the_queries_find_the_session_and_its_messages(server: Server, client: Client, database_url: str) -> None:
    run_grpcurl(GRPCURL_LINES[0], server.address, ask_by_reflection)
    [block] = [block for block in BLOCKS if block.language == "sql"]
    session, messages, left = [query for query in block.text.split(";\n") if query.strip()]
    with psycopg.connect(database_url) as connection:
        assert connection.execute(session.encode()).fetchall()[0][:4] == (None, 1, 1, 0)
        assert connection.execute(messages.encode()).fetchall() == [(1, "user", "hello", False)]
        assert connection.execute(left.encode()).fetchall() == [(0, None, None)]


# --- that these tests can fail


@pytest.mark.parametrize(
    "answer",
    [
        '{"messages": [{"message_id": "…", "seq": "2", "create_time": "…"}], "session_created": true}',
        '{"messages": [{"message_id": "…", "seq": "1"}], "session_created": true}',
        '{"messages": [{"message_id": "…", "seq": "1", "create_time": "…"}]}',
        '{"messages": [], "session_created": true}',
    ],
)
def test_a_wrong_answer_is_found(answer: str, server: Server, client: Client, ask: Ask) -> None:
    with pytest.raises(AssertionError):
        run_grpcurl(Command(GRPCURL_LINES[0].line, answer), server.address, ask)


def test_a_wrong_comment_is_found() -> None:
    with pytest.raises(AssertionError):
        run_python(Block("python", 1, "print(1 + 1)  # 3\n"), ADDRESS, {})
