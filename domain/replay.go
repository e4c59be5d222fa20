package domain

import (
	"fmt"
	"strings"
	"time"
)

// ProjectionRetried says that somebody wants a read model that had stopped at an event to try it again.
type ProjectionRetried struct {
	fact
	inOperation

	Projection string `json:"projection"` // "builds"
	Version    int    `json:"version"`    // of the projection, from 1
	Event      string `json:"event"`      // id of the event that it had stopped at
	Position   int64  `json:"position"`   // of that event in the log
	Reason     string `json:"reason"`     // in the words of who wanted it
}

// ProjectionSkipped leaves an event out of one version of a read model, for ever: whoever builds that version from the
// log knows it before it begins, so every replay gives the same rows. The event itself stays as it is, and other
// versions and other read models apply it.
type ProjectionSkipped struct {
	fact
	inOperation

	Projection string `json:"projection"` // "builds"
	Version    int    `json:"version"`    // of the projection, from 1
	Event      string `json:"event"`      // id of the event that is left out
	Position   int64  `json:"position"`   // of that event in the log
	Reason     string `json:"reason"`     // in the words of who wanted it
}

// ReplayRun says that part of the log, or a delivery, was run through the code of one version again, and what came of
// it: as far as it got, where it failed or was cut. Nothing else was changed, but for read models that were put in the
// place of equal or damaged ones.
type ReplayRun struct {
	fact
	inOperation

	Kind        string             `json:"kind"`                  // "projections", "delivery" or "policy"
	Subject     string             `json:"subject,omitempty"`     // names of projections, a push, or a project; empty: all
	From        Cursor             `json:"from"`                  // of the log: what comes after it
	To          Cursor             `json:"to"`                    // up to and with this one
	Counts      []ReplayCount      `json:"counts"`                // how much was run through the code
	Different   int64              `json:"different"`             // count of results that were not those of then
	Differences []ReplayDifference `json:"differences,omitempty"` // the first 20 of them

	Projections []ReplayedProjection `json:"projections,omitempty"` // read models that it got through with, in order
	Ended       string               `json:"ended,omitempty"`       // where it was cut or failed, with the number of the error in the log of the server; at most 500 bytes
}

// ReplayCount is how many there were of something.
type ReplayCount struct {
	Name  string `json:"name"`  // of what was counted: "projections", "rows", "bytes", "decisions", "events"
	Count int64  `json:"count"` // how many there were
}

// ReplayDifference is one result that was not that of then. It names fields, and never tells what stands in them: that
// may be personal.
type ReplayDifference struct {
	Subject string `json:"subject"` // a projection, or the id of an event
	What    string `json:"what"`    // a field or a type, or how many rows: "BuildRequested.image", "3 rows differ"
}

// ReplayedProjection is a read model as a replay made it. The same log gives the same rows and the same checksum anywhere,
// as of the same cursor.
type ReplayedProjection struct {
	Name      string `json:"name"`               // "builds"
	Version   int    `json:"version"`            // of the projection, from 1
	Cursor    Cursor `json:"cursor"`             // as of which it was summed up and compared
	Rows      int64  `json:"rows"`               // count of them, history rows among them
	Checksum  string `json:"checksum"`           // of these, hexadecimal
	InUse     string `json:"inUse"`              // of what was in use, as of the same cursor
	Different int64  `json:"different"`          // count of rows that only one of both had
	Replaced  bool   `json:"replaced,omitempty"` // it was put in the place of what was in use
}

// Bounds of what a ReplayRun tells.
const (
	maxDifferences = 20
	maxEnded       = 500 // bytes
)

// StoppedProjection is what a read model can't get over.
type StoppedProjection struct {
	Projection string
	Version    int
	Event      string
	Position   int64
}

// RetryProjection wants a stopped read model to try its event again.
type RetryProjection struct {
	StoppedProjection

	Reason string
	At     time.Time // the command's time; says which day's stream
}

// Reads implements Command.
func (c RetryProjection) Reads(State) []Stream { return []Stream{OperationStream(c.At)} }

// Decide implements Command.
func (c RetryProjection) Decide(State) ([]Change, error) {
	if err := c.check(c.Reason); err != nil {
		return nil, err
	}
	return []Change{{OperationStream(c.At), ProjectionRetried{
		Projection: c.Projection, Version: c.Version, Event: c.Event, Position: c.Position, Reason: c.Reason,
	}}}, nil
}

// SkipProjection leaves the event out that a read model has stopped at.
type SkipProjection struct {
	StoppedProjection

	Reason string
	At     time.Time
}

// Reads implements Command.
func (c SkipProjection) Reads(State) []Stream { return []Stream{OperationStream(c.At)} }

// Decide implements Command.
func (c SkipProjection) Decide(State) ([]Change, error) {
	if err := c.check(c.Reason); err != nil {
		return nil, err
	}
	return []Change{{OperationStream(c.At), ProjectionSkipped{
		Projection: c.Projection, Version: c.Version, Event: c.Event, Position: c.Position, Reason: c.Reason,
	}}}, nil
}

func (p StoppedProjection) check(reason string) error {
	if p.Projection == "" || p.Version < 1 || p.Event == "" || p.Position < 1 {
		return &Refusal{
			Code: "NOT_STOPPED", Field: "name", Message: fmt.Sprintf("projection %q isn't stopped at an event", p.Projection),
			Fix: "name one that stands still: the log of pipeops serve tells its name and the event",
		}
	}
	return CheckReason(reason)
}

// RecordReplay records what a replay has found, until it was through, failed or was cut.
type RecordReplay struct {
	Replay ReplayRun
	At     time.Time
}

// Reads implements Command.
func (c RecordReplay) Reads(State) []Stream { return []Stream{OperationStream(c.At)} }

// Decide implements Command.
func (c RecordReplay) Decide(State) ([]Change, error) {
	run := c.Replay
	run.Differences = run.Differences[:min(len(run.Differences), maxDifferences)]
	run.Ended = strings.ToValidUTF8(run.Ended[:min(len(run.Ended), maxEnded)], "")
	return []Change{{OperationStream(c.At), run}}, nil
}
