"""API keys on Postgres: the server looks them up, `recalld keys` makes and ends them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict

from recalld.access import Scope
from recalld.access.api_keys import ApiKey, make_key
from recalld.domain import Call
from recalld.errors import StorageUnavailable
from recalld.storage.database import Database, connect
from recalld.storage.sql import statements

_SQL: Final = statements("api_key")


class ApiKeyError(Exception):
    """There is no such key, or it cannot be replaced; the text says so in one line."""


class MadeKey(NamedTuple):
    """A new key in full.

    Attributes:
        expire_time: None for a key that does not expire.
        replaced_ends: when the key that it replaces expires; None if it replaces none.
    """

    key_id: str
    text: str
    expire_time: datetime | None
    replaced_ends: datetime | None = None


class ApiKeys:
    """The keys as the server sees them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, key_id: str, call: Call) -> ApiKey | None:
        with self._database.connection(call) as connection:
            row = connection.execute(_SQL["find"], {"key_id": key_id}).fetchone()
        return None if row is None else _key(row)


class ApiKeyRegistry:
    """The keys as an operator sees them. Make one with `open_registry`."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def create(self, namespace: str, scopes: frozenset[Scope], name: str, lifetime: timedelta | None) -> MadeKey:
        """Makes a key, good for `lifetime`, or without one for ever."""
        return self._add(namespace, [scope.value for scope in scopes], name, lifetime)

    def replace(self, key_id: str, overlap: timedelta, lifetime: timedelta | None) -> MadeKey:
        """Makes a key with the namespace, scopes and name of another key, which then expires.

        Args:
            key_id: of the key to replace.
            overlap: for how long that key goes on to work, unless it expires earlier anyway.
            lifetime: of the new key; None for the lifetime that the other key was made with.

        Raises ApiKeyError.
        """
        values = {"key_id": key_id, "expire_time": datetime.now(UTC) + overlap}
        with self._connection.transaction():
            given = self._connection.execute(_SQL["lifetime"], values).fetchone()
            row = self._connection.execute(_SQL["expire"], values).fetchone()
            if given is None or row is None:
                raise ApiKeyError(f"there is no key {key_id}, or it is revoked")
            namespace, scopes, name, ends = row
            return self._add(namespace, scopes, name, lifetime or given[0])._replace(replaced_ends=ends)

    def find_all(self, namespace: str | None) -> list[ApiKey]:
        """The keys of a namespace, or all, oldest first."""
        return [_key(row) for row in self._connection.execute(_SQL["list"], {"namespace": namespace})]

    def revoke(self, key_id: str) -> datetime:
        """Revokes a key, and returns when it was revoked first. Raises ApiKeyError."""
        row = self._connection.execute(_SQL["revoke"], {"key_id": key_id, "now": datetime.now(UTC)}).fetchone()
        if row is None:
            raise ApiKeyError(f"there is no key {key_id}")
        revoked: datetime = row[0]
        return revoked

    def _add(self, namespace: str, scopes: list[str], name: str, lifetime: timedelta | None) -> MadeKey:
        key, now = make_key(), datetime.now(UTC)
        expire_time = None if lifetime is None else now + lifetime
        values = {
            "key_id": key.key_id,
            "digest": key.digest,
            "namespace": namespace,
            "scopes": sorted(scopes),
            "name": name,
            "now": now,
            "expire_time": expire_time,
        }
        self._connection.execute(_SQL["add"], values)
        return MadeKey(key.key_id, key.text, expire_time)


@contextmanager
def open_registry(url: str) -> Iterator[ApiKeyRegistry]:
    """A registry on a connection of its own. Raises StorageUnavailable, and ApiKeyError when it may not be used."""
    # Of several hosts the one that can be written to; a single one will do to read from.
    wanted = "read-write" if "," in str(conninfo_to_dict(url).get("host", "")) else "any"
    try:
        with connect(url, target_session_attrs=wanted, autocommit=True) as connection:
            yield ApiKeyRegistry(connection)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise ApiKeyError("the database has no keys yet: run `recalld migrate` first") from None
    except psycopg.errors.InsufficientPrivilege:
        raise ApiKeyError("the database's role may not do that: take the one of `recalld migrate`") from None
    except psycopg.OperationalError as error:
        raise StorageUnavailable from error
    except psycopg.Error as error:
        raise ApiKeyError(" ".join(str(error).split())) from error


def _key(row: tuple[Any, ...]) -> ApiKey:
    key = ApiKey(*row)
    # Scopes that a later version has introduced are left out.
    known = {scope.value: scope for scope in Scope}
    return replace(key, digest=bytes(key.digest), scopes=frozenset(known[s] for s in row[3] if s in known))
