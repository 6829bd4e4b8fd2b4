#!/bin/sh
# Writes the stubs and compiles. Node looks for packages beside the sources, so these are copied to where the packages
# go. google-proto-files has the protos of the error details, which become types as our own do.
set -eu
cd "$(dirname "$0")"

protos=$(cd ../../../protos && pwd)
build=../.build/typescript
mkdir -p "$build"
rm -rf "$build/src" "$build/dist"
cp -R package.json tsconfig.json src "$build"
cd "$build"

npm install --no-package-lock --no-audit --no-fund --silent
mkdir src/stubs
protoc --plugin=node_modules/.bin/protoc-gen-ts_proto \
	--proto_path="$protos" --proto_path=node_modules/google-proto-files --ts_proto_out=src/stubs \
	--ts_proto_opt=env=node,esModuleInterop=true,importSuffix=.js,outputServices=grpc-js,forceLong=bigint,useDate=false \
	"$protos"/recall/v1/*.proto google/rpc/status.proto google/rpc/error_details.proto
node_modules/.bin/tsc
