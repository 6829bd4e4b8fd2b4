package main

import (
	"strconv"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	recallv1 "recalld/recall/v1"
)

// What the tour saw, as JSON: the shapes that ../README.md defines.

type object = map[string]any

// showMetadata is null when the field is not set.
func showMetadata(metadata *structpb.Struct) any {
	if metadata == nil {
		return nil
	}
	return metadata.AsMap()
}

// showSession is null when the field is not set.
func showSession(session *recallv1.Session) any {
	if session == nil {
		return nil
	}
	return object{
		"session_id":      session.SessionId,
		"user_id":         session.UserId,
		"metadata":        showMetadata(session.Metadata),
		"message_count":   strconv.FormatInt(session.MessageCount, 10),
		"last_seq":        strconv.FormatInt(session.LastSeq, 10),
		"has_delete_time": session.DeleteTime != nil,
		"has_purge_time":  session.PurgeTime != nil,
	}
}

func showMessage(message *recallv1.Message) any {
	return object{
		"session_id":  message.SessionId,
		"seq":         strconv.FormatInt(message.Seq, 10),
		"role":        message.Role,
		"content":     message.Content,
		"metadata":    showMetadata(message.Metadata),
		"token_count": message.TokenCount,
	}
}

func showUser(user *recallv1.User) any {
	return object{
		"user_id":         user.UserId,
		"email":           user.Email,
		"first_name":      user.FirstName,
		"last_name":       user.LastName,
		"metadata":        showMetadata(user.Metadata),
		"has_delete_time": user.DeleteTime != nil,
	}
}

func showAdded(response *recallv1.AddMemoryResponse) object {
	return object{
		"session_created":   response.SessionCreated,
		"session_undeleted": response.SessionUndeleted,
		"seqs":              seqs(response.Messages),
	}
}

func showMemory(response *recallv1.GetMemoryResponse) object {
	return object{
		"session":  showSession(response.Session),
		"messages": each(response.Messages, showMessage),
	}
}

// showError is what a call was refused with: its status code, and the details
// that come with it.
func showError(err error) object {
	refusal := status.Convert(err)
	info := &errdetails.ErrorInfo{}
	metadata := map[string]string{}
	fields := []string{}
	var resource any
	for _, detail := range refusal.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			info = detail
			for key, value := range detail.Metadata {
				metadata[key] = value
			}
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				fields = append(fields, violation.Field)
			}
		case *errdetails.ResourceInfo:
			resource = object{"type": detail.ResourceType, "name": detail.ResourceName}
		}
	}
	return object{
		// codes.Code says NotFound; the name in the protocol is NOT_FOUND.
		"code":     code.Code(refusal.Code()).String(),
		"reason":   info.Reason,
		"domain":   info.Domain,
		"metadata": metadata,
		"fields":   fields,
		"resource": resource,
	}
}

func seqs[M interface{ GetSeq() int64 }](messages []M) []string {
	return each(messages, func(message M) string { return strconv.FormatInt(message.GetSeq(), 10) })
}

func ids(sessions []*recallv1.Session) []string {
	return each(sessions, (*recallv1.Session).GetSessionId)
}

// each is never nil, which JSON would have as null.
func each[T, U any](values []T, change func(T) U) []U {
	changed := make([]U, len(values))
	for i, value := range values {
		changed[i] = change(value)
	}
	return changed
}
