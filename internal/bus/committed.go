package bus

import (
	"encoding/json"
	"strconv"

	"github.com/pipeops/pipeops/domain"
)

// Committed is a stored event as outsiders get it: a CloudEvent 1.0 in JSON.
// Sent on `pipeops.committed`, key `<project>.<event type>` ("none" stands for
// an event of no project), with the headers cursor and position. Personal
// fields are ciphertext. Numbers beyond 32 bits are strings, as CloudEvents
// wants them.
type Committed struct {
	SpecVersion     string          `json:"specversion"`     // "1.0"
	ID              string          `json:"id"`              // the event's
	Source          string          `json:"source"`          // "/<stream>"
	Type            string          `json:"type"`            // "dev.pipeops.<event type>"
	Subject         string          `json:"subject"`         // the stream
	Time            domain.Time     `json:"time"`            // occurred-at
	DataContentType string          `json:"datacontenttype"` // "application/json"
	Data            json.RawMessage `json:"data"`            // the event's body

	Cursor        string      `json:"cursor"`   // "<log epoch>.<position>"
	Position      string      `json:"position"` // dense, from 1: a reader that sees it jump reads the hole by GraphQL
	EventType     string      `json:"eventtype"`
	SchemaVersion int         `json:"schemaversion"`
	StreamVersion string      `json:"streamversion"`
	Project       string      `json:"project,omitempty"`
	Actor         string      `json:"actor,omitempty"`
	Attempt       string      `json:"attempt,omitempty"`
	AttemptSeq    string      `json:"attemptseq,omitempty"`
	CorrelationID string      `json:"correlationid,omitempty"`
	CausationID   string      `json:"causationid,omitempty"`
	RecordedTime  domain.Time `json:"recordedtime"`
	TraceParent   string      `json:"traceparent,omitempty"`
}

// NewCommitted gives the CloudEvent of a stored event.
func NewCommitted(r domain.Recorded) Committed {
	c := Committed{
		SpecVersion: "1.0", ID: r.ID, Source: "/" + string(r.Stream), Type: "dev.pipeops." + r.Type,
		Subject: string(r.Stream), Time: domain.At(r.OccurredAt), DataContentType: "application/json", Data: r.Body,
		Cursor: r.Cursor.String(), Position: strconv.FormatInt(r.Cursor.Position, 10),
		EventType: r.Type, SchemaVersion: r.SchemaVersion, StreamVersion: strconv.FormatInt(r.Version, 10),
		Project: string(r.ProjectID), Actor: r.Actor, Attempt: string(r.Attempt),
		CorrelationID: r.CorrelationID, CausationID: r.CausationID,
		RecordedTime: domain.At(r.RecordedAt), TraceParent: r.Trace,
	}
	if r.AttemptSeq > 0 {
		c.AttemptSeq = strconv.FormatInt(r.AttemptSeq, 10)
	}
	return c
}

func (c Committed) route() route {
	project := c.Project
	if project == "" {
		project = "none"
	}
	return route{exchange: "pipeops.committed", key: project + "." + c.EventType}
}

func (c Committed) headers() map[string]string {
	return map[string]string{"cursor": c.Cursor, "position": c.Position, contentTypeKey: "application/cloudevents+json"}
}
