"""`recalld keys create | list | revoke`: the API keys of callers, straight in the database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import click

from recalld.access import Scope
from recalld.cli.options import Duration, Text, database_of, unavailable, with_settings
from recalld.settings import Settings

if TYPE_CHECKING:
    from recalld.access.api_keys import ApiKey
    from recalld.storage.api_keys import ApiKeyRegistry

_SCOPES: Final = [scope.value for scope in Scope]
_COLUMNS: Final = ["Key", "Namespace", "Scopes", "Name", "State", "Created", "Expires"]


@click.group()
def keys() -> None:
    """Make, list and revoke API keys."""


@keys.command()
@with_settings("database_url", "data_dir")
@click.option("--namespace", type=Text(), metavar="NAME", help="The namespace that the key opens.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(_SCOPES), help="What it allows; once for each.")
@click.option("--name", type=Text(), metavar="TEXT", help="A note on who has it.")
@click.option(
    "--expires", type=Duration(), help="How long it is good for. [default: for ever; with --replace: as that one was]"
)
@click.option(
    "--replace",
    type=Text(),
    metavar="KEY_ID",
    help="Make it for the namespace, scopes and name of this key, which ends.",
)
@click.option(
    "--overlap", type=Duration(), default="24h", show_default=True, help="How long the replaced key goes on to work."
)
def create(
    settings: Settings,
    namespace: str | None,
    scopes: tuple[str, ...],
    name: str | None,
    expires: timedelta | None,
    replace: str | None,
    overlap: timedelta,
) -> None:
    """Make a key, and print it: only now, since all that is kept is a hash."""
    from recalld.access import parse_namespace, parse_scopes
    from recalld.errors import InvalidField
    from recalld.limits import MAX_NAME_CHARACTERS

    if replace is None:
        sufficient = namespace is not None and bool(scopes)
    else:
        sufficient = namespace is None and not scopes and name is None
    if not sufficient:
        raise click.UsageError("give --namespace and at least one --scope, or --replace without them")
    try:
        chosen = "" if namespace is None else parse_namespace(namespace)
    except InvalidField as error:
        raise click.UsageError(f"--namespace: {error.description}") from None
    if name is not None and (len(name) > MAX_NAME_CHARACTERS or not name.isprintable()):
        raise click.UsageError(f"--name: must have at most {MAX_NAME_CHARACTERS} characters, all of them visible")
    if expires is not None and not expires:
        raise click.UsageError("--expires: must be more than 0: the key would never work")
    with _registry(settings) as registry:
        made = (
            registry.create(chosen, parse_scopes(scopes), name or "", expires)
            if replace is None
            else registry.replace(replace, overlap, expires)
        )
    lifetime = f"good until {_time(made.expire_time)}" if made.expire_time else "good for ever"
    if made.replaced_ends is None:
        purpose = f"for namespace {chosen}: {', '.join(sorted({*scopes}))}"
    else:
        ended = "ended at" if made.replaced_ends <= datetime.now(UTC) else "works until"
        purpose = f"replaces {replace}, which {ended} {_time(made.replaced_ends)}"
    click.echo(made.text)
    click.echo(f"key {made.key_id} {purpose}; {lifetime}", err=True)


@keys.command("list")
@with_settings("database_url", "data_dir")
@click.option("--namespace", type=Text(), metavar="NAME", help="Only the keys of this namespace.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, a list of objects.")
def list_keys(settings: Settings, namespace: str | None, as_json: bool) -> None:
    """List the keys, oldest first, the ended ones too."""
    with _registry(settings) as registry:
        found = registry.find_all(namespace)
    rows = [_describe(key) for key in found]
    if as_json:
        import json

        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in _COLUMNS:
        # Never cut: what is listed is copied into the next command.
        table.add_column(column, overflow="fold", no_wrap=column == "Key")
    for row in rows:
        table.add_row(*(", ".join(value) if isinstance(value, list) else value for value in row.values()))
    Console(highlight=False, markup=False).print(table)


@keys.command()
@with_settings("database_url", "data_dir")
@click.argument("key_id", type=Text())
def revoke(settings: Settings, key_id: str) -> None:
    """End a key for good."""
    from recalld.limits import REVOCATION_SECONDS

    with _registry(settings) as registry:
        since = registry.revoke(key_id)
    click.echo(f"revoked {key_id} at {_time(since)}: within {REVOCATION_SECONDS:g} s of that no server takes it")


@contextmanager
def _registry(settings: Settings) -> Iterator[ApiKeyRegistry]:
    from recalld.errors import StorageUnavailable
    from recalld.storage import ApiKeyError, open_registry

    try:
        with database_of(settings) as url, open_registry(url) as registry:
            yield registry
    except StorageUnavailable as error:
        raise unavailable(error) from error
    except ApiKeyError as error:
        raise click.ClickException(str(error)) from error


def _describe(key: ApiKey) -> dict[str, str | list[str]]:
    now = datetime.now(UTC)
    state = "revoked" if key.revoke_time else "expired" if key.expire_time and key.expire_time <= now else "active"
    return {
        "key_id": key.key_id,
        "namespace": key.namespace,
        "scopes": sorted(scope.value for scope in key.scopes),
        "name": key.name,
        "state": state,
        "create_time": _time(key.create_time),
        "expire_time": _time(key.expire_time),
    }


def _time(time: datetime | None) -> str:
    return "" if time is None else time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
