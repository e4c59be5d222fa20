package domain

import (
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"
)

// OperationEvent may stand in a day's operation stream: what people do to the system itself. Who did it is the
// envelope's actor.
//
//sumtype:decl
type OperationEvent interface {
	Event
	operationEvent()
}

type inOperation struct{}

func (inOperation) operationEvent() {}

// SubjectErased says that a person's keys are gone: what events tell about them in personal fields is unreadable for
// ever, while every proof stays valid.
type SubjectErased struct {
	fact
	inOperation

	Subject string `json:"subject"` // opaque id of the person, "act_…"
	Reason  string `json:"reason"`  // in the words of who wanted it
	Keys    int    `json:"keys"`    // the person's keys number 1 to this one are gone; a later field makes the next
}

// TokenCreated says that a token for the API and the git remote was made. Its text is nowhere.
type TokenCreated struct {
	fact
	inOperation

	Token string `json:"token"` // UUID; what it does has the actor "token:<UUID>"
	Name  string `json:"name"`  // for people
}

// TokenRevoked says that a token opens nothing any more.
type TokenRevoked struct {
	fact
	inOperation

	Token string `json:"token"` // UUID
	Name  string `json:"name"`  // for people
}

// CheckpointKeyCreated says that checkpoints are signed with another key from now on. What earlier keys signed stays good.
type CheckpointKeyCreated struct {
	fact
	inOperation

	Key string `json:"key"` // "tree-heads/<number>", from 1
}

// Operation is a day's operations. No decision depends on the ones before it.
type Operation struct{}

// Evolve applies an event.
func (*Operation) Evolve(e OperationEvent) {
	switch e.(type) {
	case SubjectErased, ProjectionRetried, ProjectionSkipped, ReplayRun, TokenCreated, TokenRevoked, CheckpointKeyCreated:
	}
}

// EraseSubject records that a person's keys are gone. They are destroyed before it: a repeat after a crash between the
// two finds them gone, and records it.
type EraseSubject struct {
	Subject string
	Reason  string
	Keys    int       // how many keys the person has had; 0: nothing is known of them
	At      time.Time // the command's time; says which day's stream
}

// Reads implements Command.
func (c EraseSubject) Reads(State) []Stream { return []Stream{OperationStream(c.At)} }

// Decide implements Command.
func (c EraseSubject) Decide(State) ([]Change, error) {
	if c.Subject == "" || c.Keys < 1 {
		return nil, &Refusal{
			Code: "UNKNOWN_SUBJECT", Field: "subject", Message: fmt.Sprintf("nothing is kept about subject %q", c.Subject),
			Fix: `give the "sub" of a personal field as an event shows it, act_…`,
		}
	}
	if err := CheckReason(c.Reason); err != nil {
		return nil, err
	}
	return []Change{{OperationStream(c.At), SubjectErased{Subject: c.Subject, Reason: c.Reason, Keys: c.Keys}}}, nil
}

// RecordAccess records who may come in, and what vouches for the log: TokenCreated, TokenRevoked or CheckpointKeyCreated.
type RecordAccess struct {
	Event OperationEvent
	At    time.Time // the command's time; says which day's stream
}

// Reads implements Command.
func (c RecordAccess) Reads(State) []Stream { return []Stream{OperationStream(c.At)} }

// Decide implements Command.
func (c RecordAccess) Decide(State) ([]Change, error) {
	return []Change{{OperationStream(c.At), c.Event}}, nil
}

// maxReason bounds what people write for the record, in bytes.
const maxReason = 500

// CheckReason says whether reason can stand in the record of an operation: a *Refusal, or nil.
func CheckReason(reason string) error {
	bad := func(message string) error {
		return &Refusal{
			Code: "BAD_REASON", Field: "reason", Message: message,
			Fix: "say in a line why, it is recorded for ever; no secrets and no names (example: request 4711)",
		}
	}
	switch {
	case reason == "":
		return bad("a reason is missing")
	case len(reason) > maxReason:
		return bad(fmt.Sprintf("the reason has %d bytes, more than %d", len(reason), maxReason))
	case !utf8.ValidString(reason):
		return bad("the reason is no text in UTF-8")
	}
	for _, r := range reason {
		if unicode.IsControl(r) {
			return bad("the reason has control characters or line breaks")
		}
	}
	return nil
}
