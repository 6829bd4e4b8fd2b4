"""The programs: for each language what it needs, how it is built, and how it is run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE / ".build"

# Seconds. The first build of a language downloads and compiles its gRPC library.
BUILD_DEADLINE = 1000.0
RUN_DEADLINE = 180.0


@dataclass(frozen=True)
class Language:
    """One program. Commands run in its directory; `{python}` is the Python that runs the tests."""

    name: str
    tools: tuple[str, ...]
    build: tuple[str, ...]
    run: tuple[str, ...]

    @property
    def missing_tools(self) -> list[str]:
        return [tool for tool in self.tools if shutil.which(tool) is None]


LANGUAGES = [
    Language("go", ("go",), ("sh", "build.sh"), ("../.build/go/interop",)),
    Language("java", ("java", "mvn"), ("sh", "build.sh"), ("java", "-jar", "../.build/java/interop.jar")),
    Language("python", (), ("sh", "build.sh"), ("env", "PYTHONPATH=../.build/python", "{python}", "-m", "interop")),
    Language("rust", ("cargo",), ("sh", "build.sh"), ("../.build/rust/debug/interop",)),
    Language("typescript", ("node", "npm"), ("sh", "build.sh"), ("node", "../.build/typescript/dist/main.js")),
]


class ProgramError(Exception):
    """A program that could not be built or did not do what it was told; the text has what it wrote."""


class Program:
    """A program that is built."""

    def __init__(self, language: Language) -> None:
        self.language = language

    def run(self, *arguments: str, environment: Mapping[str, str]) -> str:
        """What the program prints. Raises ProgramError when it fails, and on a deadline of RUN_DEADLINE."""
        return _run(self.language, (*self.language.run, *arguments), environment, RUN_DEADLINE)


def build(language: Language) -> Program:
    """Builds a program, whose tools must be there. Raises ProgramError."""
    _provide_protoc()
    _run(language, language.build, {}, BUILD_DEADLINE)
    return Program(language)


def _provide_protoc() -> None:
    """Puts the protoc of grpcio-tools where builds find it: one version for all, and nothing to install."""
    protoc = BUILD / "bin" / "protoc"
    protoc.parent.mkdir(parents=True, exist_ok=True)
    protoc.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m grpc_tools.protoc "$@"\n')
    protoc.chmod(0o755)


def _run(language: Language, command: tuple[str, ...], variables: Mapping[str, str], deadline: float) -> str:
    words = [word.format(python=sys.executable) for word in command]
    # A developer's own configuration must not reach the programs.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RECALLD_")}
    path = os.pathsep.join([str(BUILD / "bin"), inherited.get("PATH", os.defpath)])
    try:
        done = subprocess.run(
            words,
            cwd=HERE / language.name,
            env={**inherited, "PATH": path, "PYTHON": sys.executable, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=deadline,
        )
    except OSError as error:
        raise ProgramError(f"{words} in {language.name}/ cannot be run: {error}") from None
    except subprocess.TimeoutExpired as expired:
        raise ProgramError(f"{words} has not ended after {deadline:.0f} seconds: {expired.stderr!r}") from None
    if done.returncode != 0:
        raise ProgramError(f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout
