"""Authentication and authorisation: principals, scopes, and what authenticates a caller.

Nothing here knows gRPC or Postgres. `recalld.services.admission` asks, once a call; API keys live in
`recalld.storage.api_keys`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from recalld.domain import Call
from recalld.errors import InvalidField
from recalld.limits import DEFAULT_NAMESPACE, MAX_NAMESPACE_CHARACTERS


class Scope(Enum):
    """What a credential allows. None includes another.

    `write` shows what it changes: an update answers with the merged whole.
    """

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credential was good.

    Attributes:
        namespace: the isolated world that it may touch.
        scopes: what it may do there.
        name: what it is called in the log: the id of an API key, the subject of a token or a certificate.
    """

    namespace: str
    scopes: frozenset[Scope]
    name: str


# Every caller, where authentication is off.
ANYONE: Final = Principal(DEFAULT_NAMESPACE, frozenset(Scope), "")

# A caller whose credential was not good, or has yet to be looked at.
NOBODY: Final = Principal("", frozenset(), "")


class Authenticator(Protocol):
    """Knows one kind of bearer credential."""

    def recognises(self, credential: str) -> bool:
        """Whether the credential looks like one of this kind, genuine or not."""

    def authenticate(self, credential: str, call: Call) -> Principal:
        """The principal that the credential was issued to.

        Args:
            credential: as the caller sent it, without `Bearer `.
            call: the call that it came with, which bounds the queries that are needed.

        Raises CredentialInvalid, CredentialExpired, and StorageUnavailable when it cannot be checked.
        """


def parse_namespace(value: object) -> str:
    """The value, if it can name a namespace: 1 to 64 visible characters. Raises InvalidField."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAMESPACE_CHARACTERS:
        raise InvalidField("namespace", f"must have 1 to {MAX_NAMESPACE_CHARACTERS} characters")
    if not value.isprintable() or " " in value:
        raise InvalidField("namespace", "must consist of visible characters, without spaces")
    return value


def parse_scopes(values: Sequence[object]) -> frozenset[Scope]:
    """The scopes of these names. Raises InvalidField for an unknown one."""
    try:
        return frozenset(Scope(value) for value in values)
    except ValueError:
        raise InvalidField("scopes", f"must be among {', '.join(scope.value for scope in Scope)}") from None
