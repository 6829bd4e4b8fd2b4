"""Files that change while the server runs: read again when they do, and never in between."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recalld.access.files import FileError, Watched, read_bytes
from tests.access import Clock, put
from tests.waiting import wait_until

INTERVAL = 1.0

# Seconds. A deadline, not a delay.
DEADLINE = 30.0


class Reader:
    """Reads two files that belong together: a pair is good when both say the same."""

    def __init__(self, directory: Path) -> None:
        self.paths = [directory / "one", directory / "two"]
        self.reads = 0

    def __call__(self) -> str:
        self.reads += 1
        one, two = (read_bytes(path).decode() for path in self.paths)
        if one != two:
            raise FileError("they do not match")
        return one

    def write(self, one: str | None = None, two: str | None = None) -> None:
        for path, content in zip(self.paths, (one, two), strict=True):
            if content is not None:
                put(path, content)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    made = Reader(tmp_path)
    made.write("a", "a")
    return made


@pytest.fixture
def watched(reader: Reader, clock: Clock) -> Watched[str]:
    return Watched(reader.paths, reader, clock)


def change(path: Path, how: Callable[[Path], None]) -> None:
    """Changes a file in place, again and again until the clock of the file system has ticked."""
    before = path.stat().st_ctime_ns

    def ticked() -> bool:
        how(path)
        return path.stat().st_ctime_ns != before

    wait_until(ticked, "the clock of the file system stands still")


def test_unchanged_files_are_read_once(watched: Watched[str], reader: Reader, clock: Clock) -> None:
    first = watched.get()
    for _ in range(100):
        clock.advance(0.5)
        assert watched.get() is first
    assert reader.reads == 1


def test_a_change_is_seen_at_the_next_look_and_not_before(watched: Watched[str], reader: Reader, clock: Clock) -> None:
    reader.write("b", "b")
    clock.advance(INTERVAL - 0.001)
    assert watched.get() == "a"
    clock.advance(0.001)
    assert watched.get() == "b"
    assert reader.reads == 2


def test_of_two_files_replaced_one_after_the_other_the_old_pair_holds_until_both_are_there(
    watched: Watched[str], reader: Reader, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reader.write(one="b")
    for _ in range(5):
        clock.advance(INTERVAL)
        assert watched.get() == "a"
    assert reader.reads == 2
    reader.write(two="b")
    clock.advance(INTERVAL)
    assert watched.get() == "b"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "not replaced, the old one stays in use: they do not match"),
        ("INFO", f"read again: {reader.paths[0]}, {reader.paths[1]}"),
    ]


def test_a_file_that_is_gone_leaves_the_old_one_in_use(watched: Watched[str], reader: Reader, clock: Clock) -> None:
    reader.paths[0].unlink()
    clock.advance(INTERVAL)
    assert watched.get() == "a"
    reader.write("b", "b")
    clock.advance(INTERVAL)
    assert watched.get() == "b"


def test_a_file_moved_into_place_is_seen_though_its_size_and_time_are_the_same(
    watched: Watched[str], reader: Reader, clock: Clock, tmp_path: Path
) -> None:
    for path in reader.paths:
        before = path.stat()
        new = tmp_path / "new"
        new.write_text("b")
        os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
        new.replace(path)
    clock.advance(INTERVAL)
    assert watched.get() == "b"


def test_a_file_overwritten_with_its_old_time_is_seen(watched: Watched[str], reader: Reader, clock: Clock) -> None:
    def overwrite(path: Path) -> None:
        before = path.stat()
        path.write_text("b")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    for path in reader.paths:
        change(path, overwrite)
    clock.advance(INTERVAL)
    assert watched.get() == "b"


def test_a_link_that_is_turned_to_another_directory_is_seen(clock: Clock, tmp_path: Path) -> None:
    """As Kubernetes replaces the files of a secret, all at once."""
    link = tmp_path / "link"
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        Reader(tmp_path / name).write(name, name)
    link.symlink_to("old")
    reader = Reader(link)
    watched = Watched(reader.paths, reader, clock)
    assert watched.get() == "old"
    (tmp_path / "link2").symlink_to("new")
    (tmp_path / "link2").replace(link)
    clock.advance(INTERVAL)
    assert watched.get() == "new"


def test_another_mode_is_a_change(watched: Watched[str], reader: Reader, clock: Clock) -> None:
    """It may have made the file readable."""
    change(reader.paths[0], lambda path: path.chmod(0o640))
    clock.advance(INTERVAL)
    watched.get()
    assert reader.reads == 2


def test_files_that_cannot_be_read_at_first_are_an_error(reader: Reader, clock: Clock) -> None:
    reader.write(one="b")
    with pytest.raises(FileError, match="they do not match"):
        Watched(reader.paths, reader, clock)


def test_while_one_thread_looks_the_others_go_on_with_what_was_read(clock: Clock, tmp_path: Path) -> None:
    reading, answered = threading.Event(), threading.Event()
    reader = Reader(tmp_path)
    reader.write("a", "a")

    def read() -> str:
        if reader.reads:
            reading.set()
            assert answered.wait(DEADLINE)
        return reader()

    watched = Watched(reader.paths, read, clock)
    reader.write("b", "b")
    clock.advance(INTERVAL)
    with ThreadPoolExecutor(1) as pool:
        try:
            looking = pool.submit(watched.get)
            assert reading.wait(DEADLINE)
            assert [watched.get() for _ in range(10)] == ["a"] * 10
        finally:
            answered.set()
        assert looking.result(DEADLINE) == "b"
    assert watched.get() == "b"
    assert reader.reads == 2


@pytest.mark.parametrize(
    ("name", "said"), [("missing", "No such file or directory"), (".", "Is a directory"), ("a/b", "Not a directory")]
)
def test_what_cannot_be_read_is_named_with_the_reason(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(FileError) as caught:
        read_bytes(tmp_path / name)
    assert str(caught.value) == f"cannot read {tmp_path / name}: {said}"
