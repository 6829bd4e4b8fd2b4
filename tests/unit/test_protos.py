"""What `make breaking` lets pass, and what docs/api.md says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from protos.reference import READING_ORDER, described, in_reading_order, reference

ROOT = Path(__file__).parents[2]
RELEASED = sorted((ROOT / "protos" / "released").glob("*.binpb"))
BUF = shutil.which("buf", path=str(Path(sys.executable).parent)) or "buf"


def breaking(released: Path, protos: Path) -> subprocess.CompletedProcess[str]:
    """What `make breaking` does with one released version, in a directory with buf.yaml and protos/."""
    command = [BUF, "breaking", "--against", str(released)]
    return subprocess.run(command, cwd=protos, capture_output=True, text=True, timeout=60)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the protos that a test may change, with its buf.yaml."""
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    shutil.copytree(ROOT / "protos", tmp_path / "protos", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def change(copy: Path, file: str, pattern: str, replacement: str) -> None:
    """Replaces the one match of the pattern in a proto of the copy."""
    path = copy / "protos" / "recall" / "v1" / f"{file}.proto"
    text, changes = re.subn(pattern, replacement, path.read_text("utf-8"), flags=re.MULTILINE)
    assert changes == 1
    path.write_text(text, "utf-8")


def test_there_is_a_released_version() -> None:
    assert RELEASED


@pytest.mark.parametrize("released", RELEASED, ids=lambda released: released.stem)
def test_the_protos_break_no_client_of_a_released_version(released: Path) -> None:
    result = breaking(released, ROOT)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "pattern", "replacement", "rule"),
    [
        ("admin", r"^  bool done = 4;", "", "was deleted"),
        ("admin", r"^  bool done = 4;", "  reserved 4;", "was deleted"),
        ("admin", r"^  bool done = 4;", "  bool finished = 4;", 'from "done" to "finished"'),
        ("admin", r"^  bool done = 4;", "  string done = 4;", "changed type"),
        ("admin", r"^  bool done = 4;", "  bool done = 5;", "was deleted"),
        ("memory", r"^  optional int64 expected_last_seq", "  int64 expected_last_seq", "cardinality"),
        ("memory", r"^  MESSAGE_ORDER_SEQ_DESC = 2;", "", "was deleted"),
        ("user", r"^  rpc GetUser\(.*;", "", "was deleted"),
        ("user", r"(?s)^message GetUserResponse \{.*?^\}", "message GetUserResponse {}", "was deleted"),
        ("user", r"returns \(stream StreamUsersResponse\)", "returns (StreamUsersResponse)", "server streaming"),
        ("session", r"^option java_package = .*;", "", "java_package"),
    ],
)
def test_a_change_that_breaks_clients_is_found(
    copy: Path, file: str, pattern: str, replacement: str, rule: str
) -> None:
    change(copy, file, pattern, replacement)

    result = breaking(RELEASED[0], copy)

    assert result.returncode != 0
    assert rule in result.stdout


@pytest.mark.parametrize(
    ("file", "pattern", "replacement"),
    [
        ("admin", r"^  bool done = 4;", "  bool done = 4;\n\n  // New.\n  string detail = 1000;"),
        ("memory", r"^  MESSAGE_ORDER_SEQ_DESC = 2;", "  MESSAGE_ORDER_SEQ_DESC = 2;\n\n  MESSAGE_ORDER_NEW = 1000;"),
        ("user", r"^  // GetUser returns one user.", "  // Returns the user."),
    ],
)
def test_what_adds_to_the_api_breaks_nothing(copy: Path, file: str, pattern: str, replacement: str) -> None:
    change(copy, file, pattern, replacement)

    result = breaking(RELEASED[0], copy)

    assert result.returncode == 0, result.stdout


@pytest.fixture(scope="module")
def page() -> str:
    return reference(described())


def test_everything_in_the_protos_is_in_the_reference_with_what_is_said_of_it(page: str) -> None:
    for file in described():
        services, messages, enums = file.service, file.message_type, file.enum_type
        for name in [one.name for one in services] + [one.name for one in messages] + [one.name for one in enums]:
            assert re.search(rf"^##+ {name}$\n\n(?!#|\||$)", page, re.MULTILINE), name
        for rpc in (rpc for service in file.service for rpc in service.method):
            assert re.search(rf"^### {rpc.name}$\n\n`rpc` .*\n\n{rpc.name} ", page, re.MULTILINE), rpc.name
        for message in file.message_type:
            [section] = re.findall(rf"^##+ {message.name}$\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
            for field in message.field:
                assert re.search(rf"^\| {field.number} \| `{field.name}` \| .+ \| \S.* \|$", section, re.MULTILINE)
        for value in (value for enum in file.enum_type for value in enum.value):
            assert re.search(rf"^\| {value.number} \| `{value.name}` \| \S.* \|$", page, re.MULTILINE), value.name


def test_what_is_said_of_a_choice_of_fields_is_in_the_reference(page: str) -> None:
    assert "At most one of `session_id` and `user_id` is set. Where to look." in page
    assert "`expected_last_seq` is set" not in page


def test_every_link_within_the_reference_leads_to_one_heading(page: str) -> None:
    headings = [heading.lower() for heading in re.findall(r"^##+ (\w+)$", page, re.MULTILINE)]
    links = set(re.findall(r"\]\(#([^)]+)\)", page))

    assert len(links) > 50
    assert links <= set(headings)
    assert len(headings) == len(set(headings))


def test_every_proto_has_its_place_in_the_reference() -> None:
    assert {in_reading_order(file) for file in described()} == set(range(len(READING_ORDER)))
