"""What programs call with: few of everything, so that calls meet each other's traces."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid5

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from hypothesis import strategies as st

from recall.v1 import memory_pb2

SESSIONS = ["s", "t", "\u00fc/3"]
USERS = ["ada", "bob"]
REQUEST_IDS = [str(UUID(int=number)) for number in (100, 200)]
MESSAGE_IDS = [str(UUID(int=number)) for number in (1, 2, 3)]
KNOWN_MESSAGE_IDS = [*MESSAGE_IDS, *(str(uuid5(UUID(each), str(index))) for each in REQUEST_IDS for index in range(2))]
TEXTS = ["apple", "pear", "apple plum", ""]
ROLES = ["user", "assistant"]
DOCUMENTS: list[dict[str, Any]] = [
    {},
    {"a": 1},
    {"a": True, "b": {"c": [1, {"d": None}]}},
    {"b": {"c": [1, 2]}},
    {"a": None},
    {"b": {"c": None, "e": "f"}},
]
# Each fits, but not both in one document.
LARGE: list[dict[str, Any]] = [{"large": "x" * 40_000}, {"too large": "y" * 40_000}]
PAGE_SIZES = [0, 1, 2]
SCOPES: list[dict[str, Any]] = [
    *[{}] * 4,
    *({"session_id": session_id} for session_id in SESSIONS),
    *({"user_id": user_id} for user_id in USERS),
]

# Any, live or not; and rather live ones, on which most calls do more.
any_session_ids = st.sampled_from(SESSIONS)
session_ids = st.runner().flatmap(lambda program: st.sampled_from(program.live_sessions() * 3 + SESSIONS))
any_user_ids = st.sampled_from(USERS)
user_ids = st.runner().flatmap(lambda program: st.sampled_from(program.live_users() * 2 + USERS))
maybe_user_ids = st.sampled_from(["", *USERS])
# Messages by their session's and their own id.
any_addresses = st.tuples(any_session_ids, st.sampled_from(KNOWN_MESSAGE_IDS))
addresses = any_addresses | st.runner().flatmap(
    lambda program: st.sampled_from(addresses) if (addresses := program.live_addresses()) else any_addresses
)
documents = st.sampled_from(DOCUMENTS)
page_sizes = st.sampled_from(PAGE_SIZES)
etags = st.sampled_from(["", "", "", "latest", "latest", "first", "wrong"])
texts = st.sampled_from(TEXTS)
roles = st.sampled_from(ROLES)
pauses = st.sampled_from([timedelta(milliseconds=1), timedelta(seconds=20), timedelta(minutes=2), timedelta(days=1)])
ages = st.sampled_from([0, 0, None, 1, 25 * 60 * 60])
messages = st.builds(
    memory_pb2.Message,
    message_id=st.sampled_from(["", "", *MESSAGE_IDS]),
    role=roles,
    content=texts,
    token_count=st.sampled_from([0, 0, 5]),
    metadata=documents.map(lambda document: struct_of(document)),
)


def struct_of(document: dict[str, Any]) -> Struct:
    return ParseDict(document, Struct())


def masks(*paths: str) -> st.SearchStrategy[FieldMask | None]:
    chosen = st.lists(st.sampled_from(paths), unique=True).map(lambda some: FieldMask(paths=some))
    return st.one_of(st.none(), st.none(), chosen, st.just(FieldMask(paths=["*"])))
