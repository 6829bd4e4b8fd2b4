#!/bin/sh
# Builds the stubs and the program. go.mod pins the plugins of protoc along with everything else.
set -eu
cd "$(dirname "$0")"

build=../.build/go
stubs=$build/stubs
mkdir -p "$build/bin" "$stubs"
printf 'module recalld\n\ngo 1.25\n' >"$stubs/go.mod"
go build -o "$build/bin/" tool
PATH="$PWD/$build/bin:$PATH" protoc --proto_path=../../../protos \
	--go_out="$stubs" --go_opt=module=recalld --go-grpc_out="$stubs" --go-grpc_opt=module=recalld \
	../../../protos/recall/v1/*.proto
go build -o "$build/interop" .
