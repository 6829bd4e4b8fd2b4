#!/bin/sh
# Writes the stubs of one language: protos/stubs.sh LANGUAGE DIRECTORY
#
# The generators that a language's own package manager has are installed below .tools/, once. A tool that only you can
# install is named. PYTHON is a Python with grpcio-tools, whose protoc is used.
set -eu

GO_PLUGIN=v1.36.12
GO_GRPC_PLUGIN=v1.6.2
TS_PROTO=2.18.0
GRPC_JAVA=1.83.1
PROTOC_JAVA=3.25.9 # what grpc-protobuf of that version depends on
PROST_PLUGIN=0.5.0
TONIC_PLUGIN=0.5.0

usage() {
	echo "usage: make stubs LANG=go|java|python|rust|typescript|csharp OUT=DIRECTORY" >&2
	exit 2
}

test -n "${2-}" || usage
language=$1
out=$2

python=${PYTHON:-python3}
# google/protobuf, which not every protoc comes with.
well_known=$("$python" -c 'import grpc_tools; print(grpc_tools.__path__[0] + "/_proto")')

mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")"
tools=$(cd .. && pwd)/.tools/stubs/$language
mkdir -p "$tools"

# need TOOL WHERE-FROM: ends here unless the tool is installed.
need() {
	command -v "$1" >/dev/null && return
	echo "stubs for $language need $1: $2" >&2
	exit 2
}

# generate ARGUMENT…: runs protoc on the API.
generate() {
	"${protoc:-protoc_of_grpcio_tools}" --proto_path=. --proto_path="$well_known" "$@" recall/v1/*.proto
}

protoc_of_grpcio_tools() {
	"$python" -m grpc_tools.protoc "$@"
}

# from_maven ARTIFACT VERSION: leaves the program at $tools/ARTIFACT.
from_maven() {
	test -x "$tools/$1" && return
	case $(uname -s)-$(uname -m) in
	Darwin-arm64) platform=osx-aarch_64 ;;
	Darwin-*) platform=osx-x86_64 ;;
	*-aarch64) platform=linux-aarch_64 ;;
	*) platform=linux-x86_64 ;;
	esac
	case $1 in
	protoc) group=com.google.protobuf ;;
	*) group=io.grpc ;;
	esac
	mvn --quiet --batch-mode dependency:copy -Dartifact="$group:$1:$2:exe:$platform" -DoutputDirectory="$tools"
	mv "$tools/$1-$2-$platform.exe" "$tools/$1"
	chmod +x "$tools/$1"
}

case $language in
python)
	generate --python_out="$out" --pyi_out="$out" --grpc_python_out="$out"
	;;
go)
	need go https://go.dev/doc/install
	GOBIN=$tools go install "google.golang.org/protobuf/cmd/protoc-gen-go@$GO_PLUGIN"
	GOBIN=$tools go install "google.golang.org/grpc/cmd/protoc-gen-go-grpc@$GO_GRPC_PLUGIN"
	generate --plugin="$tools/protoc-gen-go" --go_out="$out" --go_opt=module=recalld \
		--plugin="$tools/protoc-gen-go-grpc" --go-grpc_out="$out" --go-grpc_opt=module=recalld
	# The module that the packages import each other from.
	test -e "$out/go.mod" || (cd "$out" && go mod init recalld 2>/dev/null)
	;;
java)
	need mvn https://maven.apache.org/install.html
	from_maven protoc "$PROTOC_JAVA"
	from_maven protoc-gen-grpc-java "$GRPC_JAVA"
	protoc=$tools/protoc # that of grpcio-tools writes Python only
	generate --java_out="$out" --plugin="$tools/protoc-gen-grpc-java" --grpc-java_out="$out"
	;;
rust)
	need cargo https://rustup.rs
	# Not optimised: compiling that takes twice as long, and writing stubs a moment either way.
	CARGO_PROFILE_DEV_DEBUG=false cargo install --debug --quiet --locked --root "$tools" "protoc-gen-prost@$PROST_PLUGIN" "protoc-gen-tonic@$TONIC_PLUGIN"
	generate --plugin="$tools/bin/protoc-gen-prost" --prost_out="$out" \
		--plugin="$tools/bin/protoc-gen-tonic" --tonic_out="$out"
	;;
typescript)
	need npm https://nodejs.org
	npm install --silent --no-audit --no-fund --no-save --no-package-lock --prefix "$tools" "ts-proto@$TS_PROTO"
	# Exact times and int64: neither Date nor number holds them.
	generate --plugin="$tools/node_modules/.bin/protoc-gen-ts_proto" --ts_proto_out="$out" \
		--ts_proto_opt=env=node,outputServices=grpc-js,esModuleInterop=true,importSuffix=.js \
		--ts_proto_opt=forceLong=bigint,useDate=false
	;;
csharp)
	origin="it is in the NuGet package Grpc.Tools"
	need protoc "$origin"
	need grpc_csharp_plugin "$origin"
	protoc=protoc
	generate --csharp_out="$out" --plugin=protoc-gen-grpc="$(command -v grpc_csharp_plugin)" --grpc_out="$out"
	;;
*) usage ;;
esac
cp recall/v1/service_config.json "$out"
echo "stubs for $language are in $out, with the retry policy in service_config.json"
