package model

import (
	"encoding/json"

	"github.com/pipeops/pipeops/domain"
)

// Event is a recorded event in the names of the schema.
type Event struct{ domain.Recorded }

// Position in the log.
func (e Event) Position() int64 { return e.Cursor.Position }

// Epoch of the log.
func (e Event) Epoch() int64 { return e.Cursor.LogEpoch }

// Project that it belongs to.
func (e Event) Project() domain.ProjectID { return e.ProjectID }

// Data is the body.
func (e Event) Data() json.RawMessage { return e.Body }

// Events gives recorded events in the names of the schema.
func Events(recorded []domain.Recorded) []Event {
	out := make([]Event, len(recorded))
	for i, r := range recorded {
		out[i] = Event{r}
	}
	return out
}

// EventBatch is what a subscriber gets: what is new, and how far it has come.
type EventBatch struct {
	Events []Event
	Cursor domain.Cursor
	Head   domain.Cursor
}

// EventPage is a page of the log.
type EventPage struct {
	Events []Event
	Cursor domain.Cursor
	Head   domain.Cursor
	More   bool
}

// EventFilter says which events a subscriber wants.
type EventFilter struct {
	Project     *string // name or id
	Types       []string
	Correlation *string
	Stream      *string
}
