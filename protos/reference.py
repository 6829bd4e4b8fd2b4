"""Writes the API's reference, as Markdown, to stdout. `make docs` runs it.

What it says are the comments of the protos. Every service is a chapter: its RPCs, each with its request and response,
then the types that they share.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

PROTOS: Final = Path(__file__).parent

INTRODUCTION: Final = """\
# API reference

Package `recall.v1`, made from the comments in [protos/recall/v1](../protos/recall/v1) by `make docs`. \
The [README](../README.md) has the same API at work.
"""

# As one comes to need them; protos that are not named here follow.
READING_ORDER: Final = ("session", "memory", "user", "admin")

WELL_KNOWN_TYPES: Final = "https://protobuf.dev/reference/protobuf/google.protobuf/"

# Where descriptor.proto keeps things; a comment is found by the numbers of the fields on the way to what it is about.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_FIELDS, _VALUES, _METHODS, _ONEOFS = 2, 2, 2, 8


@dataclass
class File:
    """One proto, and what is said in it."""

    proto: FileDescriptorProto
    comments: dict[tuple[int, ...], str] = field(init=False)

    def __post_init__(self) -> None:
        locations = self.proto.source_code_info.location
        self.comments = {tuple(location.path): location.leading_comments for location in locations}

    def paragraphs(self, *path: int) -> list[str]:
        """The comment on what is at the path, without its line breaks."""
        comment = self.comments.get(path, "").strip()
        return [re.sub(r"\s+", " ", paragraph).strip() for paragraph in re.split(r"\n\s*\n", comment)]

    def messages(self) -> dict[str, tuple[int, DescriptorProto]]:
        return {f".{self.proto.package}.{one.name}": (at, one) for at, one in enumerate(self.proto.message_type)}


def described() -> list[FileDescriptorProto]:
    """The protos as protoc sees them, with their comments."""
    with TemporaryDirectory() as directory:
        result = Path(directory, "protos.binpb")
        protoc = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}", "--include_source_info"]
        subprocess.run(
            [*protoc, f"--descriptor_set_out={result}", *sorted(PROTOS.glob("recall/v1/*.proto"))], check=True
        )
        return list(FileDescriptorSet.FromString(result.read_bytes()).file)


def reference(files: Iterable[FileDescriptorProto]) -> str:
    """The whole page."""
    chapters = [File(proto) for proto in sorted(files, key=in_reading_order)]
    lines = [INTRODUCTION]
    for chapter in chapters:
        for service in chapter.proto.service:
            rpcs = ", ".join(link(rpc.name, rpc.name) for rpc in service.method)
            lines.append(f"- {link(service.name, service.name)}: {rpcs}")
    lines.append("")
    for chapter in chapters:
        lines += in_chapter(chapter)
    return "\n".join(lines)


def in_reading_order(proto: FileDescriptorProto) -> int:
    name = proto.name.rpartition("/")[2].removesuffix(".proto")
    return READING_ORDER.index(name) if name in READING_ORDER else len(READING_ORDER)


def in_chapter(file: File) -> Iterator[str]:
    messages = file.messages()
    for at, service in enumerate(file.proto.service):
        yield from in_service(file, at, service)
    of_rpcs = {name for service in file.proto.service for rpc in service.method for name in both(rpc)}
    for name, (at, message) in messages.items():
        if name not in of_rpcs:
            yield from in_message(file, at, message, "###")
    for at, enum in enumerate(file.proto.enum_type):
        yield from in_enum(file, at, enum)


def in_service(file: File, at: int, service: ServiceDescriptorProto) -> Iterator[str]:
    yield from (f"## {service.name}", "", *apart(file.paragraphs(_SERVICES, at)))
    for index, rpc in enumerate(service.method):
        yield from (f"### {rpc.name}", "", signature(rpc), "")
        yield from apart(file.paragraphs(_SERVICES, at, _METHODS, index))
        for name in both(rpc):
            yield from in_message(file, *file.messages()[name], "####")


def in_message(file: File, at: int, message: DescriptorProto, level: str) -> Iterator[str]:
    yield from (f"{level} {message.name}", "", *apart(file.paragraphs(_MESSAGES, at)))
    rows = [
        (str(one.number), f"`{one.name}`", kind(one), "<br>".join(file.paragraphs(_MESSAGES, at, _FIELDS, index)))
        for index, one in enumerate(message.field)
    ]
    yield from table(("No.", "Field", "Type", "Meaning"), rows)
    for index, _ in enumerate(message.oneof_decl):
        # protoc makes a oneof of every optional field, too.
        members = [one for one in message.field if one.HasField("oneof_index") and one.oneof_index == index]
        if not members[0].proto3_optional:
            choice = " and ".join(f"`{one.name}`" for one in members)
            told = file.paragraphs(_MESSAGES, at, _ONEOFS, index)
            yield from (f"At most one of {choice} is set. {' '.join(told)}".strip(), "")


def in_enum(file: File, at: int, enum: EnumDescriptorProto) -> Iterator[str]:
    yield from (f"### {enum.name}", "", *apart(file.paragraphs(_ENUMS, at)))
    rows = [
        (str(value.number), f"`{value.name}`", "<br>".join(file.paragraphs(_ENUMS, at, _VALUES, index)))
        for index, value in enumerate(enum.value)
    ]
    yield from table(("No.", "Value", "Meaning"), rows)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "| " + " | ".join("---" for _ in head) + " |"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def apart(paragraphs: list[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        yield from (paragraph, "")


def both(rpc: MethodDescriptorProto) -> tuple[str, str]:
    """The names of an RPC's request and response: no other RPC has them, as `buf lint` sees to."""
    return rpc.input_type, rpc.output_type


def signature(rpc: MethodDescriptorProto) -> str:
    request, response = (named(name) for name in both(rpc))
    return f"`rpc` {rpc.name} ( {request} ) `returns` ( {'`stream` ' if rpc.server_streaming else ''}{response} )"


def kind(one: FieldDescriptorProto) -> str:
    """A field's type, as the protos write it."""
    name = named(one.type_name) if one.type_name else FieldDescriptorProto.Type.Name(one.type)[len("TYPE_") :].lower()
    if one.proto3_optional:
        return f"optional {name}"
    return f"repeated {name}" if one.label == FieldDescriptorProto.LABEL_REPEATED else name


def named(name: str) -> str:
    """A type's own name, with a link to it."""
    short = name.rpartition(".")[2]
    if name.startswith(".google.protobuf."):
        return f"[{short}]({WELL_KNOWN_TYPES}#{re.sub(r'(?<=[a-z])(?=[A-Z])', '-', short).lower()})"
    return link(short, short)


def link(text: str, heading: str) -> str:
    return f"[{text}](#{heading.lower()})"


if __name__ == "__main__":
    print(reference(described()), end="")
