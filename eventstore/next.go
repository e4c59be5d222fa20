package eventstore

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
)

const (
	maxVersions    = 1 << 15 // of streams, that are remembered at least
	carefulBatches = 64      // after one whose versions weren't the next ones: where one lost a race, more do
)

// versions remembers to which version streams were brought by appends from here. The log never changes: so who expects
// that version needs no look-up, as the next one is taken if anybody else has gone on since. That holds for as long as
// the server process lives and the log epoch lasts, which the server checks; a failover may lose the end of a stream.
type versions struct {
	server     []byte // when that process started, as an argument; nil: not known
	epoch      int64  // of the last append; 0: not known
	young, old map[domain.Stream]int64
	careful    int // so many batches are sent with look-ups
}

// meet begins anew with the server process behind a connection.
func (v *versions) meet(ctx context.Context, conn *pgx.Conn) error {
	*v = versions{young: map[domain.Stream]int64{}, careful: v.careful}
	var started time.Time
	err := conn.QueryRow(ctx, "SELECT pg_postmaster_start_time()").Scan(&started)
	if err == nil {
		v.server = encodeBigint(micros(started))
	}
	return err
}

// areNext says whether the events of a batch are for certain the next ones of their streams, if nobody else was faster.
func (v *versions) areNext(batch []*request) bool {
	if v.careful > 0 {
		v.careful--
		return false
	}
	if v.server == nil || v.epoch == 0 {
		return false
	}
	for _, r := range batch {
		if r.Move != nil || len(r.Attachments) > 0 {
			return false
		}
		for _, w := range r.Writes {
			if len(w.Events) == 0 || w.Expected != 0 && w.Expected != v.of(w.Stream) {
				return false
			}
		}
	}
	return true
}

// of gives the version of a stream; 0: not known.
func (v *versions) of(stream domain.Stream) int64 {
	if version := v.young[stream]; version > 0 {
		return version
	}
	return v.old[stream]
}

// learn takes in what was appended.
func (v *versions) learn(batch []*request, answers []answer) {
	for i, r := range batch {
		if answers[i].err != nil || answers[i].appended.Known {
			continue
		}
		for _, w := range r.Writes {
			if w.Expected < 0 {
				delete(v.young, w.Stream)
				delete(v.old, w.Stream)
				continue
			}
			if len(v.young) >= maxVersions {
				v.young, v.old = map[domain.Stream]int64{}, v.young
			}
			v.young[w.Stream] = w.Expected + int64(len(w.Events))
		}
	}
}
