"""README.md keeps up with the code: its tables, and the files, tests, commands and RPCs that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from recall.v1 import admin_pb2, memory_pb2, session_pb2, user_pb2
from recalld import errors, limits
from recalld.cli import recalld
from recalld.settings import Settings, format_duration, parse_duration, show, variable
from recalld.storage.keys import message_id, session_key

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def section(title: str, page: str = README) -> str:
    """The text between a heading and the next one, of any level."""
    match = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^##+ |\Z)", page, re.MULTILINE | re.DOTALL)
    assert match, f"no section {title!r}"
    return match[1]


def table(title: str, page: str = README) -> list[list[str]]:
    """The rows of a section's table, without its head."""
    rows = re.findall(r"^\| (.*) \|$", section(title, page), re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in rows[2:]]


def mebibytes(size: int) -> str:
    return f"{size // limits.MIB} MiB"


def pages(default: int, maximum: int) -> str:
    return f"default {default:,}, at most {maximum:,}"


def kinds(error: type[errors.RecallError]) -> set[type[errors.RecallError]]:
    return {error}.union(*(kinds(kind) for kind in error.__subclasses__()))


# The errors that clients see: the other classes only group them.
REASONS = [kind for kind in kinds(errors.RecallError) if hasattr(kind, "reason")]

# Each row of the table of limits, with what it must begin with.
LIMITS = {
    "`session_id`, `user_id`": f"1 to {limits.MAX_ID_CHARACTERS} characters",
    "`role`": f"1 to {limits.MAX_ROLE_CHARACTERS} characters",
    "`email`, `first_name`, `last_name`": f"up to {limits.MAX_NAME_CHARACTERS} characters",
    "`content`": f"up to {mebibytes(limits.MAX_CONTENT_BYTES)} in UTF-8",
    "`metadata`": (
        f"{limits.MAX_METADATA_BYTES // limits.KIB} KiB as compact JSON, {limits.MAX_METADATA_DEPTH} levels deep"
    ),
    "messages in one AddMemory": f"1 to {limits.MAX_MESSAGES_PER_CALL:,}",
    "`page_size`, `chunk_size`": pages(limits.DEFAULT_PAGE_SIZE, limits.MAX_PAGE_SIZE),
    "`last_n` of GetMemory": pages(limits.DEFAULT_LAST_N, limits.MAX_LAST_N),
    "`query`, `roles` of SearchMemory": (
        f"1 to {limits.MAX_QUERY_CHARACTERS:,} characters, up to {limits.MAX_ROLES_PER_SEARCH} roles"
    ),
    "`batch_size` of Purge": pages(limits.DEFAULT_PURGE_BATCH, limits.MAX_PURGE_BATCH),
    "a request": mebibytes(limits.MAX_REQUEST_BYTES),
    "a reply, a chunk of a stream": f"{mebibytes(limits.MAX_PAGE_BYTES)}, {mebibytes(limits.MAX_CHUNK_BYTES)}",
    "metadata of a call, its credential included": f"{limits.MAX_CALL_METADATA_BYTES // limits.KIB} KiB",
    "a namespace's name": f"1 to {limits.MAX_NAMESPACE_CHARACTERS} visible characters",
    "messages that one search looks at": (
        f"the newest {limits.MAX_SEARCHED_NEWEST:,}, and {limits.MAX_SEARCHED_RARE:,} that have rare words"
        f" of the query, however many there are; of each the first {limits.MAX_SEARCHED_CHARACTERS:,} characters"
    ),
    "sessions examined for one page": f"{limits.MAX_EXAMINED:,}",
}

# Named elsewhere: a setting's default, the world that everything belongs to, what credentials must be, and how large a
# scope a search takes for large.
NOT_IN_THE_TABLE = {
    *("KIB", "MIB", "DEFAULT_RETENTION", "DEFAULT_NAMESPACE", "REVOCATION_SECONDS", "LEAST_SECRET_BYTES"),
    "MAX_SEARCHED_SESSIONS",
}


def test_the_limits_are_those_of_the_code() -> None:
    rows = table("Limits")
    assert [what for what, _ in rows] == list(LIMITS)
    for what, limit in rows:
        assert re.match(rf"{re.escape(LIMITS[what])}(?![\d,]*\d)", limit), what


