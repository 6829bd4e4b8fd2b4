"""Checks across settings: values that are valid singly but not together, or that expose the server by accident."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from recalld.settings import Settings, SettingsError, variable

# Settings that mean nothing without another.
_NEEDED: Final = {
    "tls_cert_file": "tls_key_file",
    "tls_key_file": "tls_cert_file",
    "tls_client_ca_file": "tls_cert_file",
    "tls_identities_file": "tls_client_ca_file",
}


def check_serving(settings: Settings) -> None:
    """Raises SettingsError, with one line for each problem, unless a server may run with these settings."""
    problems = [*_incomplete(settings), *_exposed(settings)]
    if problems:
        raise SettingsError("\n".join(problems))


def _incomplete(settings: Settings) -> Iterator[str]:
    def given(*names: str) -> list[str]:
        return [variable(name) for name in names if getattr(settings, name)]

    sources = given("jwt_secret", "jwt_key_file", "jwt_jwks_file")
    claims = given("jwt_issuer", "jwt_audience")
    if len(sources) > 1:
        yield f"{', '.join(sources)}: only one of them can be set"
    if sources and len(claims) < 2:
        yield f"{sources[0]}: needs RECALLD_JWT_ISSUER and RECALLD_JWT_AUDIENCE"
    if claims and not sources:
        yield f"{claims[0]}: needs a key: RECALLD_JWT_SECRET, RECALLD_JWT_KEY_FILE or RECALLD_JWT_JWKS_FILE"
    for name in [*sources, *given("tls_identities_file")]:
        if not settings.auth:
            yield f"{name}: needs RECALLD_AUTH"
    if settings.max_streams is not None and settings.max_streams >= settings.max_concurrent_calls:
        yield f"RECALLD_MAX_STREAMS: must be less than RECALLD_MAX_CONCURRENT_CALLS, {settings.max_concurrent_calls}"
    for name, needed in _NEEDED.items():
        if getattr(settings, name) and not getattr(settings, needed):
            yield f"{variable(name)}: needs {variable(needed)}"


def _exposed(settings: Settings) -> Iterator[str]:
    if settings.insecure or settings.on_loopback:
        return
    for missing, remedy in (
        (not settings.tls_cert_file, "without TLS: set RECALLD_TLS_CERT_FILE and RECALLD_TLS_KEY_FILE"),
        (not settings.auth, "without authentication: set RECALLD_AUTH"),
    ):
        if missing:
            yield f"RECALLD_LISTEN: {settings.listen} would be open to others {remedy}, or say --insecure"
