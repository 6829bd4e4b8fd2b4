"""Addresses to listen on, and why they cannot be had."""

from __future__ import annotations

import errno
import socket
from typing import Final

_REASONS: Final = {
    errno.EADDRINUSE: "it is in use",
    errno.EACCES: "this user may not listen on that port",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


def obstacle(address: str) -> str | None:
    """Why nobody can listen on HOST:PORT at this moment; None when one can."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, protocol, _, found = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found)
    except OSError as error:
        return why(error)
    return None


def why(error: OSError) -> str:
    """What the error of a bind() means."""
    if isinstance(error, socket.gaierror):
        return "there is no such host"
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


def refusal(address: str, obstacle: str | None) -> str:
    """What to say of an address that a server cannot have, and what to do about it."""
    obstacle = obstacle or "it was in use a moment ago"
    return f"cannot listen on {address}: {obstacle}; --listen chooses another address, :0 any free port"
