#!/bin/sh
# Writes the stubs. What they need is in requirements.txt.
set -eu
cd "$(dirname "$0")"

stubs=../.build/python
mkdir -p "$stubs"
"${PYTHON:-python3}" -m grpc_tools.protoc --proto_path=../../../protos --python_out="$stubs" --grpc_python_out="$stubs" \
	../../../protos/recall/v1/*.proto
