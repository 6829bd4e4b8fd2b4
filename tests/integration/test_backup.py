"""The commands of docs/operations.md for backup and restore, run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import grpc

from recall.v1.memory_pb2 import AddMemoryRequest, ListMessagesRequest, Message
from recall.v1.memory_pb2_grpc import MemoryServiceStub
from recall.v1.session_pb2 import DeleteSessionRequest, GetSessionRequest
from recall.v1.session_pb2_grpc import SessionServiceStub
from recalld.storage import open_registry
from tests.faults.cluster import Cluster, cluster, programs
from tests.integration.callers import create_key
from tests.integration.test_docs import blocks
from tests.processes import DEADLINE, running

DUMP, RESTORE = (block.text for block in blocks("operations.md", "sh") if "pg_" in block.text)

CONTENTS = ["first", "zweite — ü", "third\nof two lines"]


def test_what_is_restored_is_what_was_dumped(tmp_path: Path) -> None:
    with cluster() as postgres:
        with running(tmp_path, ["--database-url", postgres.url]) as server:
            fill(server.address)
            key = create_key(postgres.url, "shop")
            shell(DUMP, tmp_path, RECALLD_DATABASE_URL=postgres.url)
            add(server.address, "kept", ["after the dump"])
        restored = empty_database(postgres)
        told = shell(RESTORE, tmp_path, RESTORED_URL=restored)
        assert "nothing to do: the database is up to date" in told
        assert "as this version needs it" in told
        assert "error" not in told
        with running(tmp_path, ["--database-url", restored]) as server:
            check(server.address)
        with open_registry(restored) as registry:
            assert [found.key_id for found in registry.find_all(None)] == [key.split("_")[1]]


def fill(address: str) -> None:
    add(address, "kept", CONTENTS)
    add(address, "deleted", ["gone"])
    with grpc.insecure_channel(address) as channel:
        SessionServiceStub(channel).DeleteSession(DeleteSessionRequest(session_id="deleted"), timeout=DEADLINE)


def add(address: str, session: str, contents: list[str]) -> None:
    messages = [Message(role="user", content=content) for content in contents]
    with grpc.insecure_channel(address) as channel:
        request = AddMemoryRequest(session_id=session, messages=messages)
        MemoryServiceStub(channel).AddMemory(request, timeout=DEADLINE)


def check(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        page = MemoryServiceStub(channel).ListMessages(ListMessagesRequest(session_id="kept"), timeout=DEADLINE)
        assert [message.content for message in page.messages] == CONTENTS
        request = GetSessionRequest(session_id="deleted", show_deleted=True)
        deleted = SessionServiceStub(channel).GetSession(request, timeout=DEADLINE).session
        assert deleted.HasField("delete_time")
    add(address, "kept", ["and it goes on"])


def empty_database(postgres: Cluster) -> str:
    with postgres.connect() as connection:
        connection.execute("create database restored")
    return postgres.url.removesuffix("/recalld") + "/restored"


def shell(script: str, directory: Path, **environment: str) -> str:
    """Runs the script, where `recalld` is the one under test and Postgres' programs are those of the test's cluster."""
    commands = directory / "bin"
    commands.mkdir(exist_ok=True)
    recalld = commands / "recalld"
    recalld.write_text(f'#!/bin/sh\nexec {sys.executable} -m recalld "$@"\n')
    recalld.chmod(0o755)
    path = f"{commands}:{programs()}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-euc", script],
        cwd=directory,
        env={**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
