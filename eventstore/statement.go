package eventstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

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
// The server is ready for the next statement when it returns, so the transaction is committed by then.
func (c *committer) send(ctx context.Context, batch []*request, hint bool) (answers []answer, err error) {
	var head domain.Cursor
	var exceptions []exception
	done := false
	if c.versions.areNext(batch) {
		head, done, err = c.executeNext(ctx, batch, hint)
	}
	if err == nil && !done {
		head, exceptions, err = c.execute(ctx, batch, hint)
	}
	if err == nil && slices.ContainsFunc(exceptions, func(e exception) bool { return e.Code == known }) {
		err = c.confirm(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("append %d requests: %w", len(batch), err)
	}
	answers = make([]answer, 0, len(batch))
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
	c.versions.learn(batch, answers)
	return answers, nil
}

// confirm makes sure of what was there already: who wrote it may have been cancelled while it waited for a synchronous
// standby, and then it is seen, and not yet safe. It is as soon as something written after it is.
func (c *committer) confirm(ctx context.Context) error {
	_, err := c.conn.Exec(ctx, "SELECT pg_logical_emit_message(true, 'pipeops', '')")
	return err
}

// known is the code of a caller whose events are all there already.
const known = "known"

func (e exception) answer(r *request) answer {
	switch e.Code {
	case known:
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

const (
	asked = "SELECT epoch, base, exceptions"

	toOne     = " FROM pipeops.append_one($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
	hintOfOne = ", pg_notify('" + channel + "', (base + 1)::text)"

	toMany = ` FROM pipeops.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
		$21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31)`
	hintOfMany = ", pg_notify('" + channel + "', (base + cardinality($7::uuid[]))::text)"

	knownOne  = "pipeops.append_known_one($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)"
	knownMany = "pipeops.append_known($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)"

	hintOfKnown = ", CASE WHEN last IS NOT NULL THEN pg_notify('" + channel + "', last::text) END"
)

// executeNext is execute for a batch of which all events are the next ones of their streams; false when they aren't, and
// nothing is written.
func (c *committer) executeNext(ctx context.Context, batch []*request, hint bool) (before domain.Cursor, done bool, err error) {
	function, arguments := knownMany, [][]byte{c.versions.server, encodeBigint(c.versions.epoch)}
	if isOne(batch) {
		function, arguments = knownOne, append(arguments, argumentsOfNextOne(batch[0])...)
	} else {
		arguments = append(arguments, c.columns.argumentsOfNext(batch)...)
	}
	text := "SELECT " + function
	if hint {
		text = "SELECT last" + hintOfKnown + " FROM " + function + " last"
	}
	row, err := c.query(ctx, text, arguments)
	if err != nil {
		return before, false, err
	}
	if row[0] == nil { // somebody was faster; or it is another server process, or epoch
		c.versions.careful = carefulBatches
		return before, false, c.versions.meet(ctx, c.conn)
	}
	before.LogEpoch = c.versions.epoch
	before.Position, err = strconv.ParseInt(string(row[0]), 10, 64)
	for _, r := range batch {
		before.Position -= int64(len(r.ids))
	}
	return before, true, err
}

// isOne says whether a batch is a single event of a single stream.
func isOne(batch []*request) bool {
	r := batch[0]
	return len(batch) == 1 && len(r.Writes) == 1 && len(r.ids) == 1 && r.Move == nil && len(r.Attachments) == 0
}

// execute gives where the log ended before the batch, and of whom nothing was written.
func (c *committer) execute(ctx context.Context, batch []*request, hint bool) (before domain.Cursor, exceptions []exception, err error) {
	one := isOne(batch)
	var row [][]byte
	switch {
	case one && hint:
		row, err = c.query(ctx, asked+hintOfOne+toOne, argumentsOfOne(batch[0]))
	case one:
		row, err = c.query(ctx, asked+toOne, argumentsOfOne(batch[0]))
	case hint:
		row, err = c.query(ctx, asked+hintOfMany+toMany, argumentsOf(batch))
	default:
		row, err = c.query(ctx, asked+toMany, argumentsOf(batch))
	}
	if err != nil {
		return before, nil, err
	}
	if before.LogEpoch, err = strconv.ParseInt(string(row[0]), 10, 64); err == nil {
		c.versions.epoch = before.LogEpoch
		before.Position, err = strconv.ParseInt(string(row[1]), 10, 64)
	}
	if err == nil && row[2] != nil {
		err = json.Unmarshal(row[2], &exceptions)
	}
	return before, exceptions, err
}

// query gives the one row of a statement, as text. Its arguments are in binary form.
func (c *committer) query(ctx context.Context, text string, arguments [][]byte) (row [][]byte, err error) {
	conn := c.conn.PgConn()
	name := ""
	if c.settings.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		prepared, err := c.conn.Prepare(ctx, text, text) // once per connection
		if err != nil {
			return nil, err
		}
		name = prepared.Name
	}
	if cause := context.Cause(ctx); cause != nil { // nothing is in flight: the connection stays
		return nil, cause
	}
	lift := limit(ctx, conn)
	sound := true
	if name != "" {
		row, sound, err = c.executePrepared(name, arguments)
	} else { // as the database's address asks, for a pooler that keeps no statements
		result := conn.ExecParams(context.Background(), text, arguments, nil, binaryForm, nil).Read()
		if err = result.Err; err == nil {
			row = result.Rows[0]
		}
	}
	lift()
	if !sound {
		c.lose()
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return nil, fmt.Errorf("%w: %w", cause, err)
	}
	return row, err
}

var binaryForm = []int16{pgx.BinaryFormatCode}

// executePrepared is pgconn's ExecPrepared for one row, without asking how the row looks, and with a buffer that stays: pgconn
// has one grow anew, by doubling, for each statement of over 1 KB. The connection is not sound when an answer to it may come
// later.
func (c *committer) executePrepared(name string, arguments [][]byte) (row [][]byte, sound bool, err error) {
	c.wire, err = (&pgproto3.Bind{PreparedStatement: name, ParameterFormatCodes: binaryForm, Parameters: arguments}).Encode(c.wire[:0])
	if err == nil {
		c.wire, err = (&pgproto3.Execute{}).Encode(c.wire)
	}
	if err == nil {
		c.wire, err = (&pgproto3.Sync{}).Encode(c.wire)
	}
	if err != nil { // nothing was sent
		return nil, true, err
	}
	_, err = c.conn.PgConn().Conn().Write(c.wire)
	if cap(c.wire) > maxKept {
		c.wire = nil
	}
	if err != nil {
		return nil, false, err
	}
	var refused error
	for {
		message, err := c.conn.PgConn().ReceiveMessage(context.Background())
		if err != nil {
			return nil, false, errors.Join(refused, err)
		}
		switch m := message.(type) {
		case *pgproto3.DataRow:
			for _, value := range m.Values {
				row = append(row, bytes.Clone(value))
			}
		case *pgproto3.ErrorResponse:
			refused = pgconn.ErrorResponseToPgError(m)
		case *pgproto3.ReadyForQuery:
			if refused == nil && row == nil {
				refused = errors.New("the statement gave no row")
			}
			return row, true, refused
		}
	}
}

// limit ends what is in flight on a connection, and the connection, when ctx ends, until lift. pgconn's own way takes a
// goroutine for each statement, and so a thread's waking up, which a single append has to wait for.
func limit(ctx context.Context, conn *pgconn.PgConn) (lift func()) {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		_ = conn.Conn().SetDeadline(time.Unix(1, 0)) // fails on a closed one only
	})
	return func() {
		if stop() {
			return
		}
		<-ended
		if !conn.IsClosed() { // who closes it has a deadline of his own
			_ = conn.Conn().SetDeadline(time.Time{})
		}
	}
}
