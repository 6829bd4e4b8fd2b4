package main

import (
	"fmt"

	"google.golang.org/protobuf/types/known/structpb"
	recallv1 "recalld/recall/v1"
)

// What the tour sends; ../README.md has every value.

const (
	sessionID = "tour-Zürich-東京"
	userID    = "user-łódź"
	requestID = "5f0c6a52-8d1e-4c55-9f57-0d5a3a1f6b01"
	messageID = "5f0c6a52-8d1e-4c55-9f57-0d5a3a1f6b02"
	chunkSize = 2
)

var (
	metadata = newStruct(object{
		"string":   "Größe",
		"empty":    "",
		"integer":  42,
		"negative": -7,
		"fraction": 0.1,
		"largest":  1<<53 - 1,
		"yes":      true,
		"no":       false,
		"nothing":  nil,
		"nested":   object{"inner": object{"kept": "yes", "gone": "soon"}, "empty": object{}},
		"list":     []any{1, "two", nil, false, []any{3.5}, object{"four": 4}, []any{}},
	})
	patch = newStruct(object{
		"integer": nil,
		"nested":  object{"inner": object{"gone": nil, "added": 1.5}},
		"list":    []any{"replaced"},
		"new":     object{"ключ": "значение"},
	})
	messages = []*recallv1.Message{
		{
			MessageId:  messageID,
			Role:       "user",
			Content:    "Grüße aus Zürich, 東京, 🗼👩\u200d👩\u200d👧, e\u0301, שלום, مرحبا",
			Metadata:   newStruct(object{"languages": []any{"de", "ja", "he", "ar"}}),
			TokenCount: 42,
		},
		{
			Role:     "assistant",
			Content:  "Take an umbrella.",
			Metadata: newStruct(object{"model": object{"name": "tiny", "temperature": 0.25}}),
		},
		{Role: "user"},
		{Role: "наблюдатель", Content: "one\ntwo\t\"three\" \\ four"},
	}
	pageIDs = []string{"page-1", "page-2", "page-3", "page-4", "page-5"}
	pages   = &recallv1.SessionFilter{Metadata: newStruct(object{"kind": "page"})}
)

// newStruct panics on what JSON cannot say, which none of the above is.
func newStruct(fields object) *structpb.Struct {
	made, err := structpb.NewStruct(fields)
	if err != nil {
		panic(fmt.Sprintf("%v: %v", fields, err))
	}
	return made
}
