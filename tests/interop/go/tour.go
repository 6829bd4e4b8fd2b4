package main

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	recallv1 "recalld/recall/v1"
)

// tour walks through the API, and tells what each step saw. Steps in one
// literal run as written: Go makes the calls of an expression left to right.
func tour(ctx context.Context, client *Client) (seen object, err error) {
	defer func() {
		switch stopped := recover().(type) {
		case nil:
		case stop:
			err = stopped.error
		default:
			panic(stopped)
		}
	}()
	seen = object{}
	for _, part := range []func(context.Context, *Client) object{
		writeAndRead, userAndMetadata, search, listAndStream, refusals, deleteAndRevive, purge,
	} {
		maps.Copy(seen, part(ctx, client))
	}
	return seen, nil
}

// stop is what a step that cannot go on panics with, so that the steps read as
// what they are: one call after the other.
type stop struct{ error }

func must[T any](value T, err error) T {
	if err != nil {
		panic(stop{err})
	}
	return value
}

// refused is for calls that must fail.
func refused[T any](_ T, err error) object {
	if err == nil {
		panic(stop{errors.New("the call should have failed")})
	}
	return showError(err)
}

func writeAndRead(ctx context.Context, client *Client) object {
	request := &recallv1.AddMemoryRequest{
		SessionId: sessionID, Messages: messages, Metadata: metadata, RequestId: requestID,
	}
	added := must(client.memory.AddMemory(ctx, request))
	repeated := must(client.memory.AddMemory(ctx, request))
	memory := must(client.memory.GetMemory(ctx, &recallv1.GetMemoryRequest{SessionId: sessionID}))
	newest := must(client.memory.GetMemory(ctx, &recallv1.GetMemoryRequest{SessionId: sessionID, LastN: 2}))
	reread := each(added.Messages, func(message *recallv1.AddedMessage) *recallv1.Message {
		get := &recallv1.GetMessageRequest{SessionId: sessionID, MessageId: message.MessageId}
		return must(client.memory.GetMessage(ctx, get)).Message
	})

	distinct := map[string]bool{}
	for _, message := range added.Messages {
		distinct[message.MessageId] = true
	}
	times := each(added.Messages, func(message *recallv1.AddedMessage) time.Time { return message.CreateTime.AsTime() })
	first := object{
		"keeps_message_id":      added.Messages[0].MessageId == messageID,
		"distinct_message_ids":  len(distinct),
		"whole_microseconds":    all(times, func(t time.Time) bool { return t.Nanosecond()%1000 == 0 }),
		"create_times_in_order": slices.IsSortedFunc(times, time.Time.Compare),
	}
	maps.Copy(first, showAdded(added))
	again := object{"same_answer": proto.Equal(repeated, added)}
	maps.Copy(again, showAdded(repeated))
	return object{
		"add":        first,
		"repeat":     again,
		"get_memory": showMemory(memory),
		"newest":     object{"seqs": seqs(newest.Messages)},
		"get_message": object{
			"same_as_get_memory": slices.EqualFunc(reread, memory.Messages, equal[*recallv1.Message]),
			"same_create_times": slices.EqualFunc(reread, added.Messages,
				func(message *recallv1.Message, added *recallv1.AddedMessage) bool {
					return proto.Equal(message.CreateTime, added.CreateTime)
				}),
			"update_time_is_create_time": all(reread, func(message *recallv1.Message) bool {
				return proto.Equal(message.UpdateTime, message.CreateTime)
			}),
		},
	}
}

func userAndMetadata(ctx context.Context, client *Client) object {
	user := must(client.users.CreateUser(ctx, &recallv1.CreateUserRequest{
		UserId:    userID,
		Email:     "ada@example.com",
		FirstName: "Ada",
		LastName:  "Łódzka",
		Metadata:  newStruct(object{"plan": "pro"}),
	})).User
	attached := must(client.sessions.UpdateSession(ctx, &recallv1.UpdateSessionRequest{
		SessionId: sessionID, UserId: userID,
	})).Session
	merged := must(client.sessions.UpdateSession(ctx, &recallv1.UpdateSessionRequest{
		SessionId: sessionID, Metadata: patch,
	})).Session
	return object{
		"create_user": showUser(user),
		"attach":      showSession(attached),
		"merge":       object{"session": showSession(merged), "etag_changed": merged.Etag != attached.Etag},
		"etag_mismatch": refused(client.sessions.UpdateSession(ctx, &recallv1.UpdateSessionRequest{
			SessionId: sessionID, Metadata: newStruct(object{"late": true}), Etag: attached.Etag,
		})),
	}
}

