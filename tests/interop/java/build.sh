#!/bin/sh
# Maven does it all: protoc, stubs, compiling, and a jar with its libraries beside it.
set -eu
cd "$(dirname "$0")"
mvn --batch-mode --quiet -Dmaven.test.skip=true package
