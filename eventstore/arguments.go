package eventstore

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
)

// Arguments are written in PostgreSQL's binary form straight from the requests. To gather them in Go's slices first, for
// pgx to encode, took more time than all the rest of an append on this side.

// argumentsOfOne gives those of pipeops.append_one.
func argumentsOfOne(r *request) [][]byte {
	w := r.Writes[0]
	e := w.Events[0]
	return [][]byte{
		[]byte(w.Stream), encodeBigint(w.Expected), r.ids[0][:], []byte(e.ProjectID), []byte(e.Type), encodeInteger(e.SchemaVersion), e.Body,
		encodeBigint(micros(e.OccurredAt)), []byte(e.Actor), []byte(e.CorrelationID), []byte(e.CausationID), []byte(e.Attempt), encodeBigint(e.AttemptSeq), []byte(e.Trace),
	}
}

// argumentsOfNextOne gives those of pipeops.append_known_one, but the first two.
func argumentsOfNextOne(r *request) [][]byte {
	arguments := argumentsOfOne(r)
	arguments[1] = encodeBigint(r.Writes[0].Expected + 1)
	return arguments
}

// maxKept bounds what columns keep for the next batch, in bytes of bodies.
const maxKept = 8 << 20

// argumentsOfNext gives those of pipeops.append_known, but the first two. They are valid until it is called again.
func (c *columns) argumentsOfNext(batch []*request) [][]byte {
	if cap(c.body.form) > maxKept {
		*c = columns{}
	}
	all := append([]column{{&c.eventStream, pgtype.TextOID}, {&c.version, pgtype.Int8OID}}, c.ofEvents()...)
	for _, a := range all {
		a.empty()
	}
	for _, r := range batch {
		next := 0
		for _, w := range r.Writes {
			for i, e := range w.Events {
				c.eventStream.text(string(w.Stream))
				c.version.bigint(w.Expected + int64(i) + 1)
				c.id.blob(r.ids[next][:])
				c.event(e)
				next++
			}
		}
	}
	return finished(all)
}

// argumentsOf gives those of pipeops.append.
func argumentsOf(batch []*request) [][]byte {
	var c columns
	for i, r := range batch {
		c.add(i+1, r)
	}
	return finished(slices.Concat([]column{
		{&c.writeCaller, pgtype.Int4OID},
		{&c.writeStream, pgtype.TextOID},
		{&c.writeExpected, pgtype.Int8OID},

		{&c.eventWrite, pgtype.Int4OID},
		{&c.eventOffset, pgtype.Int4OID},
		{&c.eventStream, pgtype.TextOID},
	}, c.ofEvents(), []column{
		{&c.moveCaller, pgtype.Int4OID},
		{&c.moveName, pgtype.TextOID},
		{&c.fromEpoch, pgtype.Int8OID},
		{&c.fromPosition, pgtype.Int8OID},
		{&c.toEpoch, pgtype.Int8OID},
		{&c.toPosition, pgtype.Int8OID},

		{&c.attachmentCaller, pgtype.Int4OID},
		{&c.attachmentID, pgtype.TextOID},
		{&c.attachmentEvent, pgtype.UUIDOID},
		{&c.attachmentProject, pgtype.TextOID},
		{&c.contentType, pgtype.TextOID},
		{&c.keyID, pgtype.TextOID},
		{&c.sealed, pgtype.ByteaOID},
	}))
}

// ofEvents are those that event fills, and id, in the order of the functions.
func (c *columns) ofEvents() []column {
	return []column{
		{&c.id, pgtype.UUIDOID},
		{&c.project, pgtype.TextOID},
		{&c.kind, pgtype.TextOID},
		{&c.schemaVersion, pgtype.Int4OID},
		{&c.body, pgtype.ByteaOID},
		{&c.occurredAt, pgtype.TimestamptzOID},
		{&c.actor, pgtype.TextOID},
		{&c.correlation, pgtype.TextOID},
		{&c.causation, pgtype.TextOID},
		{&c.attempt, pgtype.TextOID},
		{&c.attemptSeq, pgtype.Int8OID},
		{&c.trace, pgtype.TextOID},
	}
}

// column is an array with the type of its elements.
type column struct {
	*array
	of uint32
}

func finished(all []column) [][]byte {
	arguments := make([][]byte, len(all))
	for i, a := range all {
		arguments[i] = a.argument(a.of)
	}
	return arguments
}