func search(ctx context.Context, client *Client) object {
	find := func(request *recallv1.SearchMemoryRequest) []*recallv1.SearchResult {
		return must(client.memory.SearchMemory(ctx, request)).Results
	}
	found := func(result *recallv1.SearchResult) *recallv1.Message { return result.Message }

	inUser := &recallv1.SearchMemoryRequest{
		Query: "umbrella", Scope: &recallv1.SearchMemoryRequest_UserId{UserId: userID},
	}
	everywhere := find(&recallv1.SearchMemoryRequest{Query: "umbrella"})
	ofUser := find(inUser)
	ofRole := find(&recallv1.SearchMemoryRequest{
		Query: "umbrella", Scope: &recallv1.SearchMemoryRequest_SessionId{SessionId: sessionID}, Roles: []string{"user"},
	})
	detached := must(client.sessions.UpdateSession(ctx, &recallv1.UpdateSessionRequest{
		SessionId: sessionID, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"user_id"}},
	})).Session
	return object{
		"search": object{
			"everywhere":      each(each(everywhere, found), showMessage),
			"scores_positive": all(everywhere, func(result *recallv1.SearchResult) bool { return result.Score > 0 }),
			"of_user":         seqs(each(ofUser, found)),
			"of_role":         seqs(each(ofRole, found)),
		},
		"detach": object{"session": showSession(detached), "of_user": seqs(each(find(inUser), found))},
	}
}

func listAndStream(ctx context.Context, client *Client) object {
	var created []*recallv1.Session
	for i, id := range pageIDs {
		created = append(created, must(client.sessions.CreateSession(ctx, &recallv1.CreateSessionRequest{
			SessionId: id, Metadata: newStruct(object{"kind": "page", "number": i + 1}),
		})).Session)
	}
	return object{
		"list_sessions":      object{"pages": listPages(ctx, client)},
		"create_time_filter": createTimeFilter(ctx, client, created[2].CreateTime),
		"stream_sessions":    object{"chunks": each(streamPages(ctx, client, ""), idsOfChunk)},
		"resume_stream":      resumeStream(ctx, client),
	}
}

func listPages(ctx context.Context, client *Client) [][]string {
	var listed [][]string
	request := &recallv1.ListSessionsRequest{PageSize: chunkSize, Filter: pages}
	for {
		page := must(client.sessions.ListSessions(ctx, request))
		listed = append(listed, ids(page.Sessions))
		if page.NextPageToken == "" {
			return listed
		}
		request.PageToken = page.NextPageToken
	}
}

// createTimeFilter shows that times go there and back to the microsecond: the
// half-open ranges begin or end at the third page, and just past.
func createTimeFilter(ctx context.Context, client *Client, third *timestamppb.Timestamp) object {
	list := func(filter *recallv1.SessionFilter) []string {
		filter.Metadata = pages.Metadata
		return ids(must(client.sessions.ListSessions(ctx, &recallv1.ListSessionsRequest{Filter: filter})).Sessions)
	}
	later := timestamppb.New(third.AsTime().Add(time.Microsecond))
	return object{
		"from_third":               list(&recallv1.SessionFilter{CreateTimeFrom: third}),
		"from_a_microsecond_later": list(&recallv1.SessionFilter{CreateTimeFrom: later}),
		"to_third":                 list(&recallv1.SessionFilter{CreateTimeTo: third}),
		"to_a_microsecond_later":   list(&recallv1.SessionFilter{CreateTimeTo: later}),
	}
}

// streamPages reads a stream to its end, or on from a token.
func streamPages(ctx context.Context, client *Client, resumeToken string) []*recallv1.StreamSessionsResponse {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	return receiveAll(must(client.sessions.StreamSessions(ctx, &recallv1.StreamSessionsRequest{
		ChunkSize: chunkSize, Filter: pages, ResumeToken: resumeToken,
	})))
}

