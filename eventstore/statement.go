package eventstore

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
)

// exception is what pipeops.append says of a caller whose events it did not write.
type exception struct {
	Caller     int    `json:"caller"` // from 1
	Code       string `json:"code"`   // known, mismatch, conflict, cursor
	First      int64  `json:"first"`
	Last       int64  `json:"last"`
	FirstEpoch int64  `json:"firstEpoch"`
	LastEpoch  int64  `json:"lastEpoch"`
	ID         string `json:"id"`
	Reason     string `json:"reason"`
	Stream     string `json:"stream"`
	Expected   int64  `json:"expected"`
	Actual     int64  `json:"actual"`
	Epoch      int64  `json:"epoch"`
	Position   int64  `json:"position"`
}

// send has one batch written by one statement, which also hints others of it if it shall, and gives each caller's answer.
// pgx returns from Scan when the server is ready for the next statement, so the transaction is committed by then.
func send(ctx context.Context, conn *pgx.Conn, batch []*request, hint bool) (answers []answer, err error) {
	var head domain.Cursor
	var exceptions []exception
	columns := []any{&head.LogEpoch, &head.Position, &exceptions}
	if hint {
		columns = append(columns, nil)
	}
	if err := statement(ctx, conn, batch, hint).Scan(columns...); err != nil {
		return nil, fmt.Errorf("append %d requests: %w", len(batch), err)
	}
	byCaller := make(map[int]exception, len(exceptions))
	for _, e := range exceptions {
		byCaller[e.Caller] = e
	}
	for i, r := range batch {
		e, excepted := byCaller[i+1]
		switch n := int64(len(r.ids)); {
		case excepted:
			answers = append(answers, e.answer(r))
		case n == 0:
			answers = append(answers, answer{})
		default:
			first := domain.Cursor{LogEpoch: head.LogEpoch, Position: head.Position + 1}
			head.Position += n
			answers = append(answers, answer{appended: Appended{First: first, Last: head}})
		}
	}
	return answers, nil
}

func (e exception) answer(r *request) answer {
	switch e.Code {
	case "known":
		return answer{appended: Appended{
			First: domain.Cursor{LogEpoch: e.FirstEpoch, Position: e.First},
			Last:  domain.Cursor{LogEpoch: e.LastEpoch, Position: e.Last},
			Known: true,
		}}
	case "mismatch":
		return answer{err: &IdempotencyMismatchError{ID: e.ID, Reason: e.Reason}}
	case "conflict":
		return answer{err: &ConflictError{Stream: domain.Stream(e.Stream), Expected: e.Expected, Actual: e.Actual}}
	case "cursor":
		at := domain.Cursor{LogEpoch: e.Epoch, Position: e.Position}
		return answer{err: &CursorConflictError{Name: r.Move.Name, From: r.Move.From, Actual: at}}
	}
	return answer{err: fmt.Errorf("append %s: the schema answers %q, which this program is too old for", r.name(), e.Code)}
}

func statement(ctx context.Context, conn *pgx.Conn, batch []*request, hint bool) pgx.Row {
	if r := batch[0]; len(batch) == 1 && len(r.Writes) == 1 && len(r.ids) == 1 && r.Move == nil && len(r.Attachments) == 0 {
		return statementForOne(ctx, conn, r, hint)
	}
	c := columns{}
	for i, r := range batch {
		c.add(int32(i+1), r)
	}
	return conn.QueryRow(ctx, outcome(hint, "cardinality($7::uuid[])")+` FROM pipeops.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
		$11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31) a`,
		c.writeCaller, c.writeStream, c.writeExpected,
		c.eventWrite, c.eventOffset, c.eventStream, c.id, c.project, c.kind, c.schemaVersion, c.body, c.occurredAt, c.actor,
		c.correlation, c.causation, c.attempt, c.attemptSeq, c.trace,
		c.moveCaller, c.moveName, c.fromEpoch, c.fromPosition, c.toEpoch, c.toPosition,
		c.attachmentCaller, c.attachmentID, c.attachmentEvent, c.attachmentProject, c.contentType, c.keyID, c.sealed)
}

// outcome is what a statement asks of append, with a hint or without.
func outcome(hint bool, events string) string {
	const asked = "SELECT a.epoch, a.base, a.exceptions"
	if !hint {
		return asked
	}
	return asked + ", pg_notify('" + channel + "', (a.base + " + events + ")::text)"
}

