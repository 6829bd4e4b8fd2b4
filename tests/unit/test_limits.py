"""The numbers in the proto comments are those of recalld.limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from recalld import limits

PROTOS = Path(__file__).parents[2] / "protos" / "recall" / "v1"


def comments() -> dict[str, str]:
    """The comment on each field, RPC and service, by `Message.field`, `Service.RPC` and `Service`, on one line."""
    comments, message, lines = dict[str, str](), "", list[str]()
    for path in sorted(PROTOS.glob("*.proto")):
        for line in map(str.strip, path.read_text(encoding="utf-8").splitlines()):
            if line.startswith("//"):
                lines.append(line.removeprefix("//").strip())
                continue
            if opened := re.match(r"(message|service) (\w+) {", line):
                message = opened[2]
                if opened[1] == "service":
                    comments[message] = " ".join(lines)
            elif called := re.match(r"rpc (\w+)", line):
                comments[f"{message}.{called[1]}"] = " ".join(lines)
            elif declared := re.match(r"[\w. ]+ (\w+) = \d+;", line):
                comments[f"{message}.{declared[1]}"] = " ".join(lines)
            lines = []
    return comments


COMMENTS = comments()

ID = f"1 to {limits.MAX_ID_CHARACTERS} "
NAME = f"up to {limits.MAX_NAME_CHARACTERS} characters"
ROLE = f"1 to {limits.MAX_ROLE_CHARACTERS} "
CONTENT = f"to {limits.MAX_CONTENT_BYTES // limits.MIB} MiB in UTF-8"
METADATA = f"{limits.MAX_METADATA_BYTES // limits.KIB} KiB as "
LEVELS = f"{limits.MAX_METADATA_DEPTH} levels deep"
PAGE_BYTES = f"{limits.MAX_PAGE_BYTES // limits.MIB} MiB"
CHUNK_BYTES = f"at most {limits.MAX_CHUNK_BYTES // limits.MIB} MiB"


def default(number: int, maximum: int) -> str:
    return f"Default (0): {number:,}. Above {maximum:,} means {maximum:,}; negative is an error."


# Fields, RPCs and services by the end of their path, and what the comment says. What points elsewhere, or is set by the
# server, does not repeat the numbers.
STATED = [
    (r"Request\.session_id", ID),
    (r"Request\.user_id", ID),
    (r"^(Session\.session_id|User\.user_id|SessionFilter\.user_id)", ID),
    (r"\.(email|first_name|last_name)", NAME),
    (r"^(Message|UpdateMessageRequest)\.role", ROLE),
    (r"^(Message|UpdateMessageRequest)\.content", CONTENT),
    (r"^(?!SessionFilter|SearchMemoryRequest).*\.metadata", METADATA),
    (r"^(?!SessionFilter|SearchMemoryRequest).*\.metadata", LEVELS),
    (r"^AddMemoryRequest\.messages", f"1 to {limits.MAX_MESSAGES_PER_CALL:,}"),
    (r"^SearchMemoryRequest\.query", f"1 to {limits.MAX_QUERY_CHARACTERS:,} characters"),
    (r"^SearchMemoryRequest\.roles", f"at most {limits.MAX_ROLES_PER_SEARCH}, each {ROLE}characters"),
    (r"\.(page_size|chunk_size)", default(limits.DEFAULT_PAGE_SIZE, limits.MAX_PAGE_SIZE)),
    (r"^GetMemoryRequest\.last_n", default(limits.DEFAULT_LAST_N, limits.MAX_LAST_N)),
    (r"^PurgeRequest\.batch_size", default(limits.DEFAULT_PURGE_BATCH, limits.MAX_PURGE_BATCH)),
    (r"^(List|GetMemory|SearchMemory)\w*Response\.(sessions|messages|users|results)", PAGE_BYTES),
    (r"^Stream\w*Response\.(sessions|users)", CHUNK_BYTES),
    (r"^\w+Service", f"a request above {limits.MAX_REQUEST_BYTES // limits.MIB} MiB"),
    (r"^\w+Service", f"metadata of a call above {limits.MAX_CALL_METADATA_BYTES // limits.KIB} KiB"),
    (r"\.SearchMemory", f"their first {limits.MAX_SEARCHED_CHARACTERS:,} characters"),
    (r"\.SearchMemory", f"at most {limits.MAX_SEARCHED_NEWEST:,} messages to search"),
    (r"\.SearchMemory", f"the {limits.MAX_SEARCHED_NEWEST:,} newest messages"),
    (r"\.SearchMemory", f"at most {limits.MAX_SEARCHED_RARE:,} messages;"),
]

CASES = [(field, phrase) for path, phrase in STATED for field in COMMENTS if re.search(f"{path}$", field)]


@pytest.mark.parametrize(("field", "phrase"), CASES)
def test_a_comment_states_its_limit(field: str, phrase: str) -> None:
    assert phrase in COMMENTS[field]


@pytest.mark.parametrize("path", sorted({path for path, _ in STATED}))
def test_a_statement_is_about_something(path: str) -> None:
    assert any(re.search(f"{path}$", field) for field in COMMENTS)


def test_every_number_in_a_comment_is_a_limit_or_no_number_of_ours() -> None:
    phrases = "|".join(re.escape(phrase) for _, phrase in STATED)
    known = rf"{phrases}|2\^53|UTF-8|RFC 7396|1, 2, 3|RFC 3339|MESSAGE_ORDER\w*|SESSION_ORDER\w*|\b[0-9]\b"
    left = {field: re.findall(r"\d[\d,]*", re.sub(known, "", comment)) for field, comment in COMMENTS.items()}
    assert {field: numbers for field, numbers in left.items() if numbers} == {}
