#!/bin/sh
# Compiles the program; build.rs writes the stubs.
set -eu
cd "$(dirname "$0")"

cargo build --quiet --target-dir ../.build/rust
