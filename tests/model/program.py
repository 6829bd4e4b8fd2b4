"""A random program of calls, each sent to both sides, whose answers must be the same."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid5

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, initialize, rule

from recall.v1 import admin_pb2, memory_pb2, session_pb2, user_pb2
from tests.model.arguments import (
    LARGE,
    MESSAGE_IDS,
    REQUEST_IDS,
    ROLES,
    SCOPES,
    SESSIONS,
    TEXTS,
    USERS,
    addresses,
    ages,
    any_session_ids,
    any_user_ids,
    documents,
    etags,
    masks,
    maybe_user_ids,
    messages,
    page_sizes,
    pauses,
    roles,
    session_ids,
    struct_of,
    texts,
    user_ids,
)
from tests.model.driver import Machine, Reader, Sides, arranged_by
from tests.model.sides import Answer, Clock, Side


class Recalld(Machine):
    """Every RPC, with arguments from small pools. A rule is named by what it calls."""

    written: Bundle[memory_pb2.AddMemoryRequest] = Bundle("written")

    def __init__(self, sides: Sides) -> None:
        super().__init__(sides)
        self.readers: list[Reader] = []
        self.etags_before: dict[str, str] = {}

    @initialize(targets=[written])
    def begin(self) -> memory_pb2.AddMemoryRequest:
        """Something to work on, or programs would spend most of their calls on what does not exist."""
        for user_id in USERS:
            self.create_user(user_id, "", {})
        for session_id in SESSIONS:
            sent = [memory_pb2.Message(message_id=MESSAGE_IDS[0], role=ROLES[0], content=TEXTS[0])]
            request = memory_pb2.AddMemoryRequest(session_id=session_id, messages=sent, user_id=USERS[0])
            self.add(request)
        return request

    @rule(pause=pauses)
    def time_passes(self, pause: timedelta) -> None:
        self.sides.clock.advance(pause)

    # --- SessionService

    @rule(session_id=any_session_ids, user_id=maybe_user_ids, metadata=documents)
    def create_session(self, session_id: str, user_id: str, metadata: dict[str, Any]) -> None:
        request = session_pb2.CreateSessionRequest(session_id=session_id, user_id=user_id, metadata=struct_of(metadata))
        self.send("CreateSession", request)

    @rule(session_id=session_ids | st.just(""), show_deleted=st.booleans())
    def get_session(self, session_id: str, show_deleted: bool) -> None:
        self.send("GetSession", session_pb2.GetSessionRequest(session_id=session_id, show_deleted=show_deleted))

    @rule(
        session_id=session_ids,
        metadata=documents,
        user_id=maybe_user_ids,
        mask=masks("metadata", "user_id"),
        etag=etags,
    )
    def update_session(
        self, session_id: str, metadata: dict[str, Any], user_id: str, mask: FieldMask | None, etag: str
    ) -> None:
        self.send_with_etag(
            "UpdateSession",
            f"session {session_id}",
            etag,
            session_id=session_id,
            metadata=struct_of(metadata),
            user_id=user_id,
            update_mask=mask,
        )

    @rule(session_id=session_ids, allow_missing=st.booleans(), etag=etags)
    def delete_session(self, session_id: str, allow_missing: bool, etag: str) -> None:
        self.send_with_etag(
            "DeleteSession", f"session {session_id}", etag, session_id=session_id, allow_missing=allow_missing
        )

    @rule(session_id=any_session_ids, delete=st.booleans())
    def undelete_session(self, session_id: str, delete: bool) -> None:
        if delete:
            self.delete_session(session_id, True, "")
        self.send("UndeleteSession", session_pb2.UndeleteSessionRequest(session_id=session_id))

    @rule(
        size=page_sizes,
        user_id=maybe_user_ids,
        metadata=documents,
        bound=st.sampled_from(["", "create_time_from", "create_time_to", "update_time_from", "update_time_to"]),
        since=st.sampled_from([timedelta(seconds=10), timedelta(hours=1)]),
        order=st.sampled_from(session_pb2.SessionOrder.values()),
        show_deleted=st.booleans(),
        resume=st.integers(0, 9),
        token=st.sampled_from(["", "", "", "made up"]),
    )
    def list_and_stream_sessions(
        self,
        size: int,
        user_id: str,
        metadata: dict[str, Any],
        bound: str,
        since: timedelta,
        order: session_pb2.SessionOrder.ValueType,
        show_deleted: bool,
        resume: int,
        token: str,
    ) -> None:
        wanted = session_pb2.SessionFilter(user_id=user_id, metadata=struct_of(metadata))
        if bound:
            getattr(wanted, bound).CopyFrom(timestamp_of(self.sides.clock, since))
        page = session_pb2.ListSessionsRequest(
            page_size=size, filter=wanted, order_by=order, show_deleted=show_deleted, page_token=token
        )
        chunk = session_pb2.StreamSessionsRequest(
            chunk_size=size, filter=wanted, order_by=order, show_deleted=show_deleted
        )
        self.all_pages("ListSessions", page, "sessions", arranged_by(order))
        self.all_chunks("StreamSessions", chunk, "sessions", resume, arranged_by(order))

    @rule(size=st.sampled_from([1, 2]))
    def turn_the_page(self, size: int) -> None:
        """Begins a listing, or reads its next page, whatever has happened since the one before."""
        if not self.readers:
            self.readers = [Reader(self.sides.real), Reader(self.sides.reference)]
            self.etags_before = self.live_etags()
        for reader in self.readers:
            if not reader.ended:
                reader.read(size)
        if all(reader.ended for reader in self.readers):
            self.end_the_listing()

    def end_the_listing(self) -> None:
        """What was live throughout, and has the etag that it had at the beginning, must have been seen exactly once."""
        etags = self.live_etags()
        throughout = [each for each, etag in self.etags_before.items() if etags.get(each) == etag]
        for reader in self.readers:
            assert [reader.seen.count(each) for each in throughout] == [1] * len(throughout)
        self.readers = []
        self.sides.events["listing ended"] += 1
        self.sides.events["listing ended among changes"] += etags != self.etags_before

    @rule(session_id=session_ids, user_id=user_ids, of_user=st.booleans())
    def outgrow_metadata(self, session_id: str, user_id: str, of_user: bool) -> None:
        for document in map(struct_of, LARGE):
            if of_user:
                self.send("UpdateUser", user_pb2.UpdateUserRequest(user_id=user_id, metadata=document))
            else:
                self.send("UpdateSession", session_pb2.UpdateSessionRequest(session_id=session_id, metadata=document))

    # --- MemoryService

    @rule(
        target=written,
        session_id=session_ids,
        sent=st.lists(messages, min_size=1, max_size=3),
        user_id=maybe_user_ids,
        metadata=documents,
        request_id=st.sampled_from(["", *REQUEST_IDS]),
        expected_last_seq=st.sampled_from([None, None, None, 0, 2]),
        delete=st.sampled_from([False, False, True]),
    )
    def add_memory(
        self,
        session_id: str,
        sent: list[memory_pb2.Message],
        user_id: str,
        metadata: dict[str, Any],
        request_id: str,
        expected_last_seq: int | None,
        delete: bool,
    ) -> memory_pb2.AddMemoryRequest:
        if delete:
            self.delete_session(session_id, True, "")
        if not request_id and not any(message.message_id for message in sent):
            request_id = str(uuid5(UUID(int=0), str(self.sides.clock())))  # else each side makes ids of its own
        request = memory_pb2.AddMemoryRequest(
            session_id=session_id,
            messages=sent,
            user_id=user_id,
            metadata=struct_of(metadata),
            request_id=request_id,
            expected_last_seq=expected_last_seq,
        )
        return self.add(request)

    @rule(request=written)
    def repeat_add_memory(self, request: memory_pb2.AddMemoryRequest) -> None:
        self.add(request)

    def add(self, request: memory_pb2.AddMemoryRequest) -> memory_pb2.AddMemoryRequest:
        now = timestamp_of(self.sides.clock)
        for response in self.send("AddMemory", request).responses:
            self.sides.events["session created"] += response.session_created
            self.sides.events["session undeleted"] += response.session_undeleted
            self.sides.events["call repeated"] += response.messages[0].create_time != now
        return request

    @rule(
        session_id=session_ids,
        last_n=st.sampled_from([0, 1, 3]),
        max_tokens=st.sampled_from([0, 0, 1, 4, 9]),
        after_seq=st.integers(0, 5),
    )
    def get_memory(self, session_id: str, last_n: int, max_tokens: int, after_seq: int) -> None:
        request = memory_pb2.GetMemoryRequest(
            session_id=session_id, last_n=last_n, max_tokens=max_tokens, after_seq=after_seq
        )
        self.send("GetMemory", request)

    @rule(session_id=session_ids, size=page_sizes, order=st.sampled_from(memory_pb2.MessageOrder.values()))
    def list_messages(self, session_id: str, size: int, order: memory_pb2.MessageOrder.ValueType) -> None:
        request = memory_pb2.ListMessagesRequest(session_id=session_id, page_size=size, order=order)
        self.all_pages("ListMessages", request, "messages")

    @rule(address=addresses)
    def get_message(self, address: tuple[str, str]) -> None:
        session_id, message_id = address
        self.send("GetMessage", memory_pb2.GetMessageRequest(session_id=session_id, message_id=message_id))

    @rule(
        address=addresses,
        content=texts,
        role=roles,
        token_count=st.sampled_from([0, 3]),
        metadata=documents,
        mask=masks("content", "role", "token_count", "metadata"),
    )
    def update_message(
        self,
        address: tuple[str, str],
        content: str,
        role: str,
        token_count: int,
        metadata: dict[str, Any],
        mask: FieldMask | None,
    ) -> None:
        session_id, message_id = address
        request = memory_pb2.UpdateMessageRequest(
            session_id=session_id,
            message_id=message_id,
            content=content,
            role=role,
            token_count=token_count,
            metadata=struct_of(metadata),
            update_mask=mask,
        )
        self.send("UpdateMessage", request)

    @rule(address=addresses)
    def delete_message(self, address: tuple[str, str]) -> None:
        session_id, message_id = address
        self.send("DeleteMessage", memory_pb2.DeleteMessageRequest(session_id=session_id, message_id=message_id))

    @rule(session_id=session_ids)
    def clear_memory(self, session_id: str) -> None:
        self.send("ClearMemory", memory_pb2.ClearMemoryRequest(session_id=session_id))

    @rule(
        query=st.sampled_from(["apple", "plum pear", "user apple", "cherry"]),
        scope=st.sampled_from(SCOPES),
        only_roles=st.lists(roles, max_size=1),
        metadata=st.just({}) | documents,
    )
    def search_memory(self, query: str, scope: dict[str, Any], only_roles: list[str], metadata: dict[str, Any]) -> None:
        """Compares what is found. How well each matches is the text search's own affair."""
        request = memory_pb2.SearchMemoryRequest(query=query, roles=only_roles, metadata=struct_of(metadata), **scope)

        def ask(side: Side) -> Answer:
            answer = side.ask("SearchMemory", request)
            (response,) = answer.responses
            scores = [result.score for result in response.results]
            assert scores == sorted(scores, reverse=True)
            found = sorted(
                (result.message for result in response.results), key=lambda each: (each.session_id, each.seq)
            )
            return Answer(answer.code, responses=found)

        answer = self.both("SearchMemory", ask)
        self.sides.events["search found"] += bool(answer.responses)

    # --- UserService

    @rule(user_id=any_user_ids, email=st.sampled_from(["", "a@example.com"]), metadata=documents)
    def create_user(self, user_id: str, email: str, metadata: dict[str, Any]) -> None:
        request = user_pb2.CreateUserRequest(user_id=user_id, email=email, metadata=struct_of(metadata))
        self.send("CreateUser", request)

    @rule(user_id=user_ids, show_deleted=st.booleans())
    def get_user(self, user_id: str, show_deleted: bool) -> None:
        self.send("GetUser", user_pb2.GetUserRequest(user_id=user_id, show_deleted=show_deleted))

    @rule(
        user_id=user_ids,
        email=st.sampled_from(["", "b@example.com"]),
        first_name=st.sampled_from(["", "Ada"]),
        last_name=st.sampled_from(["", "Lovelace"]),
        metadata=documents,
        mask=masks("email", "first_name", "last_name", "metadata"),
        etag=etags,
    )
    def update_user(
        self, user_id: str, metadata: dict[str, Any], mask: FieldMask | None, etag: str, **names: str
    ) -> None:
        self.send_with_etag(
            "UpdateUser",
            f"user {user_id}",
            etag,
            user_id=user_id,
            metadata=struct_of(metadata),
            update_mask=mask,
            **names,
        )

    @rule(user_id=user_ids, allow_missing=st.booleans(), etag=etags)
    def delete_user(self, user_id: str, allow_missing: bool, etag: str) -> None:
        self.send_with_etag("DeleteUser", f"user {user_id}", etag, user_id=user_id, allow_missing=allow_missing)

    @rule(user_id=any_user_ids, delete=st.booleans())
    def undelete_user(self, user_id: str, delete: bool) -> None:
        if delete:
            self.delete_user(user_id, True, "")
        self.send("UndeleteUser", user_pb2.UndeleteUserRequest(user_id=user_id))

    @rule(size=page_sizes, show_deleted=st.booleans(), resume=st.integers(0, 9))
    def list_and_stream_users(self, size: int, show_deleted: bool, resume: int) -> None:
        page = user_pb2.ListUsersRequest(page_size=size, show_deleted=show_deleted)
        chunk = user_pb2.StreamUsersRequest(chunk_size=size, show_deleted=show_deleted)
        self.all_pages("ListUsers", page, "users")
        self.all_chunks("StreamUsers", chunk, "users", resume)

    # --- AdminService

    @rule(
        age=ages,
        scope=st.sampled_from(SCOPES),
        dry_run=st.sampled_from([False, False, True]),
        batch_size=st.sampled_from([0, 1, 2]),
        delete=st.booleans(),
    )
    def purge(self, age: int | None, scope: dict[str, Any], dry_run: bool, batch_size: int, delete: bool) -> None:
        if delete:
            self.delete_user(USERS[-1], True, "")
        older_than = None if age is None else Duration(seconds=age)
        request = admin_pb2.PurgeRequest(older_than=older_than, dry_run=dry_run, batch_size=batch_size, **scope)
        totals = self.purge_totals(request)
        if not dry_run:
            self.sides.events["sessions purged"] += totals.sessions
            self.sides.events["messages purged"] += totals.messages
            self.sides.events["users purged"] += totals.users

    # --- in the end

    def teardown(self) -> None:
        """Everything there is, deleted or not, must be the same."""
        sessions = session_pb2.ListSessionsRequest(show_deleted=True)
        self.all_pages("ListSessions", sessions, "sessions")
        self.all_pages("ListUsers", user_pb2.ListUsersRequest(show_deleted=True), "users")
        for session_id in SESSIONS:
            self.all_pages("ListMessages", memory_pb2.ListMessagesRequest(session_id=session_id), "messages")
        self.purge_totals(admin_pb2.PurgeRequest(older_than=Duration(), dry_run=True))


def timestamp_of(clock: Clock, before: timedelta = timedelta()) -> Timestamp:
    time = Timestamp()
    time.FromDatetime(clock() - before)
    return time