func statementForOne(ctx context.Context, conn *pgx.Conn, r *request, hint bool) pgx.Row {
	w := r.Writes[0]
	e := w.Events[0]
	return conn.QueryRow(ctx, outcome(hint, "1")+` FROM pipeops.append_one($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) a`,
		string(w.Stream), w.Expected, r.ids[0], string(e.ProjectID), e.Type, int32(e.SchemaVersion), e.Body, micros(e.OccurredAt), //nolint:gosec // checked
		e.Actor, e.CorrelationID, e.CausationID, string(e.Attempt), e.AttemptSeq, e.Trace)
}

// columns are the arguments of pipeops.append: parallel arrays of writes, events, moves and attachments.
type columns struct {
	writeCaller   []int32
	writeStream   []string
	writeExpected []int64

	eventWrite, eventOffset                                      []int32
	eventStream                                                  []string
	id                                                           [][16]byte
	project, kind, actor, correlation, causation, trace, attempt []string
	schemaVersion                                                []int32
	body                                                         [][]byte
	occurredAt                                                   []time.Time
	attemptSeq                                                   []int64

	moveCaller                                   []int32
	moveName                                     []string
	fromEpoch, fromPosition, toEpoch, toPosition []int64

	attachmentCaller                                    []int32
	attachmentID, attachmentProject, contentType, keyID []string
	attachmentEvent                                     []string
	sealed                                              [][]byte
}

func (c *columns) add(caller int32, r *request) {
	next := 0
	for _, w := range r.Writes {
		c.writeCaller = append(c.writeCaller, caller)
		c.writeStream = append(c.writeStream, string(w.Stream))
		c.writeExpected = append(c.writeExpected, w.Expected)
		for i, e := range w.Events {
			c.addEvent(place{int32(len(c.writeCaller)), int32(i + 1), w.Stream}, r.ids[next], e) //nolint:gosec // a few hundred
			next++
		}
	}
	if m := r.Move; m != nil {
		c.moveCaller = append(c.moveCaller, caller)
		c.moveName = append(c.moveName, m.Name)
		c.fromEpoch = append(c.fromEpoch, m.From.LogEpoch)
		c.fromPosition = append(c.fromPosition, m.From.Position)
		c.toEpoch = append(c.toEpoch, m.To.LogEpoch)
		c.toPosition = append(c.toPosition, m.To.Position)
	}
	for _, a := range r.Attachments {
		c.attachmentCaller = append(c.attachmentCaller, caller)
		c.attachmentID = append(c.attachmentID, a.ID)
		c.attachmentEvent = append(c.attachmentEvent, a.EventID)
		c.attachmentProject = append(c.attachmentProject, string(a.ProjectID))
		c.contentType = append(c.contentType, a.ContentType)
		c.keyID = append(c.keyID, a.KeyID)
		c.sealed = append(c.sealed, a.Sealed)
	}
}

// place is where an event stands in a statement: the number of its write and its offset there, both from 1.
type place struct {
	write, offset int32
	stream        domain.Stream
}

func (c *columns) addEvent(at place, id [16]byte, e NewEvent) {
	c.eventWrite = append(c.eventWrite, at.write)
	c.eventOffset = append(c.eventOffset, at.offset)
	c.eventStream = append(c.eventStream, string(at.stream))
	c.id = append(c.id, id)
	c.project = append(c.project, string(e.ProjectID))
	c.kind = append(c.kind, e.Type)
	c.schemaVersion = append(c.schemaVersion, int32(e.SchemaVersion)) //nolint:gosec // checked
	c.body = append(c.body, e.Body)
	c.occurredAt = append(c.occurredAt, micros(e.OccurredAt))
	c.actor = append(c.actor, e.Actor)
	c.correlation = append(c.correlation, e.CorrelationID)
	c.causation = append(c.causation, e.CausationID)
	c.attempt = append(c.attempt, string(e.Attempt))
	c.attemptSeq = append(c.attemptSeq, e.AttemptSeq)
	c.trace = append(c.trace, e.Trace)
}

// micros cuts a time to what is stored; PostgreSQL would round it.
func micros(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }
