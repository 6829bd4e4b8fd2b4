"""`make stubs`: Python's here and now, the other languages' with their own tools (`make interop`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A tool that must be there, and the file that has the client of MemoryService.
LANGUAGES = {
    "csharp": ("grpc_csharp_plugin", "MemoryGrpc.cs"),
    "go": ("go", "recall/v1/memory_grpc.pb.go"),
    "java": ("mvn", "io/recalld/v1/MemoryServiceGrpc.java"),
    "rust": ("cargo", "recall/v1/recall.v1.tonic.rs"),
    "typescript": ("npm", "recall/v1/memory.ts"),
}


def write_stubs(*arguments: str | Path, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    """Runs the script as `make stubs` does."""
    environment = {**os.environ, "PYTHON": sys.executable, "PATH": path}
    command = ["/bin/sh", ROOT / "protos" / "stubs.sh", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_pythons_can_be_used_by_themselves(tmp_path: Path) -> None:
    done = write_stubs("python", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    code = (
        "import grpc; from recall.v1 import memory_pb2, memory_pb2_grpc;"
        "stub = memory_pb2_grpc.MemoryServiceStub(grpc.insecure_channel('localhost'));"
        "print(memory_pb2.__file__, hasattr(stub, 'AddMemory'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    used = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert used.stdout.split() == [str(tmp_path / "recall" / "v1" / "memory_pb2.py"), "True"]


def test_the_service_config_comes_with_them(tmp_path: Path) -> None:
    assert write_stubs("python", tmp_path).returncode == 0
    config = ROOT / "protos" / "recall" / "v1" / "service_config.json"
    assert (tmp_path / "service_config.json").read_bytes() == config.read_bytes()


@pytest.mark.parametrize(
    "arguments", [(), ("python",), ("klingon", "stubs")], ids=["nothing", "no_directory", "language"]
)
def test_wrong_usage_is_told_with_what_is_right(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = write_stubs(*(str(tmp_path) if argument == "stubs" else argument for argument in arguments))
    assert done.returncode == 2
    assert "LANG=go|java|python|rust|typescript|csharp OUT=DIRECTORY" in done.stderr


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_tool_that_is_missing_is_named(language: str, tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for command in ("dirname", "mkdir"):
        (commands / command).symlink_to(shutil.which(command) or "")
    if language == "csharp":
        (commands / "protoc").symlink_to("/bin/true")
    done = write_stubs(language, tmp_path / "stubs", path=str(commands))
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"stubs for {language} need {LANGUAGES[language][0]}: ")


@pytest.mark.interop
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("language", LANGUAGES)
def test_those_of_another_language_have_the_client(language: str, tmp_path: Path) -> None:
    tool, client = LANGUAGES[language]
    if shutil.which(tool) is None:
        pytest.skip(f"{language} needs {tool}")
    done = write_stubs(language, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "recall.v1.MemoryService" in (tmp_path / client).read_text()