// columns are parallel arrays of writes, events, moves and attachments.
type columns struct {
	writeCaller, writeStream, writeExpected array

	eventWrite, eventOffset, eventStream, version, id, project, kind, schemaVersion, body, occurredAt array
	actor, correlation, causation, attempt, attemptSeq, trace                                         array

	moveCaller, moveName, fromEpoch, fromPosition, toEpoch, toPosition array

	attachmentCaller, attachmentID, attachmentEvent, attachmentProject, contentType, keyID, sealed array
}

// add takes in a request. Callers, writes and a write's events are numbered from 1.
func (c *columns) add(caller int, r *request) {
	next := 0
	for _, w := range r.Writes {
		c.writeCaller.integer(caller)
		c.writeStream.text(string(w.Stream))
		c.writeExpected.bigint(w.Expected)
		for i, e := range w.Events {
			c.eventWrite.integer(int(c.writeCaller.n))
			c.eventOffset.integer(i + 1)
			c.eventStream.text(string(w.Stream))
			c.id.blob(r.ids[next][:])
			c.event(e)
			next++
		}
	}
	if m := r.Move; m != nil {
		c.moveCaller.integer(caller)
		c.moveName.text(m.Name)
		c.fromEpoch.bigint(m.From.LogEpoch)
		c.fromPosition.bigint(m.From.Position)
		c.toEpoch.bigint(m.To.LogEpoch)
		c.toPosition.bigint(m.To.Position)
	}
	for _, a := range r.Attachments {
		event := uuid.MustParse(a.EventID) // an event of the request has it
		c.attachmentCaller.integer(caller)
		c.attachmentID.text(a.ID)
		c.attachmentEvent.blob(event[:])
		c.attachmentProject.text(string(a.ProjectID))
		c.contentType.text(a.ContentType)
		c.keyID.text(a.KeyID)
		c.sealed.blob(a.Sealed)
	}
}

func (c *columns) event(e NewEvent) {
	c.project.text(string(e.ProjectID))
	c.kind.text(e.Type)
	c.schemaVersion.integer(e.SchemaVersion)
	c.body.blob(e.Body)
	c.occurredAt.bigint(micros(e.OccurredAt))
	c.actor.text(e.Actor)
	c.correlation.text(e.CorrelationID)
	c.causation.text(e.CausationID)
	c.attempt.text(string(e.Attempt))
	c.attemptSeq.bigint(e.AttemptSeq)
	c.trace.text(e.Trace)
}

// array is one in PostgreSQL's binary form: a header, then each element after its length.
type array struct {
	n    uint32
	form []byte // the header is filled in at the end
}

const (
	arrayHeader = 20 // dimensions, whether there are nulls, type of the elements; length, and number of the first one
	emptyArray  = 12 // without dimensions
)

// element begins one of so many bytes.
func (a *array) element(length int) {
	if a.n++; a.form == nil {
		a.form = make([]byte, arrayHeader, 1024)
	}
	a.form = binary.BigEndian.AppendUint32(a.form, uint32(length)) //nolint:gosec // at most MaxAppend
}

func (a *array) text(v string) {
	a.element(len(v))
	a.form = append(a.form, v...)
}

func (a *array) blob(v []byte) {
	a.element(len(v))
	a.form = append(a.form, v...)
}

func (a *array) integer(v int) {
	a.element(4)
	a.form = binary.BigEndian.AppendUint32(a.form, uint32(v)) //nolint:gosec // two's complement, as PostgreSQL has it
}

func (a *array) bigint(v int64) {
	a.element(8)
	a.form = binary.BigEndian.AppendUint64(a.form, uint64(v)) //nolint:gosec // the same
}

// argument gives the finished form, of elements of that type.
func (a *array) argument(of uint32) []byte {
	if a.n == 0 {
		return binary.BigEndian.AppendUint32(make([]byte, emptyArray-4, emptyArray), of)
	}
	binary.BigEndian.PutUint32(a.form, 1)
	binary.BigEndian.PutUint32(a.form[8:], of)
	binary.BigEndian.PutUint32(a.form[12:], a.n)
	binary.BigEndian.PutUint32(a.form[16:], 1)
	return a.form
}

// empty keeps the room.
func (a *array) empty() {
	if a.n = 0; a.form != nil {
		a.form = a.form[:arrayHeader]
	}
}

func encodeInteger(v int) []byte  { return binary.BigEndian.AppendUint32(nil, uint32(v)) } //nolint:gosec // two's complement
func encodeBigint(v int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(v)) } //nolint:gosec // the same

// micros is a timestamptz: a time cut to µs, where PostgreSQL would round.
func micros(t time.Time) int64 { return t.UnixMicro() - year2000 }
