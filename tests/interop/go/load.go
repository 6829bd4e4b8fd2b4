package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	recallv1 "recalld/recall/v1"
)

const (
	concurrency  = 16
	sessions     = 10
	giveUp       = 60 * time.Second
	firstPause   = 50 * time.Millisecond
	longestPause = time.Second
)

// load makes many AddMemory calls and tells how many the server acknowledged.
// It fails with the first error that no repetition mends.
func load(ctx context.Context, memory recallv1.MemoryServiceClient, calls int) (int64, error) {
	var acknowledged atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(concurrency)
	for number := range calls {
		group.Go(func() error {
			done, err := add(ctx, memory, request(number))
			if done {
				acknowledged.Add(1)
			}
			return err
		})
	}
	err := group.Wait()
	return acknowledged.Load(), err
}

func request(number int) *recallv1.AddMemoryRequest {
	return &recallv1.AddMemoryRequest{
		SessionId: fmt.Sprintf("load-%d", number%sessions),
		Messages: []*recallv1.Message{
			{Role: "user", Content: fmt.Sprintf("question %d", number)},
			{Role: "assistant", Content: fmt.Sprintf("answer %d", number)},
		},
		// Made once and kept over repetitions, so that the call is stored once.
		RequestId: uuid.NewString(),
	}
}

// add repeats a call until the server acknowledges it, and tells whether it
// did in time.
func add(ctx context.Context, memory recallv1.MemoryServiceClient, request *recallv1.AddMemoryRequest) (bool, error) {
	end := time.Now().Add(giveUp)
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		_, err := memory.AddMemory(ctx, request)
		if err == nil {
			return true, nil
		}
		if !worthRepeating(err) {
			return false, err
		}
		if time.Now().Add(pause).After(end) {
			return false, nil
		}
		// Spread out, so that refused callers do not come back all at once.
		select {
		case <-time.After(rand.N(pause)):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// worthRepeating tells whether the outcome is unknown, or the server asks to
// come again.
func worthRepeating(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.Aborted, codes.DeadlineExceeded:
		return true
	}
	return false
}
