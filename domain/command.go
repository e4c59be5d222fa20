package domain

import (
	"fmt"
	"strings"
)

// Command is something that somebody wants.
type Command interface {
	// Reads names the streams that Decide needs, given what is loaded already;
	// it is asked again until it names nothing new.
	Reads(State) []Stream
	// Decide gives what shall be recorded, or a *Refusal. No changes and no
	// error means: nothing to do.
	Decide(State) ([]Change, error)
}

// Change is one event for one stream. All changes of a decision are appended at once.
type Change struct {
	Stream Stream
	Event  Event
}

// Refusal is a decider's no. It is an answer, not a failure of PipeOps.
type Refusal struct { //nolint:errname // an answer, not a failure
	Code    string // stable, upper case: "NAME_TAKEN"
	Field   string // the input at fault; may be empty
	Message string // what is wrong
	Fix     string // what to do about it
}

func (r *Refusal) Error() string {
	var b strings.Builder
	if r.Field != "" {
		fmt.Fprintf(&b, "%s: ", r.Field)
	}
	b.WriteString(r.Message)
	if r.Fix != "" {
		b.WriteString("; " + r.Fix)
	}
	return b.String()
}

// State holds the folded states of the streams that a command reads.
type State map[Stream]any

// Fold applies one event to the state of its stream; attemptSeq is the number
// of the worker's item that it came from, 0 for none. A type that cannot stand
// in that kind of stream is an error: the log is broken.
func (s State) Fold(stream Stream, e Event, attemptSeq int64) error {
	err := s.evolve(stream, e)
	if attemptSeq > 0 {
		switch state := s[stream].(type) {
		case *Build:
			state.Sequence = attemptSeq
		case *Deployment:
			state.Sequence = attemptSeq
		}
	}
	return err
}

func (s State) evolve(stream Stream, e Event) error {
	switch stream.Kind() {
	case "project-name":
		return fold(s, stream, e, (*ProjectName).Evolve)
	case "project":
		return fold(s, stream, e, (*Project).Evolve)
	case "push":
		return fold(s, stream, e, (*Push).Evolve)
	case "ref":
		return fold(s, stream, e, (*Ref).Evolve)
	case "build":
		return fold(s, stream, e, (*Build).Evolve)
	case "slot":
		return fold(s, stream, e, (*Slot).Evolve)
	case "deployment":
		return fold(s, stream, e, (*Deployment).Evolve)
	case "worker":
		return fold(s, stream, e, (*Worker).Evolve)
	case "operation":
		return fold(s, stream, e, (*Operation).Evolve)
	}
	return fmt.Errorf("stream %s is of no known kind", stream)
}

func fold[S any, E Event](s State, stream Stream, e Event, evolve func(*S, E)) error {
	ev, ok := e.(E)
	if !ok {
		return fmt.Errorf("event %s cannot stand in stream %s", TypeOf(e), stream)
	}
	state, _ := s[stream].(*S)
	if state == nil {
		state = new(S)
		s[stream] = state
	}
	evolve(state, ev)
	return nil
}

// Of gives the state of a stream, the empty one when nothing stands in it.
func Of[S any](s State, stream Stream) *S {
	if state, ok := s[stream].(*S); ok {
		return state
	}
	return new(S)
}
