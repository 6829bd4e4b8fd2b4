"""`recalld health`: what a server's health says, as an exit status, for container health checks and scripts."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from recalld.cli.options import Duration, Text, asks_server, connected, reachable, refused, with_settings
from recalld.settings import Settings

if TYPE_CHECKING:
    from recalld.client import Client


@click.command()
@with_settings("listen")
@click.option("--service", type=Text(), metavar="NAME", help="The service to ask about. [default: the whole server]")
@click.option("--timeout", type=Duration(), default="3s", show_default=True, help="How long to wait for the answer.")
@asks_server
def health(settings: Settings, service: str | None, timeout: timedelta, **options: Any) -> int:
    """Ask a server for its health: exit status 0 when it is SERVING, else 1.

    Without --target it asks the server that has these settings, whatever its certificate is made out to.
    """
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    options["api_key"] = None  # health needs none
    named = any(value for value in options.values())
    own = not named and settings.tls_cert_file is not None
    with _own_server(settings) if own else connected(settings, options) as client:
        try:
            request = HealthCheckRequest(service=service or "")
            answer = HealthStub(client.channel).Check(request, timeout.total_seconds())
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise click.ClickException(f"NOT_FOUND: the server has no service {service}") from None
            raise refused(error) from None
    click.echo(HealthCheckResponse.ServingStatus.Name(answer.status))
    return int(answer.status != HealthCheckResponse.SERVING)


def _own_server(settings: Settings) -> Client:
    """A client of the server with these settings, on this machine. It trusts exactly that server's certificate."""
    from recalld.access.certificates import name_of
    from recalld.access.files import FileError
    from recalld.client import Tls, connect

    assert settings.tls_cert_file is not None
    mutual = settings.tls_client_ca_file is not None
    try:
        tls = Tls(settings.tls_cert_file, *((settings.tls_cert_file, settings.tls_key_file) if mutual else ()))
        override = ("grpc.ssl_target_name_override", name_of(settings.tls_cert_file))
        return connect(reachable(settings.listen), tls=tls, options=[override])
    except (FileError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
