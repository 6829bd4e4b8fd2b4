"""Addresses to listen on: why one cannot be had, each reason in its own words."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from recalld.addresses import obstacle, refusal, why


def test_a_free_address_has_no_obstacle() -> None:
    assert obstacle("127.0.0.1:0") is None


def test_one_that_is_in_use_is_told_from_one_that_this_machine_does_not_have() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert obstacle(address) == "it is in use"
        assert refusal(address, obstacle(address)).startswith(f"cannot listen on {address}: it is in use; --listen ")
    assert obstacle("192.0.2.1:0") == "this machine has no such address"  # of TEST-NET-1, which nobody has


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), "this user may not listen on that port"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "there is no such host"),
        (OSError(errno.ENOBUFS, "No buffer space available"), "No buffer space available"),
    ],
)
def test_what_else_can_be_wrong(error: OSError, words: str) -> None:
    assert why(error) == words
