package eventstore_test

import (
	"bytes"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/storetest"
	"github.com/pipeops/pipeops/eventstore/verify"
)

// Not parallel: it measures the process.
func TestReadingALargeLogTakesConstantMemory(t *testing.T) {
	s := setup(t)
	body := append(append([]byte{'"'}, bytes.Repeat([]byte("x"), 200<<10)...), '"')
	const events = 200 // 40 MB
	for range events / 10 {
		batch := storetest.NewEvents(10, "A")
		for i := range batch {
			batch[i].Body = body
		}
		storetest.MustAppend(t, s.Store, storetest.One("build/1", eventstore.AnyVersion, batch...))
	}
	inUse := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapInuse
	}
	before, most, n := inUse(), uint64(0), 0
	for _, err := range s.Read(t.Context(), eventstore.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n%25 == 0 {
			most = max(most, inUse())
		}
	}
	if grown := int64(most) - int64(before); n != events || grown > 30<<20 {
		t.Errorf("%d events read, the heap grew by %d bytes", n, grown)
	}
}

func TestAcceptance11_ARestoredLogIsTold(t *testing.T) {
	t.Parallel()
	s := setup(t)
	storetest.MustAppend(t, s.Store, storetest.One("build/1", 0, storetest.NewEvents(10, "A")...))
	raise := func(atLeast, want int64) {
		t.Helper()
		var epoch int64
		if err := s.owner.QueryRow(t.Context(), "SELECT pipeops.raise_log_epoch($1)", atLeast).Scan(&epoch); err != nil || epoch != want {
			t.Fatalf("raised to %d, %v; want %d", epoch, err, want)
		}
	}
	raise(0, 2)
	got := storetest.MustAppend(t, s.Store, storetest.One("build/1", 10, storetest.NewEvents(2, "A")...))
	if want := (domain.Cursor{LogEpoch: 2, Position: 11}); got.First != want {
		t.Errorf("appended at %v, want %v", got.First, want)
	}
	raise(7, 7)
	raise(0, 8)
	storetest.MustAppend(t, s.Store, storetest.One("build/1", 12, storetest.NewEvents(1, "A")...))
	for text, want := range map[string]error{
		"0.0": nil, "1.0": nil, "1.5": nil, "1.10": nil, "2.10": nil, "2.11": nil, "2.12": nil, "7.12": nil, "8.13": nil, "8.3": nil,
		"1.11": &eventstore.LogForkedError{ForkedAt: 11}, "1.99": &eventstore.LogForkedError{ForkedAt: 11},
		"2.13": &eventstore.LogForkedError{ForkedAt: 13}, "7.13": &eventstore.LogForkedError{ForkedAt: 13},
		"8.14": &eventstore.CursorAheadError{Head: domain.Cursor{LogEpoch: 8, Position: 13}},
		"9.5":  &eventstore.CursorAheadError{Head: domain.Cursor{LogEpoch: 8, Position: 13}},
	} {
		cursor, err := domain.ParseCursor(text)
		if err != nil {
			t.Fatal(err)
		}
		if forked, ok := errors.AsType[*eventstore.LogForkedError](want); ok {
			forked.Cursor = cursor
		}
		if ahead, ok := errors.AsType[*eventstore.CursorAheadError](want); ok {
			ahead.Cursor = cursor
		}
		if diff := cmp.Diff(want, s.Check(t.Context(), cursor)); diff != "" {
			t.Errorf("%s: want - got +\n%s", text, diff)
		}
		for _, err := range s.Read(t.Context(), eventstore.Query{After: cursor}) {
			if diff := cmp.Diff(want, err); diff != "" {
				t.Errorf("read after %s: want - got +\n%s", text, diff)
			}
		}
	}
}

func TestALeafIsTheSameWhenReadBack(t *testing.T) {
	t.Parallel()
	s := setup(t)
	storetest.MustAppend(t, s.Store, storetest.One("build/1", 0, storetest.NewEvent("A")))
	first := storetest.Collect(t, s.Read(t.Context(), eventstore.Query{}))[0]
	again := storetest.Collect(t, s.ReadStream(t.Context(), "build/1", 0))[0]
	again.OccurredAt = again.OccurredAt.In(time.FixedZone("elsewhere", 3600))
	if verify.LeafHash(first) != verify.LeafHash(again) {
		t.Error("the leaf depends on how the event was read")
	}
}
