"""What each call costs a Citus: the commands that the coordinator sends to its nodes, as it tells of them itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import uuid4

import psycopg
import pytest

from recalld.domain import (
    Call,
    LocalCall,
    MetadataChange,
    MessageChange,
    NewMemory,
    PurgeQuery,
    SearchQuery,
    SessionChange,
    SessionQuery,
)
from recalld.storage import Database, PostgresStore
from recalld.storage.database import Connection
from tests.contract.asking import said, write

CALL = LocalCall("default")


class Watched(Database):
    """Notes what is sent to the nodes, besides the transactions around it."""

    def __init__(self, url: str) -> None:
        super().__init__(url, size=1)
        self.commands: list[str] = []

    @contextmanager
    def connection(self, call: Call) -> Iterator[Connection]:
        with super().connection(call) as connection:
            connection.execute("set citus.log_remote_commands = on")
            connection.add_notice_handler(self._note)
            try:
                yield connection
            finally:
                connection.remove_notice_handler(self._note)

    def _note(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        text = diagnostic.message_primary or ""
        if text.startswith("issuing "):
            self.commands.append(text.removeprefix("issuing "))
