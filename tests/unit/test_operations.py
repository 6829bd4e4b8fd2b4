"""docs/operations.md, Dockerfile and compose.yaml keep up with the code, and are what they claim to be."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from grpc_health.v1.health import SERVICE_NAME
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from recalld.cli import recalld
from recalld.metrics import CallMetrics, Metrics
from recalld.serving import _EXIT_MARGIN
from recalld.settings import Settings, parse_duration, variable

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE = (ROOT / "compose.yaml").read_text("utf-8")

# Not of the server's settings: what clients take their key from, and what the page's own example calls a database.
OTHER_VARIABLES = {"RECALLD_API_KEY"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


MANIFESTS = [document for block in blocks("yaml") for document in yaml.safe_load_all(block)]


def manifest(kind: str) -> Any:
    [found] = [document for document in MANIFESTS if document.get("kind") == kind]
    return found


def container(kind: str) -> Any:
    [found] = manifest(kind)["spec"]["template"]["spec"]["containers"]
    return found


def environment(kind: str) -> dict[str, str | None]:
    return {entry["name"]: entry.get("value") for entry in container(kind)["env"]}


def settings_of(values: dict[str, str]) -> Settings:
    """The settings that these variables make, if they are good ones."""
    return Settings.load({name: values[variable(name)] for name in Settings.model_fields if variable(name) in values})


# --- settings and commands


@pytest.mark.parametrize("text", [PAGE, DOCKERFILE, COMPOSE], ids=["page", "Dockerfile", "compose"])
def test_every_variable_that_is_named_is_a_setting(text: str) -> None:
    known = {variable(name) for name in Settings.model_fields} | OTHER_VARIABLES
    named = set(re.findall(r"RECALLD_[A-Z_]+", text))
    assert named
    assert named <= known


def test_every_command_that_is_named_exists() -> None:
    named = set(re.findall(r"recalld (health|doctor|migrate|purge|keys|[a-z]+)(?= --|`)", PAGE))
    assert {"health", "doctor", "migrate", "purge"} <= named <= set(recalld.commands)


def test_every_option_that_is_named_exists() -> None:
    known = {option for command in recalld.commands.values() for param in command.params for option in param.opts}
    named = {
        option
        for command in re.findall(r"`recalld [a-z]+ (--[^`]*)`|`(--[a-z-]+)`", PAGE)
        for option in re.findall(r"--[a-z-]+", " ".join(command))
    }
    of_postgres = {"--jobs", "--single-transaction"}
    assert {"--grant-to", "--target", "--sql"} <= named
    assert named <= known | of_postgres


# --- Kubernetes


def test_the_manifests_are_whole() -> None:
    kinds = [document["kind"] for document in MANIFESTS if "kind" in document]
    assert kinds == ["Job", "Deployment", "Service", "PodDisruptionBudget"]
    assert all({"apiVersion", "metadata", "spec"} <= document.keys() for document in MANIFESTS if "kind" in document)


def test_the_parts_of_the_deployment_fit_each_other() -> None:
    labels = manifest("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert manifest("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("Service")["spec"]["selector"] == labels
    served = container("Deployment")
    ports = {port["name"]: port["containerPort"] for port in served["ports"]}
    assert [port["port"] for port in manifest("Service")["spec"]["ports"]] == [ports["grpc"]]
    assert environment("Deployment")["RECALLD_METRICS_LISTEN"] == f"0.0.0.0:{ports['metrics']}"
    assert f"RECALLD_LISTEN=0.0.0.0:{ports['grpc']}" in DOCKERFILE
    mounted = {mount["name"] for mount in served["volumeMounts"]}
    assert mounted == {volume["name"] for volume in manifest("Deployment")["spec"]["template"]["spec"]["volumes"]}


def test_the_probes_ask_for_what_there_is() -> None:
    served = container("Deployment")
    assert served["readinessProbe"]["grpc"] == {"port": 50051}
    assert served["livenessProbe"]["grpc"] == {"port": 50051, "service": SERVICE_NAME}
    [with_tls] = [document for document in MANIFESTS if "readinessProbe" in document]
    assert with_tls["readinessProbe"]["exec"]["command"] == ["recalld", "health"]


def test_the_servers_variables_are_good_and_leave_time_to_drain() -> None:
    values = {name: value for name, value in environment("Deployment").items() if value is not None}
    settings = settings_of(values)
    assert not settings.migrate
    kept = (settings.shutdown_delay + settings.shutdown_grace).total_seconds() + _EXIT_MARGIN
    period = manifest("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert period == kept
    delay, grace, margin, total = map(int, re.findall(r"(\d+) \+ (\d+) \+ (\d+) = (\d+)", PAGE)[0])
    assert (delay, grace, margin) == (
        settings.shutdown_delay.total_seconds(),
        settings.shutdown_grace.total_seconds(),
        _EXIT_MARGIN,
    )
    assert total == period
    # A server that drains must not be taken for one that hangs.
    liveness = container("Deployment")["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > kept


def test_the_migration_is_a_command() -> None:
    command, *options = container("Job")["args"]
    params = {option for param in recalld.commands[command].params for option in param.opts}
    assert {option for option in options if option.startswith("--")} <= params


# --- metrics and alerts


def exposed() -> dict[str, set[str]]:
    """The labels of every series, by its name."""
    metrics = Metrics()
    CallMetrics(metrics, "/recall.v1.MemoryService/AddMemory").count("OK")
    metrics.group_sizes("/recall.v1.MemoryService/AddMemory").observe(1)
    metrics.purged.labels("sessions").inc()
    metrics.pool_connections.labels("idle").set(1)
    series: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
    return series


def test_the_table_has_every_metric_with_its_labels() -> None:
    table = {
        name: set(re.findall(r"`(\w+)`", labels))
        for name, labels in re.findall(r"^\| `(recalld_\w+)` \| (.*?) ?\| ", PAGE, re.MULTILINE)
    }
    expected: dict[str, set[str]] = {}
    for name, labels in exposed().items():
        expected.setdefault(re.sub(r"_(bucket|count|sum)$", "", name), set()).update(labels - {"le"})
    assert table == expected


def alerts() -> Iterator[tuple[str, str]]:
    for document in MANIFESTS:
        for group in document.get("groups", []):
            yield from ((rule["alert"], rule["expr"]) for rule in group["rules"])


@pytest.mark.parametrize("expression", [pytest.param(expression, id=name) for name, expression in alerts()])
def test_an_alert_asks_for_metrics_and_labels_that_there_are(expression: str) -> None:
    series = exposed()
    selectors = re.findall(r"\b(recalld_\w+|up)(?:\{([^}]*)\})?", expression)
    assert selectors
    for name, matchers in selectors:
        labels = set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", matchers))
        assert labels <= (series[name] if name != "up" else {"job"}), name
    assert expression.count("(") == expression.count(")")


def test_the_metrics_that_are_named_elsewhere_are_there() -> None:
    assert set(re.findall(r"recalld_(?:calls?|group|pool|database|purged?|build)\w*", PAGE)) <= {
        *exposed(),
        "recalld_call_seconds",
        "recalld_group_size",
    }


# --- containers


def test_the_image_is_of_what_the_context_has() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in shlex.split(line)[:-1]
    }
    assert copied == set(kept)
    assert all((ROOT / source).exists() for source in copied)


def test_the_image_runs_as_a_user_who_is_not_root_and_from_no_named_registry() -> None:
    [user] = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert int(user.partition(":")[0]) > 0
    images = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert set(images) == {"python:3.13-slim"}
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert not re.search(r"\b(pip|apt-get|gcc)\b", last)
    assert 'CMD ["recalld", "health"]' in last


def test_the_python_of_the_image_is_one_that_is_supported() -> None:
    [version] = set(re.findall(r"python:(\d+\.\d+)-slim", DOCKERFILE))
    assert f"Python :: {version}" in (ROOT / "pyproject.toml").read_text("utf-8")


def test_compose_runs_the_server_with_good_settings_on_loopback_only() -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    server = services["recalld"]
    settings = settings_of({**server["environment"], "RECALLD_LISTEN": "0.0.0.0:50051"})
    assert settings.auth
    assert all(published.startswith("127.0.0.1:") for published in server["ports"])
    assert "ports" not in services["postgres"]
    assert server["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    grace = parse_duration(server["stop_grace_period"])
    assert grace > settings.shutdown_delay + settings.shutdown_grace
    # Passwords come from outside.
    assert not any(fnmatch(line, "*PASSWORD: [!$]*") for line in COMPOSE.splitlines())
