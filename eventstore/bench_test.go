package eventstore_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/storetest"
)

// The same row into a table with the same indexes, one transaction each, by a prepared statement: order unsafe, no
// streams, no idempotency. Compare only figures of one run:
//
//	go test ./eventstore -run - -bench . -benchtime 3s
func BenchmarkBareInsert(b *testing.B) {
	for _, writers := range []int{1, 8, 64, 512} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := setup(b)
			if _, err := s.owner.Exec(b.Context(), `CREATE SCHEMA bare; CREATE SEQUENCE bare.position;
				CREATE TABLE bare.events (LIKE pipeops.events INCLUDING ALL)`); err != nil {
				b.Fatal(err)
			}
			config := s.owner.Config()
			config.MaxConns = int32(writers)
			pool, err := pgxpool.NewWithConfig(b.Context(), config)
			if err != nil {
				b.Fatal(err)
			}
			defer pool.Close()
			write(b, writers, func(stream domain.Stream, version int64, e eventstore.NewEvent) error {
				id := uuid.MustParse(e.ID)
				_, err := pool.Exec(b.Context(), `INSERT INTO bare.events (position, log_epoch, stream, version, id, project_id, type,
					schema_version, body, occurred_at, recorded_at, actor, correlation_id, causation_id, attempt, attempt_seq, trace)
					VALUES (nextval('bare.position'), 1, $1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp(), $9, $10, $11, $12, $13, $14)`,
					string(stream), version+1, [16]byte(id), string(e.ProjectID), e.Type, e.SchemaVersion, e.Body, e.OccurredAt, e.Actor,
					e.CorrelationID, e.CausationID, string(e.Attempt), e.AttemptSeq, e.Trace)
				return err
			})
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 8, 64, 512} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := setup(b)
			write(b, writers, func(stream domain.Stream, version int64, e eventstore.NewEvent) error {
				_, err := s.Append(b.Context(), storetest.One(stream, version, e))
				return err
			})
		})
	}
}

// write has each writer append b.N/writers events to ten streams of its own.
func write(b *testing.B, writers int, appendOne func(domain.Stream, int64, eventstore.NewEvent) error) {
	b.Helper()
	body := []byte(`{"text":"` + strings.Repeat("x", 209) + `"}`)
	var next atomic.Int64
	var group sync.WaitGroup
	b.ResetTimer()
	for w := range writers {
		group.Go(func() {
			versions := map[domain.Stream]int64{}
			for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
				stream := domain.Stream(fmt.Sprintf("build/%d-%d", w, n%10))
				e := storetest.NewEvent("LayerCached")
				e.Body, e.OccurredAt = body, time.Now()
				if err := appendOne(stream, versions[stream], e); err != nil {
					b.Error(err)
					return
				}
				versions[stream]++
			}
		})
	}
	group.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

func BenchmarkRead(b *testing.B) {
	s := setup(b)
	const events = 20_000
	for range events / 500 {
		storetest.MustAppend(b, s.Store, storetest.One("build/1", eventstore.AnyVersion, storetest.NewEvents(500, "LayerCached")...))
	}
	b.ResetTimer()
	for b.Loop() {
		n := 0
		for _, err := range s.Read(b.Context(), eventstore.Query{}) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n != events {
			b.Fatalf("read %d events, want %d", n, events)
		}
	}
	b.ReportMetric(float64(b.N*events)/b.Elapsed().Seconds(), "events/s")
}
