package eventstore

import (
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
)

const selectEvents = `SELECT position, log_epoch, stream, version, id::text, project_id, type, schema_version, body,
	occurred_at, recorded_at, actor, correlation_id, causation_id, attempt, attempt_seq, trace FROM pipeops.events`

// textColumns are those of selectEvents that are text.
var textColumns = [...]int{2, 4, 5, 6, 11, 12, 13, 14, 16}

// readRow takes a row of selectEvents apart by hand: whoever reads the whole log spends most of its time here, and scan
// plans with a string per column take twice as long as the database does. The row is in binary form, see Open.
func readRow(row pgx.CollectableRow) (e domain.Recorded, err error) {
	v := row.RawValues()
	size := 0
	for _, i := range textColumns {
		size += len(v[i])
	}
	var room strings.Builder // one piece of memory for all texts, which lives as long as the event
	room.Grow(size)
	for _, i := range textColumns {
		room.Write(v[i])
	}
	texts := room.String()
	text := func(i int) (s string) {
		s, texts = texts[:len(v[i])], texts[len(v[i]):]
		return s
	}
	return domain.Recorded{ // texts in the order of textColumns
		Cursor: domain.Cursor{Position: bigint(v[0]), LogEpoch: bigint(v[1])},
		Stream: domain.Stream(text(2)), Version: bigint(v[3]), ID: text(4), ProjectID: domain.ProjectID(text(5)), Type: text(6),
		SchemaVersion: int(int32(binary.BigEndian.Uint32(v[7]))), Body: slices.Clone(v[8]), //nolint:gosec // two's complement
		OccurredAt: timestamp(v[9]), RecordedAt: timestamp(v[10]),
		Actor: text(11), CorrelationID: text(12), CausationID: text(13), Attempt: domain.AttemptID(text(14)), AttemptSeq: bigint(v[15]), Trace: text(16),
	}, nil
}

func bigint(v []byte) int64 { return int64(binary.BigEndian.Uint64(v)) } //nolint:gosec // two's complement

// year2000 is where a timestamptz begins, in µs since 1970.
const year2000 = 946_684_800_000_000

func timestamp(v []byte) time.Time { return time.UnixMicro(bigint(v) + year2000).UTC() }