func resumeStream(ctx context.Context, client *Client) object {
	broken, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	first := must(must(client.sessions.StreamSessions(broken, &recallv1.StreamSessionsRequest{
		ChunkSize: chunkSize, Filter: pages,
	})).Recv())
	cancel()
	rest := streamPages(ctx, client, first.ResumeToken)
	return object{"before": idsOfChunk(first), "after": each(rest, idsOfChunk)}
}

func idsOfChunk(chunk *recallv1.StreamSessionsResponse) []string { return ids(chunk.Sessions) }

func refusals(ctx context.Context, client *Client) object {
	appendAfter := func(lastSeq int64) (*recallv1.AddMemoryResponse, error) {
		return client.memory.AddMemory(ctx, &recallv1.AddMemoryRequest{
			SessionId:       sessionID,
			Messages:        []*recallv1.Message{{Role: "user", Content: "Only if nobody else wrote."}},
			ExpectedLastSeq: &lastSeq,
		})
	}
	return object{
		"seq_mismatch":         refused(appendAfter(3)),
		"seq_mismatch_at_zero": refused(appendAfter(0)),
		"seq_match":            showAdded(must(appendAfter(4))),
		"invalid_field": refused(client.memory.AddMemory(ctx, &recallv1.AddMemoryRequest{
			SessionId: sessionID, Messages: []*recallv1.Message{{Role: "user"}, {Content: "Who?"}},
		})),
	}
}

func deleteAndRevive(ctx context.Context, client *Client) object {
	get := &recallv1.GetSessionRequest{SessionId: sessionID}
	read := &recallv1.GetMemoryRequest{SessionId: sessionID}
	remove := &recallv1.DeleteSessionRequest{SessionId: sessionID}
	revive := &recallv1.AddMemoryRequest{
		SessionId: sessionID, Messages: []*recallv1.Message{{Role: "user", Content: "I am back."}},
	}
	return object{
		"delete_session":    showSession(must(client.sessions.DeleteSession(ctx, remove)).Session),
		"not_found":         refused(client.sessions.GetSession(ctx, get)),
		"memory_of_deleted": showMemory(must(client.memory.GetMemory(ctx, read))),
		"revive":            showAdded(must(client.memory.AddMemory(ctx, revive))),
		"memory_of_revived": showMemory(must(client.memory.GetMemory(ctx, read))),
	}
}

// purge removes the last of the pages, and the messages that the revived
// session had before.
func purge(ctx context.Context, client *Client) object {
	last := pageIDs[len(pageIDs)-1]
	get := &recallv1.GetSessionRequest{SessionId: last, ShowDeleted: true}
	must(client.sessions.DeleteSession(ctx, &recallv1.DeleteSessionRequest{SessionId: last}))
	kept := must(client.sessions.GetSession(ctx, get)).Session

	purging, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	// A zero duration is not an unset one, which would be the configured retention.
	request := &recallv1.PurgeRequest{OlderThan: durationpb.New(0), BatchSize: 2}
	progress := receiveAll(must(client.admin.Purge(purging, request)))
	end := progress[len(progress)-1]
	removed := each(progress, func(so *recallv1.PurgeResponse) int64 { return so.Sessions + so.Messages + so.Users })
	firstDone := slices.IndexFunc(progress, (*recallv1.PurgeResponse).GetDone)
	return object{
		"show_deleted": showSession(kept),
		"purge": object{
			"sessions":              strconv.FormatInt(end.Sessions, 10),
			"messages":              strconv.FormatInt(end.Messages, 10),
			"users":                 strconv.FormatInt(end.Users, 10),
			"several_responses":     len(progress) > 1,
			"never_goes_back":       slices.IsSorted(removed),
			"only_the_last_is_done": firstDone == len(progress)-1,
		},
		"purged": refused(client.sessions.GetSession(ctx, get)),
	}
}

// receiveAll reads a stream to its end, which is at least one answer away.
func receiveAll[T any](stream grpc.ServerStreamingClient[T]) []*T {
	received := []*T{must(stream.Recv())}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return received
		}
		received = append(received, must(response, err))
	}
}

func equal[M proto.Message](one, other M) bool { return proto.Equal(one, other) }

func all[T any](values []T, holds func(T) bool) bool {
	return !slices.ContainsFunc(values, func(value T) bool { return !holds(value) })
}
