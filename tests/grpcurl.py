"""The real grpcurl, where there is one: where GRPCURL says, in .tools (`make grpcurl` puts it there), or on PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

_LOCAL = Path(__file__).resolve().parents[1] / ".tools"

GRPCURL = os.environ.get("GRPCURL") or shutil.which("grpcurl", path=_LOCAL) or shutil.which("grpcurl")

needs_grpcurl = pytest.mark.skipif(GRPCURL is None, reason="no grpcurl: install Go, then `make grpcurl`")

DEADLINE = 30.0  # seconds


def run_grpcurl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What grpcurl does, given its arguments; only for tests marked needs_grpcurl."""
    assert GRPCURL is not None
    return subprocess.run([GRPCURL, *arguments], capture_output=True, encoding="utf-8", timeout=DEADLINE)


def documents(text: str) -> list[Any]:
    """The JSON documents that follow one another in a text, as grpcurl prints those of a stream."""
    found, decoder, rest = [], json.JSONDecoder(), text.strip()
    while rest:
        document, end = decoder.raw_decode(rest)
        found.append(document)
        rest = rest[end:].strip()
    return found
