"""`recalld serve` as a process, and the same server in this process: start, health, and every way to stop."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import grpc
import psutil
import psycopg
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, Message
from recall.v1.memory_pb2_grpc import MemoryServiceStub
from recall.v1.session_pb2 import DeleteSessionRequest
from recall.v1.session_pb2_grpc import SessionServiceStub
from recalld.app import Server, StartError
from recalld.cli import run
from recalld.embedded import postgres
from recalld.settings import Settings
from recalld.storage import MigrationError
from tests.faults.cluster import free_port
from tests.fuzz.http2 import ACK, END_HEADERS, HEADERS, PING, Connection, call_headers, frame, header_block
from tests.integration.callers import row_locked
from tests.postgres import Databases
from tests.processes import DEADLINE, NOT_SERVING, SERVING, Process, await_health, running, runs, start
from tests.waiting import wait_until

API = {f"recall.v1.{name}Service" for name in ("Admin", "Memory", "Session", "User")}


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Not in pytest's directory: as root, Postgres is another user, and every pytest that starts locks others out."""
    with tempfile.TemporaryDirectory(prefix="recalld-data-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@contextmanager
def serving(tmp_path: Path, data_dir: Path, *arguments: str) -> Iterator[Process]:
    """A server on an embedded Postgres, which has come to serve; killed in the end if it still runs, and so is that."""
    with running(tmp_path, ["--data-dir", str(data_dir), *arguments]) as process:
        try:
            yield process
        finally:
            if process.runs:
                process.signal(signal.SIGKILL)
                with suppress(FileNotFoundError):
                    postmaster(data_dir).kill()


def postmaster(data_dir: Path) -> psutil.Process:
    return psutil.Process(int((data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0]))


def add_hello(channel: grpc.Channel, session_id: str = "demo") -> None:
    messages = [Message(role="user", content="hello")]
    MemoryServiceStub(channel).AddMemory(AddMemoryRequest(session_id=session_id, messages=messages), timeout=DEADLINE)


def settings(url: str, **flags: str) -> Settings:
    return Settings.load({"listen": "127.0.0.1:0", "database_url": url, **flags})


def services_by_reflection(channel: grpc.Channel) -> set[str]:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    [response] = stub.ServerReflectionInfo(iter([request]), timeout=DEADLINE)
    return {service.name for service in response.list_services_response.service}


# --- a process on an embedded Postgres


def test_it_says_where_it_listens_where_the_data_is_and_what_to_try(tmp_path: Path, data_dir: Path) -> None:
    with serving(tmp_path, data_dir) as process:
        listens, data, example = process.announced
        assert re.fullmatch(r"recalld \S+ listens on 127\.0\.0\.1:[1-9]\d*", listens)
        assert data == f"data: embedded Postgres in {data_dir}"
        assert example.startswith("try:  grpcurl -plaintext -d '{")
        assert example.endswith(f"' {process.address} recall.v1.MemoryService/AddMemory")


def test_its_database_has_the_locale_in_which_texts_are_made_searchable_fastest(tmp_path: Path, data_dir: Path) -> None:
    with serving(tmp_path, data_dir), postgres(data_dir) as url, psycopg.connect(url) as connection:
        locale = "select datlocprovider, datlocale from pg_database where datname = current_database()"
        assert connection.execute(locale).fetchone() == ("b", "C.UTF-8")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_its_postgres_and_the_data_stays(
    number: signal.Signals, tmp_path: Path, data_dir: Path
) -> None:
    with serving(tmp_path, data_dir) as process:
        database = postmaster(data_dir)
        assert runs(database)
        with grpc.insecure_channel(process.address) as channel:
            add_hello(channel)
        process.signal(number)
        assert process.wait() == 0
        assert not runs(database)
    with serving(tmp_path, data_dir) as process, grpc.insecure_channel(process.address) as channel:
        memory = MemoryServiceStub(channel).GetMemory(GetMemoryRequest(session_id="demo"), timeout=DEADLINE)
        assert [message.content for message in memory.messages] == ["hello"]


def test_ctrl_c_lets_calls_finish_before_postgres_stops(tmp_path: Path, data_dir: Path) -> None:
    with (
        serving(tmp_path, data_dir, "--lock-timeout", "1m", "--shutdown-grace", "1m") as process,
        grpc.insecure_channel(process.address) as channel,
        ThreadPoolExecutor() as threads,
    ):
        watch = HealthStub(channel).Watch(HealthCheckRequest(), timeout=DEADLINE)
        assert next(watch).status == SERVING
        with psycopg.connect(f"host={data_dir}/postgres user=postgres dbname=recalld") as connection:
            connection.execute("lock table recalld.session in access exclusive mode")
            call = threads.submit(add_hello, channel)
            await_blocked(connection)
            process.signal(signal.SIGINT, group=True)
            assert next(watch).status == NOT_SERVING
            assert not call.done()
        watch.cancel()
        call.result(DEADLINE)
        assert process.wait() == 0


def await_blocked(connection: psycopg.Connection[Any]) -> None:
    """Returns once a statement of the server waits for a lock that `connection` holds."""
    connection.execute(
        """do $$ declare deadline timestamptz = clock_timestamp() + interval '30 s'; begin
        while not exists (select from pg_locks where not granted) loop
            if clock_timestamp() > deadline then raise 'nothing waits'; end if;
            perform pg_sleep(0.01);
        end loop; end $$"""
    )


def test_an_open_stream_ends_with_the_grace(tmp_path: Path, data_dir: Path) -> None:
    with serving(tmp_path, data_dir, "--shutdown-grace", "200ms") as process:
        with grpc.insecure_channel(process.address) as channel:
            watch = HealthStub(channel).Watch(HealthCheckRequest(), timeout=DEADLINE)
            assert next(watch).status == SERVING
            process.signal(signal.SIGTERM)
            with pytest.raises(grpc.RpcError) as ended:
                list(watch)
            assert ended.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert process.wait() == 0


def test_a_second_signal_ends_the_grace(tmp_path: Path, data_dir: Path) -> None:
    with serving(tmp_path, data_dir, "--shutdown-grace", "1h") as process:
        database = postmaster(data_dir)
        with grpc.insecure_channel(process.address) as channel, Connection(process.address, DEADLINE) as connection:
            watch = HealthStub(channel).Watch(HealthCheckRequest(), timeout=DEADLINE)
            assert next(watch).status == SERVING
            # A call whose request never comes, which is in progress when the ping behind it is answered.
            headers = header_block(call_headers(b"/recall.v1.SessionService/GetSession"))
            connection.open()
            connection.send(frame(HEADERS, END_HEADERS, 1, headers) + frame(PING, payload=bytes(8)))
            next(each for each in connection.frames() if each.kind == PING and each.flags & ACK)
            process.signal(signal.SIGTERM)
            assert next(watch).status == NOT_SERVING
            with pytest.raises(grpc.RpcError):
                next(watch)
            assert process.runs
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
            assert not runs(database)


def test_it_starts_again_after_both_were_killed(tmp_path: Path, data_dir: Path) -> None:
    with serving(tmp_path, data_dir) as process:
        with grpc.insecure_channel(process.address) as channel:
            add_hello(channel)
        postmaster(data_dir).kill()
        process.signal(signal.SIGKILL)
        process.wait()
    with serving(tmp_path, data_dir) as process, grpc.insecure_channel(process.address) as channel:
        memory = MemoryServiceStub(channel).GetMemory(GetMemoryRequest(session_id="demo"), timeout=DEADLINE)
        assert [message.content for message in memory.messages] == ["hello"]


def test_a_killed_server_leaves_a_postgres_that_the_next_one_takes_over(tmp_path: Path, data_dir: Path) -> None:
    with serving(tmp_path, data_dir) as process:
        database = postmaster(data_dir)
        process.signal(signal.SIGKILL)
        process.wait()
    assert runs(database)
    with serving(tmp_path, data_dir) as process:
        assert postmaster(data_dir) == database
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert not runs(database)


def test_the_last_of_two_servers_on_one_directory_stops_postgres(tmp_path: Path, data_dir: Path) -> None:
    with serving(tmp_path, data_dir) as first, serving(tmp_path, data_dir) as second:
        database = postmaster(data_dir)
        first.signal(signal.SIGTERM)
        assert first.wait() == 0
        assert runs(database)
        second.signal(signal.SIGTERM)
        assert second.wait() == 0
        assert not runs(database)


def test_a_frozen_database_is_noticed_and_so_is_its_return(tmp_path: Path, data_dir: Path) -> None:
    with serving(tmp_path, data_dir) as process:
        database = postmaster(data_dir)
        # The postmaster first: then nothing new starts, and what ends meanwhile stays as a zombie.
        database.suspend()
        everyone = [database, *database.children(recursive=True)]
        try:
            for one in everyone[1:]:
                one.suspend()
            await_health(process.address, NOT_SERVING, "recall.v1.MemoryService")
        finally:
            for one in everyone:
                one.resume()
        await_health(process.address, SERVING, "recall.v1.MemoryService")


def test_a_port_in_use_is_one_clear_line(tmp_path: Path, database_url: str) -> None:
    with Server(settings(database_url)) as server:
        command = [sys.executable, "-m", "recalld", "serve", "--listen", server.address, "--data-dir", str(tmp_path)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert second.returncode == 1
        assert second.stdout == ""
        [line] = second.stderr.splitlines()
        assert line.startswith(f"recalld: cannot listen on {server.address}: it is in use; --listen ")
        await_health(server.address, SERVING)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only some systems have it")
def test_a_server_that_cannot_say_where_it_listens_serves_all_the_same(tmp_path: Path, database_url: str) -> None:
    address, stderr = f"127.0.0.1:{free_port()}", tmp_path / "stderr"
    command = [sys.executable, "-m", "recalld", "serve", "--listen", address, "--database-url", database_url]
    with (
        Path("/dev/full").open("w") as full,
        stderr.open("w") as errors,
        subprocess.Popen(command, stdout=full, stderr=errors) as process,
    ):
        try:
            wait_until(lambda: "cannot write to stdout: No space left on device" in stderr.read_text(), "it has room")
            await_health(address, SERVING)
            process.terminate()
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()
    assert "Traceback" not in stderr.read_text()


@pytest.mark.parametrize("name", ["with space", "with'quote", "with$dollar"])
def test_a_directory_that_the_embedded_postgres_cannot_use_is_one_clear_line(name: str, tmp_path: Path) -> None:
    with start(["--data-dir", str(tmp_path / name)], tmp_path / "stderr") as process:
        assert process.wait(DEADLINE) == 1
    [line] = (tmp_path / "stderr").read_text().splitlines()
    assert line.startswith(f"recalld: data directory {tmp_path / name}")


# --- a server in this process, on a database of the test's


def test_it_serves_no_call_before_there_is_a_database_and_then_does(databases: Databases) -> None:
    with databases.empty() as url:
        missing = url.replace("/recalld_test_", "/recalld_late_")
        name = urlsplit(missing).path.removeprefix("/")
        with (
            Server(settings(missing, pool_timeout="200ms")) as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            await_health(server.address, NOT_SERVING)
            with pytest.raises(grpc.RpcError) as refused:
                add_hello(channel)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"create database {name}")
                try:
                    await_health(server.address, SERVING)
                    add_hello(channel)
                    server.stop()
                finally:
                    connection.execute(f"drop database {name} with (force)")


def test_every_service_has_health_and_reflection(database_url: str) -> None:
    with Server(settings(database_url)) as server, grpc.insecure_channel(server.address) as channel:
        for service in API:
            await_health(server.address, SERVING, service)
        beside = {"grpc.health.v1.Health", "grpc.channelz.v1.Channelz", "grpc.reflection.v1alpha.ServerReflection"}
        assert services_by_reflection(channel) == API | beside
        servers = channelz_pb2_grpc.ChannelzStub(channel).GetServers(channelz_pb2.GetServersRequest(), timeout=DEADLINE)
        assert len(servers.server) >= 1


def test_one_call_too_many_is_resource_exhausted(database_url: str) -> None:
    with (
        Server(settings(database_url, max_concurrent_calls="1", lock_timeout="1m")) as server,
        grpc.insecure_channel(server.address) as channel,
        ThreadPoolExecutor() as threads,
    ):
        await_health(server.address, SERVING)
        with psycopg.connect(database_url) as connection:
            connection.execute("lock table recalld.session in access exclusive mode")
            call = threads.submit(add_hello, channel)
            await_blocked(connection)
            with pytest.raises(grpc.RpcError) as refused:
                add_hello(channel)
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        call.result(DEADLINE)


def test_an_unknown_search_language_ends_it(databases: Databases) -> None:
    with (
        databases.empty() as url,
        Server(settings(url, search_language="klingon")) as server,
        pytest.raises(MigrationError, match=r"search_language.*klingon"),
    ):
        server.wait()


def test_two_servers_cannot_share_a_port(database_url: str) -> None:
    with Server(settings(database_url)) as server:
        second = Server(settings(database_url, listen=server.address))
        with pytest.raises(StartError, match=server.address):
            second.start()


# --- commands on a database and a server


def test_migrate_says_what_it_did(databases: Databases, capsys: pytest.CaptureFixture[str]) -> None:
    with databases.empty() as url:
        assert run(["migrate", "--database-url", url]) == 0
        assert "migrated: 0001_initial" in capsys.readouterr().out.splitlines()
        assert run(["migrate", "--database-url", url]) == 0
        assert capsys.readouterr().out == "nothing to do: the database is up to date\n"


def test_a_search_language_that_the_database_does_not_know_is_a_wrong_setting(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["migrate", "--database-url", database_url, "--search-language", "klingon"]) == 2
    told = "recalld: search_language: the database has no text search configuration 'klingon'"
    assert capsys.readouterr().err.splitlines() == [told]


def test_the_sql_for_a_schema_that_needs_a_newer_server_is_refused(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("update recalld.alembic_version set version_num = '9999'")
        connection.execute("create or replace function recalld.oldest_server() returns text language sql return '9998'")
    assert run(["migrate", "--database-url", database_url, "--sql"]) == 1
    assert capsys.readouterr().err.endswith(": upgrade recalld\n")


def test_the_sql_is_refused_to_a_role_without_rights(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        name = f"recalld_test_{uuid4().hex}"
        connection.execute(f"create role {name} login password 'secret'".encode())
        try:
            parts = urlsplit(database_url)
            url = parts._replace(netloc=f"{name}:secret@{parts.netloc.rpartition('@')[2]}").geturl()
            assert run(["migrate", "--database-url", url, "--sql"]) == 1
        finally:
            connection.execute(f"drop role {name}".encode())
    remedy = "recalld: the database's role may not do that: run `recalld migrate` as the schema's owner ("
    assert capsys.readouterr().err.startswith(remedy)


def test_migrate_without_a_database_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["migrate", "--database-url", "postgresql://127.0.0.1:1/none"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("recalld: the database is not available: ")
    assert last.endswith(": check RECALLD_DATABASE_URL, the network, Postgres")


def test_purge_shows_what_was_removed(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Server(settings(database_url)) as server, grpc.insecure_channel(server.address) as channel:
        await_health(server.address, SERVING)
        add_hello(channel)
        SessionServiceStub(channel).DeleteSession(DeleteSessionRequest(session_id="demo"), timeout=DEADLINE)
        purge = ["purge", "--older-than", "0", "--target", server.address]
        assert run([*purge, "--dry-run"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == "would remove 1 sessions, 1 messages, 0 users"
        assert run([*purge, "--session", "other"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == "removed 0 sessions, 0 messages, 0 users"
        assert run([*purge, "--session", "demo"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == "removed 1 sessions, 1 messages, 0 users"


def test_purge_that_fails_shows_what_it_removed_all_the_same(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        Server(settings(database_url, lock_timeout="100ms")) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        await_health(server.address, SERVING)
        for session_id in ("demo", "locked"):
            add_hello(channel, session_id)
            SessionServiceStub(channel).DeleteSession(DeleteSessionRequest(session_id=session_id), timeout=DEADLINE)
        with row_locked(database_url, "default", "locked"):
            assert run(["purge", "--older-than", "0", "--target", server.address]) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == "removed 1 sessions, 1 messages, 0 users so far"
    assert shown.err.startswith("recalld: ABORTED: ")