def test_every_limit_of_the_code_is_in_the_table() -> None:
    own = Path(__file__).read_text("utf-8")
    for name in (name for name in vars(limits) if name.isupper()):
        assert name in NOT_IN_THE_TABLE or f"limits.{name}" in own, name


def test_the_namespace_is_that_of_the_code() -> None:
    assert f"namespace `{limits.DEFAULT_NAMESPACE}`" in README
    assert f"namespace = '{limits.DEFAULT_NAMESPACE}'" in section("Operating")


def test_the_settings_are_those_of_the_code() -> None:
    expected = []
    for name, field in Settings.model_fields.items():
        # The real one follows XDG_DATA_HOME.
        default = "~/.local/share/recalld" if name == "data_dir" else show(field.default)
        expected.append([f"`{variable(name)}`", f"`{default}`" if default else "unset", field.description])
    assert table("Settings", SETTINGS) == expected


def test_durations_are_written_as_the_settings_read_them() -> None:
    [examples] = re.findall(r"Durations are ([^.]*)\. ", section("Settings", SETTINGS))
    for example in examples.split(", "):
        assert format_duration(parse_duration(example.strip("`"))) == example.strip("`")


def test_every_variable_that_is_named_is_a_setting() -> None:
    known = {variable(name) for name in Settings.model_fields} | {"TEST_DATABASE_URL"}
    assert set(re.findall(r"RECALLD_\w+", README)) <= known


def test_the_first_answer_has_the_id_that_the_server_makes() -> None:
    """The tests that run the page take any id."""
    made = message_id(session_key(limits.DEFAULT_NAMESPACE, "demo"), 1)
    assert f'"message_id": "{made}", "seq": "1"' in section("Sixty seconds")


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_nothing_is_said_to_come_from_a_registry_that_does_not_have_it(page: Path) -> None:
    assert not re.search(r"pip install '?recalld", page.read_text("utf-8"))


def test_every_rpc_is_in_the_table_and_in_the_protos() -> None:
    services = [
        service
        for file in (session_pb2, memory_pb2, user_pb2, admin_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
    ]
    expected = [(service.name, method.name) for service in services for method in service.methods]
    shown, service = [], ""
    for named, rpc, _ in table("The API"):
        service = named or service
        shown.append((service, rpc.strip("`")))
    assert shown == expected


def test_every_error_of_the_code_is_in_the_table_under_its_code() -> None:
    expected = {(kind.code.value, kind.reason) for kind in REASONS}
    shown = set()
    for codes, reasons, *_ in table("Errors"):
        if codes == "DEADLINE_EXCEEDED, CANCELLED":
            shown |= {(code, code) for code in reasons.split(", ")}
        else:
            shown |= {(codes, reason) for reason in reasons.split(", ")}
    assert shown == expected


def test_what_the_table_says_of_retries_is_so() -> None:
    for _, reasons, carries, _ in table("Errors"):
        for reason in reasons.split(", "):
            # A quota's RetryInfo depends on how much of it is used.
            retry = reason == "LIMIT_EXCEEDED" or any(kind.retry_after for kind in REASONS if kind.reason == reason)
            assert ("RetryInfo" in carries) == retry, reason


def test_every_promise_names_its_test() -> None:
    rows = table("What it guarantees")
    assert len(rows) > 10
    assert all(re.fullmatch(r"`tests/[\w/]+\.py::test_\w+`", held_by) for _, held_by in rows)


@pytest.mark.parametrize("named", sorted(set(re.findall(r"tests/[\w/]+\.py::\w+", README))))
def test_a_test_that_is_named_exists(named: str) -> None:
    path, _, function = named.partition("::")
    module = ast.parse((ROOT / path).read_text("utf-8"))
    assert function in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    "path",
    sorted(
        set(re.findall(r"`((?:protos|server|generated|tests|\.ci)/[\w./]*)`", README))
        | set(re.findall(r"\]\((?!http)([^)#]+)\)", README))
    ),
)
def test_a_path_that_is_named_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|^|_URL=\S+ )make ([a-z]+)", README, re.MULTILINE))))
def test_a_target_that_is_named_is_in_the_makefile(target: str) -> None:
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


def test_every_command_that_is_named_exists() -> None:
    named = set(re.findall(r"(?:`|bin/)recalld ([a-z]+)", README))
    assert {"serve", "migrate", "purge", "config"} <= named <= set(recalld.commands)


def test_the_page_is_short() -> None:
    assert len(README.splitlines()) < 400
