// Command interop is a client of recalld with nothing but grpc-go and stubs
// generated from the protos. What it does is in ../README.md.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
)

func main() {
	work, ok := command(os.Args[1:])
	if !ok {
		fmt.Fprintln(os.Stderr, "usage: interop tour | load N")
		os.Exit(2)
	}
	if err := run(context.Background(), work); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// command is what the arguments ask for, if they ask for anything.
func command(arguments []string) (func(context.Context, *Client) (object, error), bool) {
	switch {
	case len(arguments) == 1 && arguments[0] == "tour":
		return tour, true
	case len(arguments) == 2 && arguments[0] == "load":
		calls, err := strconv.Atoi(arguments[1])
		if err != nil || calls < 0 {
			return nil, false
		}
		return func(ctx context.Context, client *Client) (object, error) {
			acknowledged, err := load(ctx, client.memory, calls)
			return object{"acknowledged": acknowledged}, err
		}, true
	}
	return nil, false
}

// run connects, does the work, and prints what it saw.
func run(ctx context.Context, work func(context.Context, *Client) (object, error)) error {
	client, err := connect()
	if err != nil {
		return err
	}
	defer client.Close()
	seen, err := work(ctx, client)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(seen)
}
