// Package domain receives what happened (events folded into states) and what
// somebody wants (commands) from the handlers, and hands back what shall be
// recorded; pure: standard library only, no clock, no random, no I/O.
//
// One file per behaviour: a stream's state, its commands, Decide and Evolve
// stand together (project.go, push.go, build.go, slot.go, deployment.go, operation.go).
package domain

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Event is a fact: a Go struct of this package, whose name (in the past tense,
// "BuildRequested") is its type for ever, see TypeOf. Each kind of stream has
// an interface of its own (BuildEvent, …) that lists what may stand in it.
type Event interface{ isEvent() }

// fact makes a struct an Event; the marker beside it says in which kind of
// stream it may stand. Apart, so that a marker alone is no event.
type fact struct{}

func (fact) isEvent() {}

// Cursor is a place in the log: everything up to and including Position of
// LogEpoch has been seen. The zero value stands before the first event.
// Its text form, "<log epoch>.<position>", is used everywhere.
type Cursor struct {
	LogEpoch int64 // from 1; raised by a restore that may have lost the tail
	Position int64 // from 1, dense, in commit order; 0 = before the first event
}

// String gives the text form, "1.42".
func (c Cursor) String() string {
	return strconv.FormatInt(c.LogEpoch, 10) + "." + strconv.FormatInt(c.Position, 10)
}

// MarshalText implements encoding.TextMarshaler.
func (c Cursor) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *Cursor) UnmarshalText(text []byte) (err error) {
	*c, err = ParseCursor(string(text))
	return err
}

// ErrCursor is what a text that is no cursor gives.
var ErrCursor = errors.New(`not a cursor: want "<log epoch>.<position>", for example "1.42"`)

// ParseCursor reads the text form. The empty text is the zero cursor.
func ParseCursor(text string) (Cursor, error) {
	if text == "" {
		return Cursor{}, nil
	}
	e, p, ok := strings.Cut(text, ".")
	epoch, err1 := strconv.ParseInt(e, 10, 64)
	position, err2 := strconv.ParseInt(p, 10, 64)
	c := Cursor{LogEpoch: epoch, Position: position}
	if !ok || err1 != nil || err2 != nil || epoch < 0 || position < 0 || c.String() != text {
		return Cursor{}, fmt.Errorf("cursor %q: %w", text, ErrCursor)
	}
	return c, nil
}

// Recorded is an event as the store keeps it: the envelope and the exact bytes of the body.
type Recorded struct {
	Cursor        Cursor    // log epoch and position
	ID            string    // UUID
	Stream        Stream    // what it belongs to
	Version       int64     // from 1 within the stream
	ProjectID     ProjectID // empty for events of no project
	Type          string    // Event.Type
	SchemaVersion int       // from 1
	Body          []byte    // canonical JSON, verbatim
	OccurredAt    time.Time // µs, UTC; when it happened, by the clock of who saw it
	RecordedAt    time.Time // µs, UTC; never before its predecessor's
	Actor         string    // opaque id of who caused it, never an e-mail
	CorrelationID string    // the push (or command) that everything here follows from
	CausationID   string    // id of the event that led to this one; empty for a first cause
	Attempt       AttemptID // empty unless a worker's attempt reported it
	AttemptSeq    int64     // sequence within the attempt, from 1; 0 = none
	Trace         string    // W3C traceparent, may be empty
}

