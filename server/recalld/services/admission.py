"""Who may call what, and how much at once: one table of scopes, and the interceptors that hold callers to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Final, NoReturn, Protocol, cast

import grpc

from recalld.access import NOBODY, Authenticator, Principal, Scope
from recalld.access.certificates import Identities
from recalld.access.quotas import Quotas
from recalld.errors import CredentialInvalid, CredentialMissing, Overloaded, ScopeMissing
from recalld.services.call import RpcCall, principal
from recalld.services.wrapping import Behaviour, Handler, Wrap, rewrapped

_SCOPES_BY_SERVICE: Final[Mapping[str, Mapping[Scope, str]]] = {
    "recall.v1.SessionService": {
        Scope.READ: "GetSession ListSessions StreamSessions",
        Scope.WRITE: "CreateSession UpdateSession DeleteSession UndeleteSession",
    },
    "recall.v1.MemoryService": {
        Scope.READ: "GetMemory ListMessages GetMessage SearchMemory",
        Scope.WRITE: "AddMemory UpdateMessage DeleteMessage ClearMemory",
    },
    "recall.v1.UserService": {
        Scope.READ: "GetUser ListUsers StreamUsers",
        Scope.WRITE: "CreateUser UpdateUser DeleteUser UndeleteUser",
    },
    "recall.v1.AdminService": {
        Scope.ADMIN: "Purge",
    },
    # Shows the addresses of all clients, whatever their namespace.
    "grpc.channelz.v1.Channelz": {
        Scope.ADMIN: "GetTopChannels GetServers GetServer GetServerSockets GetChannel GetSubchannel GetSocket",
    },
}

# What a credential must allow for each method. A method that is not here is open to nobody.
SCOPES: Final[Mapping[str, Scope]] = {
    f"/{service}/{method}": scope
    for service, methods_by_scope in _SCOPES_BY_SERVICE.items()
    for scope, methods in methods_by_scope.items()
    for method in methods.split()
}

_SCHEME: Final = "bearer "


class Admission(Protocol):
    """Decides who a caller is."""

    def __call__(self, context: grpc.ServicerContext) -> Principal:
        """Raises CredentialMissing, CredentialInvalid, CredentialExpired, and what asking the database raises."""


class CredentialAdmission:
    """Admits callers by the credential in the metadata `authorization`, else by their certificate.

    Args:
        authenticators: each for a kind of bearer credential.
        identities: who the clients' certificates belong to, when they show any.
    """

    def __init__(self, authenticators: Sequence[Authenticator], identities: Identities | None = None) -> None:
        self._authenticators = authenticators
        self._identities = identities

    def __call__(self, context: grpc.ServicerContext) -> Principal:
        values = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        if values:
            return self._authenticate(_credential(values), context)
        found = self._identities.find(_certificate_names(context)) if self._identities else None
        if found is None:
            raise CredentialMissing
        return found

    def _authenticate(self, credential: str, context: grpc.ServicerContext) -> Principal:
        for authenticator in self._authenticators:
            if authenticator.recognises(credential):
                return authenticator.authenticate(credential, RpcCall(context))
        raise CredentialInvalid


def admitting(admit: Admission | None) -> Wrap:
    """Makes an interceptor's `wrap` that lets only callers through whose credential allows the method.

    A stream can outlive its credential, so the credential is checked again before each further response: a longer
    interval would delay revocation. Most checks are answered from memory and take microseconds.

    Args:
        admit: tells who a caller is; None when authentication is off, and everyone may do everything.
    """

    def wrap(method: str, handler: Handler) -> Handler:
        scope = SCOPES.get(method)
        if scope is None:
            return rewrapped(handler, unary=lambda _: _closed, stream=lambda _: _closed)
        if admit is None:
            return handler

        def enter(context: grpc.ServicerContext) -> Principal:
            admitted = admit(context)
            if scope not in admitted.scopes:
                principal.set(admitted)  # the log names who was refused
                raise ScopeMissing(scope.value)
            return admitted

        def unary(behaviour: Behaviour) -> Behaviour:
            def answer(request: Any, context: grpc.ServicerContext) -> Any:
                principal.set(NOBODY)
                principal.set(enter(context))
                return behaviour(request, context)

            return answer

        def stream(behaviour: Behaviour) -> Behaviour:
            def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
                principal.set(NOBODY)
                first = enter(context)
                principal.set(first)
                # Closed before an error is answered, so that the stream has released what it holds.
                with closing(behaviour(request, context)) as responses:
                    for place, response in enumerate(responses):
                        # The namespace changes when the client's certificate has been mapped to another one.
                        if place and enter(context).namespace != first.namespace:
                            raise CredentialInvalid
                        yield response

            return answer

        return rewrapped(handler, unary, stream)

    return wrap


def sharing(quotas: Quotas, most_streams: int) -> Wrap:
    """Makes an interceptor's `wrap` that refuses calls beyond their namespace's quotas, and streams beyond a limit.

    An open stream holds a thread for as long as its reader likes.

    Args:
        quotas: of the namespaces.
        most_streams: streams open at once, of all callers.
    """
    streams = threading.Semaphore(most_streams)

    def unary(behaviour: Behaviour) -> Behaviour:
        if not quotas.limit_anything:
            return behaviour

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            namespace = principal.get().namespace
            quotas.enter(namespace)
            try:
                return behaviour(request, context)
            finally:
                quotas.leave(namespace)

        return answer

    def stream(behaviour: Behaviour) -> Behaviour:
        def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            namespace = principal.get().namespace
            quotas.enter(namespace)
            try:
                if not streams.acquire(blocking=False):
                    raise Overloaded
                try:
                    yield from behaviour(request, context)
                finally:
                    streams.release()
            finally:
                quotas.leave(namespace)

        return answer

    return lambda _method, handler: rewrapped(handler, unary, stream)


def _closed(request: Any, context: grpc.ServicerContext) -> NoReturn:
    raise ScopeMissing("none")


def _credential(values: Sequence[str | bytes]) -> str:
    value = values[0]
    if len(values) > 1 or not isinstance(value, str) or value[: len(_SCHEME)].lower() != _SCHEME:
        raise CredentialInvalid
    return value[len(_SCHEME) :].strip(" ")


def _certificate_names(context: grpc.ServicerContext) -> Iterator[str]:
    """The names in the client's certificate: its alternative names, then its common name."""
    # gRPC has checked the certificate itself, before the first call of the connection.
    proven = cast("Mapping[str, Sequence[bytes]]", context.auth_context())
    for field in ("x509_subject_alternative_name", "x509_common_name"):
        for name in proven.get(field, ()):
            yield name.decode(errors="replace")
