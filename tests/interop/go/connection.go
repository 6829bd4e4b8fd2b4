package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	recallv1 "recalld/recall/v1"
)

const deadline = 10 * time.Second

// Client is the four services on one connection.
type Client struct {
	*grpc.ClientConn
	sessions recallv1.SessionServiceClient
	memory   recallv1.MemoryServiceClient
	users    recallv1.UserServiceClient
	admin    recallv1.AdminServiceClient
}

// connect makes the client that the environment describes. It connects with
// the first call.
func connect() (*Client, error) {
	serviceConfig, err := os.ReadFile(os.Getenv("RECALLD_SERVICE_CONFIG"))
	if err != nil {
		return nil, fmt.Errorf("RECALLD_SERVICE_CONFIG: %w", err)
	}
	transport := insecure.NewCredentials()
	caFile := os.Getenv("RECALLD_CA_FILE")
	if caFile != "" {
		if transport, err = credentials.NewClientTLSFromFile(caFile, ""); err != nil {
			return nil, fmt.Errorf("RECALLD_CA_FILE: %w", err)
		}
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(string(serviceConfig)),
		grpc.WithUnaryInterceptor(withDeadline),
	}
	if key := os.Getenv("RECALLD_API_KEY"); key != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer{key, caFile != ""}))
	}
	connection, err := grpc.NewClient(os.Getenv("RECALLD_TARGET"), options...)
	if err != nil {
		return nil, err
	}
	return &Client{
		connection,
		recallv1.NewSessionServiceClient(connection),
		recallv1.NewMemoryServiceClient(connection),
		recallv1.NewUserServiceClient(connection),
		recallv1.NewAdminServiceClient(connection),
	}, nil
}

// withDeadline gives a deadline to a call that has none. Streams get theirs
// where they are opened: only there is it known when one has been read.
func withDeadline(
	ctx context.Context, method string, request, reply any,
	connection *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	if _, has := ctx.Deadline(); !has {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, deadline)
		defer cancel()
	}
	return invoke(ctx, method, request, reply, connection, options...)
}

// bearer sends an API key with every call.
type bearer struct {
	key string
	// Refuses to send the key in plaintext. Say false for loopback only.
	tls bool
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.key}, nil
}

func (b bearer) RequireTransportSecurity() bool { return b.tls }
