"""One walk through the API; each step says what it saw. README.md, "The tour", has every value used here."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from recall.v1.admin_pb2 import PurgeRequest
from recall.v1.memory_pb2 import (
    AddedMessage,
    AddMemoryRequest,
    AddMemoryResponse,
    GetMemoryRequest,
    GetMemoryResponse,
    GetMessageRequest,
    Message,
    SearchMemoryRequest,
)
from recall.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    GetSessionRequest,
    ListSessionsRequest,
    Session,
    SessionFilter,
    StreamSessionsRequest,
    UpdateSessionRequest,
)
from recall.v1.user_pb2 import CreateUserRequest

from . import shown
from .connection import Client
from .shown import Json, instant, struct

SESSION_ID = "tour-Zürich-東京"
USER_ID = "user-łódź"
REQUEST_ID = "5f0c6a52-8d1e-4c55-9f57-0d5a3a1f6b01"
MESSAGE_ID = "5f0c6a52-8d1e-4c55-9f57-0d5a3a1f6b02"
PAGE_IDS = [f"page-{number}" for number in range(1, 6)]
PAGES = SessionFilter(metadata=struct({"kind": "page"}))

METADATA = {
    "string": "Größe",
    "empty": "",
    "integer": 42,
    "negative": -7,
    "fraction": 0.1,
    "largest": 2**53 - 1,
    "yes": True,
    "no": False,
    "nothing": None,
    "nested": {"inner": {"kept": "yes", "gone": "soon"}, "empty": {}},
    "list": [1, "two", None, False, [3.5], {"four": 4}, []],
}
PATCH = {
    "integer": None,
    "nested": {"inner": {"gone": None, "added": 1.5}},
    "list": ["replaced"],
    "new": {"ключ": "значение"},
}
MESSAGES = [
    Message(
        message_id=MESSAGE_ID,
        role="user",
        content="Grüße aus Zürich, 東京, 🗼👩\u200d👩\u200d👧, e\u0301, שלום, مرحبا",
        metadata=struct({"languages": ["de", "ja", "he", "ar"]}),
        token_count=42,
    ),
    Message(
        role="assistant",
        content="Take an umbrella.",
        metadata=struct({"model": {"name": "tiny", "temperature": 0.25}}),
    ),
    Message(role="user"),
    Message(role="наблюдатель", content='one\ntwo\t"three" \\ four'),
]


def tour(client: Client) -> Json:
    """Every step in its order, by name."""
    return {
        **_write_and_read(client),
        **_user_and_metadata(client),
        **_search(client),
        **_list_and_stream(client),
        **_refusals(client),
        **_delete_and_revive(client),
        **_purge(client),
    }


def _write_and_read(client: Client) -> Json:
    request = AddMemoryRequest(
        session_id=SESSION_ID, messages=MESSAGES, metadata=struct(METADATA), request_id=REQUEST_ID
    )
    added = client.memory.AddMemory(request)
    repeated = client.memory.AddMemory(request)
    memory = client.memory.GetMemory(GetMemoryRequest(session_id=SESSION_ID))
    newest = client.memory.GetMemory(GetMemoryRequest(session_id=SESSION_ID, last_n=2))
    reread = [
        client.memory.GetMessage(GetMessageRequest(session_id=SESSION_ID, message_id=each.message_id)).message
        for each in added.messages
    ]
    times = [instant(each.create_time) for each in added.messages]
    return {
        "add": {
            **_added(added),
            "keeps_message_id": added.messages[0].message_id == MESSAGE_ID,
            "distinct_message_ids": len({each.message_id for each in added.messages}),
            "whole_microseconds": all(nanos % 1000 == 0 for _, nanos in times),
            "create_times_in_order": all(earlier <= later for earlier, later in pairwise(times)),
        },
        "repeat": {**_added(repeated), "same_answer": repeated == added},
        "get_memory": _memory(memory),
        "newest": {"seqs": _seqs(newest.messages)},
        "get_message": {
            "same_as_get_memory": reread == list(memory.messages),
            "same_create_times": [instant(each.create_time) for each in reread] == times,
            "update_time_is_create_time": all(each.update_time == each.create_time for each in reread),
        },
    }


def _user_and_metadata(client: Client) -> Json:
    user = client.users.CreateUser(
        CreateUserRequest(
            user_id=USER_ID,
            email="ada@example.com",
            first_name="Ada",
            last_name="Łódzka",
            metadata=struct({"plan": "pro"}),
        )
    ).user
    attached = _update(client, UpdateSessionRequest(session_id=SESSION_ID, user_id=USER_ID))
    merged = _update(client, UpdateSessionRequest(session_id=SESSION_ID, metadata=struct(PATCH)))
    stale = UpdateSessionRequest(session_id=SESSION_ID, metadata=struct({"late": True}), etag=attached.etag)
    return {
        "create_user": shown.user(user),
        "attach": shown.session(attached),
        "merge": {"session": shown.session(merged), "etag_changed": merged.etag != attached.etag},
        "etag_mismatch": shown.failure(lambda: client.sessions.UpdateSession(stale)),
    }


def _search(client: Client) -> Json:
    everywhere = client.memory.SearchMemory(SearchMemoryRequest(query="umbrella"))
    of_user = SearchMemoryRequest(query="umbrella", user_id=USER_ID)
    of_role = SearchMemoryRequest(query="umbrella", session_id=SESSION_ID, roles=["user"])
    seqs_of_user = _seqs(_found(client, of_user))
    seqs_of_role = _seqs(_found(client, of_role))
    detached = _update(client, UpdateSessionRequest(session_id=SESSION_ID, update_mask=FieldMask(paths=["user_id"])))
    return {
        "search": {
            "everywhere": [shown.message(result.message) for result in everywhere.results],
            "scores_positive": all(result.score > 0 for result in everywhere.results),
            "of_user": seqs_of_user,
            "of_role": seqs_of_role,
        },
        "detach": {"session": shown.session(detached), "of_user": _seqs(_found(client, of_user))},
    }


def _list_and_stream(client: Client) -> Json:
    created = [
        client.sessions.CreateSession(
            CreateSessionRequest(session_id=session_id, metadata=struct({"kind": "page", "number": number}))
        ).session
        for number, session_id in enumerate(PAGE_IDS, 1)
    ]
    whole = client.sessions.StreamSessions(StreamSessionsRequest(chunk_size=2, filter=PAGES))
    return {
        "list_sessions": {"pages": _pages(client)},
        "create_time_filter": _create_time_filter(client, created[2].create_time),
        "stream_sessions": {"chunks": [_ids(chunk.sessions) for chunk in whole]},
        "resume_stream": _resume_stream(client),
    }


def _create_time_filter(client: Client, third: Timestamp) -> Json:
    """Times to the microsecond, there and back: half-open ranges that begin or end at the third page, and just past."""
    later = Timestamp()
    later.FromMicroseconds(third.ToMicroseconds() + 1)
    page = PAGES.metadata
    return {
        "from_third": _listed(client, SessionFilter(metadata=page, create_time_from=third)),
        "from_a_microsecond_later": _listed(client, SessionFilter(metadata=page, create_time_from=later)),
        "to_third": _listed(client, SessionFilter(metadata=page, create_time_to=third)),
        "to_a_microsecond_later": _listed(client, SessionFilter(metadata=page, create_time_to=later)),
    }


def _resume_stream(client: Client) -> Json:
    broken = client.sessions.StreamSessions(StreamSessionsRequest(chunk_size=2, filter=PAGES))
    first = next(iter(broken))
    broken.cancel()
    rest = client.sessions.StreamSessions(
        StreamSessionsRequest(chunk_size=2, filter=PAGES, resume_token=first.resume_token)
    )
    return {"before": _ids(first.sessions), "after": [_ids(chunk.sessions) for chunk in rest]}


def _refusals(client: Client) -> Json:
    def append(expected_last_seq: int) -> AddMemoryResponse:
        return client.memory.AddMemory(
            AddMemoryRequest(
                session_id=SESSION_ID,
                messages=[Message(role="user", content="Only if nobody else wrote.")],
                expected_last_seq=expected_last_seq,
            )
        )

    nameless = AddMemoryRequest(session_id=SESSION_ID, messages=[Message(role="user"), Message(content="Who?")])
    return {
        "seq_mismatch": shown.failure(lambda: append(3)),
        "seq_mismatch_at_zero": shown.failure(lambda: append(0)),
        "seq_match": _added(append(4)),
        "invalid_field": shown.failure(lambda: client.memory.AddMemory(nameless)),
    }


def _delete_and_revive(client: Client) -> Json:
    get, read = GetSessionRequest(session_id=SESSION_ID), GetMemoryRequest(session_id=SESSION_ID)
    deleted = client.sessions.DeleteSession(DeleteSessionRequest(session_id=SESSION_ID)).session
    not_found = shown.failure(lambda: client.sessions.GetSession(get))
    forgotten = client.memory.GetMemory(read)
    revived = client.memory.AddMemory(
        AddMemoryRequest(session_id=SESSION_ID, messages=[Message(role="user", content="I am back.")])
    )
    memory = client.memory.GetMemory(read)
    return {
        "delete_session": shown.session(deleted),
        "not_found": not_found,
        "memory_of_deleted": _memory(forgotten),
        "revive": _added(revived),
        "memory_of_revived": _memory(memory),
    }


def _purge(client: Client) -> Json:
    """Removes the last of the pages, and the messages that the revived session had before."""
    last_page = PAGE_IDS[-1]
    client.sessions.DeleteSession(DeleteSessionRequest(session_id=last_page))
    kept = client.sessions.GetSession(GetSessionRequest(session_id=last_page, show_deleted=True)).session
    progress = list(client.admin.Purge(PurgeRequest(older_than=Duration(), batch_size=2)))
    removed = [each.sessions + each.messages + each.users for each in progress]
    end = progress[-1]
    gone = GetSessionRequest(session_id=last_page, show_deleted=True)
    return {
        "show_deleted": shown.session(kept),
        "purge": {
            "sessions": str(end.sessions),
            "messages": str(end.messages),
            "users": str(end.users),
            "several_responses": len(progress) > 1,
            "never_goes_back": all(earlier <= later for earlier, later in pairwise(removed)),
            "only_the_last_is_done": [each.done for each in progress] == [False] * (len(progress) - 1) + [True],
        },
        "purged": shown.failure(lambda: client.sessions.GetSession(gone)),
    }


def _update(client: Client, request: UpdateSessionRequest) -> Session:
    return client.sessions.UpdateSession(request).session


def _pages(client: Client) -> list[list[str]]:
    pages, token = [], ""
    while True:
        page = client.sessions.ListSessions(ListSessionsRequest(page_size=2, page_token=token, filter=PAGES))
        pages.append(_ids(page.sessions))
        token = page.next_page_token
        if not token:
            return pages


def _listed(client: Client, chosen: SessionFilter) -> list[str]:
    return _ids(client.sessions.ListSessions(ListSessionsRequest(filter=chosen)).sessions)


def _ids(sessions: Iterable[Session]) -> list[str]:
    return [session.session_id for session in sessions]


def _seqs(messages: Iterable[Message | AddedMessage]) -> list[str]:
    return [str(message.seq) for message in messages]


def _found(client: Client, request: SearchMemoryRequest) -> list[Message]:
    return [result.message for result in client.memory.SearchMemory(request).results]


def _added(response: AddMemoryResponse) -> Json:
    return {
        "session_created": response.session_created,
        "session_undeleted": response.session_undeleted,
        "seqs": _seqs(response.messages),
    }


def _memory(response: GetMemoryResponse) -> Json:
    return {
        "session": shown.session(response.session) if response.HasField("session") else None,
        "messages": [shown.message(each) for each in response.messages],
    }