// Line is the JSON form of a recorded event, one object a line, as
// `pipeops events --json` and the export print it.
type Line struct {
	Cursor   string `json:"cursor"`   // place in the log, "<log epoch>.<position>": give it to go on after this event
	Position int64  `json:"position"` // 1, 2, 3, … in the order of commits, without a gap
	Epoch    int64  `json:"epoch"`    // log epoch, from 1; raised by a restore that may have lost the tail
	// UUID; version 5, made of the command and of the place in its decision, so that a repeat has the same
	ID            string          `json:"id"`
	Stream        string          `json:"stream"`        // what it belongs to, "build/bld_…"
	Version       int64           `json:"version"`       // number within the stream, from 1 without a gap
	Project       string          `json:"project"`       // "prj_…"; empty: of no project, as what stands in worker/ and operation/
	Type          string          `json:"type"`          // name of the event, a heading below
	SchemaVersion int             `json:"schemaVersion"` // of the body's form, from 1
	Data          json.RawMessage `json:"data"`          // the body, byte for byte as it was stored
	// opaque id of who caused it: "act_…" (a person at a git host), "github" (the host, where it names nobody),
	// "token:…" (who shows it to the API), "wrk_…" (a worker that claims), "worker" (its reports), "policy",
	// "scheduler", "ingest", "operator" (who runs the program)
	Actor      string `json:"actor"`
	Attempt    string `json:"attempt"`    // "<build or deployment>.<n>" of the attempt whose report led to it; empty: no report did
	AttemptSeq int64  `json:"attemptSeq"` // number of the reported item within the attempt, from 1; 0: no report
	// what everything with the same one follows from: id of a push, "psh_…", or of the command of a person
	CorrelationID string `json:"correlationId"`
	// id of the event that led to it; for what workers and the scheduler do, the first one of the build or deployment;
	// empty: a first cause
	CausationID string `json:"causationId"`
	OccurredAt  Time   `json:"occurredAt"` // when it happened, by the clock of who saw it: the worker's for its reports, else the server's
	RecordedAt  Time   `json:"recordedAt"` // when it was stored, by the database's clock; never before the event before it
	// W3C traceparent, "00-<32 hex digits>-<16>-<2>", that of the push or the request, else one made of the correlation
	// id
	Trace string `json:"trace"`
}

// Line gives the JSON form.
func (r Recorded) Line() Line {
	return Line{
		Cursor: r.Cursor.String(), Position: r.Cursor.Position, Epoch: r.Cursor.LogEpoch,
		ID: r.ID, Stream: string(r.Stream), Version: r.Version, Project: string(r.ProjectID),
		Type: r.Type, SchemaVersion: r.SchemaVersion, Data: r.Body, Actor: r.Actor,
		Attempt: string(r.Attempt), AttemptSeq: r.AttemptSeq,
		CorrelationID: r.CorrelationID, CausationID: r.CausationID,
		OccurredAt: At(r.OccurredAt), RecordedAt: At(r.RecordedAt), Trace: r.Trace,
	}
}

// Time is a time in an event's body: UTC with microseconds, so that the text
// form (RFC 3339, always six digits and Z) is the same wherever it is written.
type Time struct{ time.Time }

const timeForm = "2006-01-02T15:04:05.000000Z"

// At cuts t to what a body keeps. A year that RFC 3339 can't write (the date of
// a commit can be anything) gives the zero time: not told. What is stored once
// must be readable for ever.
func At(t time.Time) Time {
	t = t.UTC().Truncate(time.Microsecond)
	if t.Year() < 1 || t.Year() > 9999 {
		return Time{}
	}
	return Time{t}
}

// MarshalJSON implements json.Marshaler.
func (t Time) MarshalJSON() ([]byte, error) {
	if t.IsZero() {
		return []byte(`""`), nil
	}
	if at := At(t.Time); !at.IsZero() {
		return []byte(`"` + at.Format(timeForm) + `"`), nil
	}
	return nil, fmt.Errorf("time %s: its year can't be written", t.Time)
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *Time) UnmarshalJSON(b []byte) error {
	if string(b) == `""` || string(b) == "null" {
		*t = Time{}
		return nil
	}
	p, err := time.Parse(`"`+time.RFC3339Nano+`"`, string(b))
	if err != nil {
		return fmt.Errorf("time %s: want RFC 3339, for example \"2026-01-02T15:04:05.000000Z\"", b)
	}
	*t = At(p)
	return nil
}

// Seconds is a duration in an event's body, in whole seconds.
type Seconds int64

// Duration gives the Go form.
func (s Seconds) Duration() time.Duration { return time.Duration(s) * time.Second }

// Milliseconds is a duration in an event's body.
type Milliseconds int64
