"""docs/from-zep.md keeps up with the code, and its script moves what a Zep server has."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from recall.v1 import admin_pb2, memory_pb2, session_pb2, user_pb2
from recalld.app import Server
from recalld.client import Client

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "from-zep.md").read_text("utf-8")
[SCRIPT] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CREATED_AT = "2024-05-01T12:00:00Z"
DEADLINE = 30.0  # seconds

# The methods of zep-python 1.5.0, without their twins that begin with an "a", and of @getzep/zep-js 0.10.0.
PYTHON = {
    "memory": {
        *("add_session", "get_session", "update_session", "list_sessions", "list_all_sessions"),
        *("add_memory", "get_memory", "search_memory", "delete_memory"),
    },
    "message": {"get_session_messages", "get_session_message", "update_message_metadata"},
    "user": {"add", "get", "update", "delete", "list", "list_chunked", "get_sessions"},
}
TYPESCRIPT = {
    "memory": {
        *("addSession", "getSession", "updateSession", "listSessions", "listSessionsChunked"),
        *("addMemory", "getMemory", "searchMemory", "deleteMemory"),
    },
    "message": {"getSessionMessages", "getSessionMessage", "updateSessionMessageMetadata"},
    "user": {"add", "get", "update", "delete", "list", "listChunked", "getSessions"},
}


# --- a Zep server, as its Python client shows it


@dataclass
class ZepUser:
    id: int
    user_id: str
    email: str | None = None
    first_name: str | None = None
    last_name: str | None = None
    metadata: dict[str, Any] | None = None
    created_at: str = CREATED_AT


@dataclass
class ZepMessage:
    uuid: str
    role: str
    content: str
    token_count: int | None = None
    metadata: dict[str, Any] | None = None
    created_at: str = CREATED_AT


@dataclass
class ZepSession:
    id: int
    session_id: str
    user_id: str | None = None
    metadata: dict[str, Any] | None = None
    created_at: str = CREATED_AT
    messages: list[ZepMessage] = field(default_factory=list)

    def say(self, *contents: str) -> None:
        for content in contents:
            self.messages.append(ZepMessage(str(UUID(int=(self.id << 32) + len(self.messages))), "user", content))


class Zep:
    """Its `memory`, `message` and `user` clients in one: listings begin behind an id, messages have numbered pages."""

    def __init__(self) -> None:
        # Ids have gaps, as after a purge: more users than one page, and more than the ids of a page.
        self.users = [ZepUser(id=3 * number, user_id=f"user-{number:03}") for number in range(1, 151)]
        self.users[0] = ZepUser(3, "user-001", "ada@example.org", "Ada", "Byron", {"plan": "pro", "since": None})
        self.sessions = [
            ZepSession(7, "long", "user-001", {"topic": "billing"}),
            ZepSession(900, "empty"),
            ZepSession(901, "short", "user-002"),
        ]
        self.sessions[0].say(*(f"message {number}" for number in range(237)))
        self.sessions[0].messages[1].token_count = 5
        self.sessions[0].messages[1].metadata = {"system": {"intent": "to ask"}}
        self.sessions[2].say("hello")
        self.memory = self.message = self.user = self

    def list_sessions(self, limit: int, cursor: int) -> list[ZepSession]:
        return [session for session in self.sessions if session.id > cursor][:limit]

    def get_session_messages(self, session_id: str, limit: int, cursor: int) -> list[ZepMessage]:
        [messages] = [session.messages for session in self.sessions if session.session_id == session_id]
        return messages[(cursor - 1) * limit : cursor * limit]

    def list(self, limit: int, cursor: int) -> list[ZepUser]:
        return [user for user in self.users if user.id > cursor][:limit]


@pytest.fixture
def zep(monkeypatch: pytest.MonkeyPatch) -> Zep:
    """The Zep server that the script finds."""
    zep = Zep()
    module = ModuleType("zep_python")
    module.ZepClient = lambda base_url, api_key=None: zep  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zep_python", module)
    return zep


Move = Callable[[], None]


@pytest.fixture
def move(server: Server, client: Client) -> Move:
    """Runs the script."""
    return lambda: run(SCRIPT, server)


def run(script: str, server: Server) -> None:
    assert "127.0.0.1:50051" in script
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(compile(script.replace("127.0.0.1:50051", server.address), "from-zep.md", "exec"), names)
    finally:
        names["channel"].close()


# --- what recalld has


def messages_of(client: Client, session_id: str) -> list[memory_pb2.Message]:
    request = memory_pb2.ListMessagesRequest(session_id=session_id, page_size=1000)
    return list(client.memory.ListMessages(request, timeout=DEADLINE).messages)


def contents(client: Client, session_id: str) -> list[str]:
    return [message.content for message in messages_of(client, session_id)]


def everything(client: Client) -> list[Any]:
    """All that there is, with its times and etags, which any write would change."""
    users = client.users.StreamUsers(user_pb2.StreamUsersRequest(), timeout=DEADLINE)
    sessions = client.sessions.StreamSessions(session_pb2.StreamSessionsRequest(), timeout=DEADLINE)
    found: list[Any] = [user for chunk in users for user in chunk.users]
    for session in [session for chunk in sessions for session in chunk.sessions]:
        found += [session, *messages_of(client, session.session_id)]
    return found


# --- the script


def test_the_script_moves_all_that_zep_has(zep: Zep, move: Move, client: Client) -> None:
    move()

    assert len(everything(client)) == 150 + 3 + 238
    [ada] = [one for one in everything(client) if isinstance(one, user_pb2.User) and one.user_id == "user-001"]
    assert (ada.email, ada.first_name, ada.last_name) == ("ada@example.org", "Ada", "Byron")
    assert MessageToDict(ada.metadata) == {"plan": "pro", "since": None, "zep_created_at": CREATED_AT}
    session = client.sessions.GetSession(session_pb2.GetSessionRequest(session_id="long"), timeout=DEADLINE).session
    assert (session.user_id, session.message_count) == ("user-001", 237)
    assert MessageToDict(session.metadata) == {"topic": "billing", "zep_created_at": CREATED_AT}
    moved = messages_of(client, "long")
    assert [(one.message_id, one.role, one.content) for one in moved] == [
        (one.uuid, one.role, one.content) for one in zep.sessions[0].messages
    ]
    assert [one.seq for one in moved] == list(range(1, 238))
    assert moved[1].token_count == 5
    assert MessageToDict(moved[1].metadata) == {"system": {"intent": "to ask"}, "zep_created_at": CREATED_AT}


def test_a_repeated_move_changes_nothing(zep: Zep, move: Move, client: Client) -> None:
    move()
    before = everything(client)

    move()

    assert everything(client) == before


def test_a_repeated_move_adds_what_is_new_in_zep(zep: Zep, move: Move, client: Client) -> None:
    move()
    zep.sessions[0].say(*(f"message {number}" for number in range(237, 437)))
    zep.sessions.append(ZepSession(902, "new"))

    move()

    assert contents(client, "long") == [f"message {number}" for number in range(437)]
    assert contents(client, "new") == []


def test_a_repeated_move_takes_over_what_zep_has_changed(zep: Zep, move: Move, client: Client) -> None:
    move()
    zep.sessions[0].messages[50].token_count = 9
    zep.sessions[0].messages[50].metadata = {"system": {"intent": "to complain"}}

    move()

    moved = messages_of(client, "long")
    assert (len(moved), moved[50].seq, moved[50].token_count) == (237, 51, 9)
    assert MessageToDict(moved[50].metadata)["system"] == {"intent": "to complain"}


def test_a_move_that_was_interrupted_is_completed(zep: Zep, move: Move, client: Client) -> None:
    zep.sessions[0].messages[150].role = ""
    with pytest.raises(grpc.RpcError) as raised:
        move()
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert len(contents(client, "long")) == 100
    zep.sessions[0].messages[150].role = "user"

    move()

    assert contents(client, "long") == [f"message {number}" for number in range(237)]
    assert contents(client, "short") == ["hello"]


def test_messages_that_are_too_large_for_one_request_are_moved(zep: Zep, move: Move, client: Client) -> None:
    large = ["x" * 600_000 + str(number) for number in range(9)]
    zep.sessions[1].say(*large)

    move()
    move()

    session = client.sessions.GetSession(session_pb2.GetSessionRequest(session_id="empty"), timeout=DEADLINE).session
    assert session.message_count == session.last_seq == 9


def test_without_zeps_ids_a_repeated_move_doubles_the_messages(zep: Zep, server: Server, client: Client) -> None:
    careless, changes = re.subn(r"^ +message_id=message\.uuid,\n", "", SCRIPT, flags=re.MULTILINE)
    assert changes == 1

    run(careless, server)
    run(careless, server)

    assert contents(client, "short") == ["hello", "hello"]


# --- the tables


def methods(title: str, column: int) -> set[str]:
    """The methods named in a column of the first table below a heading."""
    [section] = re.findall(rf"^## {title}\n(.*?)(?=^## |^\*\*Search|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (`.*) \|$", section, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split(" | ")[column])}


@pytest.mark.parametrize(
    ("title", "client"), [("Sessions and memory", "memory"), ("Messages", "message"), ("Users", "user")]
)
def test_every_method_of_zeps_clients_is_in_the_tables(title: str, client: str) -> None:
    assert methods(title, 0) == PYTHON[client] | {f"a{name}" for name in PYTHON[client]}
    assert methods(title, 1) == TYPESCRIPT[client]


def test_what_replaces_a_method_is_an_rpc() -> None:
    modules = (session_pb2, memory_pb2, user_pb2, admin_pb2)
    services = [service for module in modules for service in module.DESCRIPTOR.services_by_name.values()]
    rpcs = {rpc.name for service in services for rpc in service.methods}
    named = methods("Sessions and memory", 2) | methods("Messages", 2) | methods("Users", 2)

    assert len(named) > 10
    assert named <= rpcs


def test_every_link_leads_somewhere() -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#]+)(?:#([^)]+))?\)", PAGE):
        path = DOCS / target
        assert path.exists(), target
        if anchor:
            assert re.search(rf"^##+ {anchor}$", path.read_text("utf-8"), re.MULTILINE | re.IGNORECASE), anchor
