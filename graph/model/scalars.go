// Package model receives values of the read models and of the log from graph, and hands them to the generated server
// in the forms of the schema, and back; pure.
package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/99designs/gqlgen/graphql"

	"github.com/pipeops/pipeops/domain"
)

// MarshalCursor writes "1.42".
func MarshalCursor(c domain.Cursor) graphql.Marshaler { return graphql.MarshalString(c.String()) }

// UnmarshalCursor reads it; domain.ErrCursor for anything else.
func UnmarshalCursor(v any) (domain.Cursor, error) {
	text, ok := v.(string)
	if !ok || text == "" {
		return domain.Cursor{}, fmt.Errorf("cursor %v: %w", v, domain.ErrCursor)
	}
	return domain.ParseCursor(text)
}

// Moment is a place in the log: a cursor, or a time when Time isn't zero.
type Moment struct {
	Cursor domain.Cursor
	Time   time.Time
}

// ErrMoment is what a text gives that is neither a cursor nor a time.
var ErrMoment = errors.New(`not a moment: want a cursor or a time, for example "1.42" or "2026-11-24T03:00:00Z"`)

// MarshalGQL implements graphql.Marshaler.
func (m *Moment) MarshalGQL(w io.Writer) {
	if m.Time.IsZero() {
		MarshalCursor(m.Cursor).MarshalGQL(w)
		return
	}
	MarshalTime(m.Time).MarshalGQL(w)
}

// UnmarshalGQL implements graphql.Unmarshaler; ErrMoment for anything else.
func (m *Moment) UnmarshalGQL(v any) (err error) {
	text, _ := v.(string)
	if c, err := domain.ParseCursor(text); err == nil && text != "" {
		*m = Moment{Cursor: c}
		return nil
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil && !t.IsZero() {
		*m = Moment{Time: t}
		return nil
	}
	return fmt.Errorf("%q: %w", fmt.Sprint(v), ErrMoment)
}

// MarshalPosition writes "42".
func MarshalPosition(p int64) graphql.Marshaler {
	return graphql.MarshalString(strconv.FormatInt(p, 10))
}

var errPosition = errors.New(`not a position: want a number from 1 as text, for example "42"`)

// UnmarshalPosition reads it.
func UnmarshalPosition(v any) (int64, error) {
	text, ok := v.(string)
	p, err := strconv.ParseInt(text, 10, 64)
	if !ok || err != nil || p < 1 {
		return 0, errPosition
	}
	return p, nil
}

const timeForm = "2006-01-02T15:04:05.000000Z"

// MarshalTime writes RFC 3339 in UTC with microseconds, and null for the zero time.
func MarshalTime(t time.Time) graphql.Marshaler {
	if t.IsZero() {
		return graphql.Null
	}
	return graphql.WriterFunc(func(w io.Writer) { _, _ = io.WriteString(w, t.UTC().Format(`"`+timeForm+`"`)) })
}

// UnmarshalTime reads RFC 3339.
func UnmarshalTime(v any) (time.Time, error) { return graphql.UnmarshalTime(v) }

// MarshalEventTime writes the time of an event's body likewise.
func MarshalEventTime(t domain.Time) graphql.Marshaler { return MarshalTime(t.Time) }

// UnmarshalEventTime reads RFC 3339.
func UnmarshalEventTime(v any) (domain.Time, error) {
	t, err := graphql.UnmarshalTime(v)
	return domain.At(t), err
}

// MarshalJSON writes JSON as it is.
func MarshalJSON(b json.RawMessage) graphql.Marshaler {
	return graphql.WriterFunc(func(w io.Writer) { _, _ = w.Write(b) })
}

// UnmarshalJSON reads any value.
func UnmarshalJSON(v any) (json.RawMessage, error) { return json.Marshal(v) }
