package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

func anAppendOfManyEventsIsOneOrder(t *testing.T, open func() Store) {
	s := open()
	got := MustAppend(t, s, One("import", 0, NewEvents(3000, "A")...))
	if got.First.Position != 1 || got.Last.Position != 3000 {
		t.Errorf("appended at %+v", got)
	}
	for i, e := range Collect(t, s.ReadStream(t.Context(), "import", 1000)) {
		if e.Version != int64(i)+1001 || e.Cursor.Position != e.Version {
			t.Fatalf("event %d is version %d at %v", i, e.Version, e.Cursor)
		}
	}
}

// Two processes, eight writers on three streams, some of them refused; a reader at full speed.
func positionsAreDenseAndNoReaderEverMissesOrReorders(t *testing.T, open func() Store) {
	s := open()
	stores := []Store{s, open()}
	const writers, each = 8, 60
	ctx, stop := context.WithCancelCause(t.Context())
	var reader, group sync.WaitGroup
	var seen []domain.Recorded
	reader.Go(func() {
		var after domain.Cursor
		for last := false; ; {
			for e, err := range stores[1].Read(t.Context(), eventstore.Query{After: after}) {
				if err != nil {
					t.Error(err)
					return
				}
				seen, after = append(seen, e), e.Cursor
			}
			if last {
				return
			}
			last = context.Cause(ctx) != nil // once more when all is written
		}
	})
	for w := range writers {
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 1)) //nolint:gosec // a test's dice
			for range each {
				a := One(domain.Stream(fmt.Sprint("hot/", random.IntN(3))), eventstore.AnyVersion, NewEvents(1+random.IntN(3), "A")...)
				if random.IntN(4) == 0 {
					a.Writes[0].Expected = int64(random.IntN(50))
				}
				var conflict *eventstore.ConflictError
				if _, err := stores[w%2].Append(t.Context(), a); err != nil && !errors.As(err, &conflict) {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	stop(nil)
	reader.Wait()
	versions := map[domain.Stream]int64{}
	for i, e := range seen {
		if versions[e.Stream]++; e.Cursor.Position != int64(i+1) || e.Version != versions[e.Stream] {
			t.Fatalf("event %d seen is %v, version %d of %s, want version %d", i+1, e.Cursor, e.Version, e.Stream, versions[e.Stream])
		}
	}
	if n := Count(t, s); int64(len(seen)) != n || n < writers*each/2 {
		t.Errorf("the reader saw %d events of %d", len(seen), n)
	}
}

func appendsThatCanNeverBeWrittenAreNamed(t *testing.T, open func() Store) {
	s := open()
	with := func(f func(*eventstore.NewEvent)) eventstore.Append {
		e := NewEvent("A")
		e.ID = "11111111-0000-4000-8000-000000000000"
		f(&e)
		return One("s", 0, e)
	}
	var invalid *eventstore.InvalidError
	for name, a := range map[string]eventstore.Append{
		"no stream":         One("", 0, NewEvent("A")),
		"stream with a NUL": One("a\x00b", 0, NewEvent("A")),
		"version":           One("s", -2, NewEvent("A")),
		"stream twice":      {Writes: []eventstore.Write{{Stream: "s"}, {Stream: "s"}}},
		"no UUID":           with(func(e *eventstore.NewEvent) { e.ID = "1" }),
		"UUID in capitals":  with(func(e *eventstore.NewEvent) { e.ID = "ABCDEFAB-0000-4000-8000-000000000000" }),
		"no type":           with(func(e *eventstore.NewEvent) { e.Type = "" }),
		"schema version":    with(func(e *eventstore.NewEvent) { e.SchemaVersion = 0 }),
		"no time":           with(func(e *eventstore.NewEvent) { e.OccurredAt = time.Time{} }),
		"no JSON":           with(func(e *eventstore.NewEvent) { e.Body = []byte("{") }),
		"no UTF-8":          with(func(e *eventstore.NewEvent) { e.Body = []byte("\"\xff\"") }),
		"a line break":      with(func(e *eventstore.NewEvent) { e.Body = []byte("{\n}") }),
		"actor no UTF-8":    with(func(e *eventstore.NewEvent) { e.Actor = "\xff" }),
		"long trace":        with(func(e *eventstore.NewEvent) { e.Trace = strings.Repeat("x", 1025) }),
		"unmoved cursor":    {Move: &eventstore.CursorMove{Name: "c"}},
		"foreign attachment": {
			Writes:      []eventstore.Write{{Stream: "s"}},
			Attachments: []eventstore.Attachment{{ID: "a", EventID: "11111111-0000-4000-8000-000000000000", Sealed: []byte("x")}},
		},
	} {
		if _, err := s.Append(t.Context(), a); !errors.As(err, &invalid) {
			t.Errorf("%s: got %v, want an InvalidError", name, err)
		}
	}
	_, err := s.Append(t.Context(), with(func(e *eventstore.NewEvent) { e.Body = []byte(`"` + strings.Repeat("x", 256<<10-1) + `"`) }))
	want := &eventstore.TooLargeError{EventID: "11111111-0000-4000-8000-000000000000", Type: "A", Size: 256<<10 + 1, Limit: 256 << 10}
	if diff := cmp.Diff(error(want), err); diff != "" || !strings.Contains(err.Error(), "256 KiB") {
		t.Errorf("want - got +\n%s", diff)
	}
	MustAppend(t, s, with(func(e *eventstore.NewEvent) { e.Body = []byte(`"` + strings.Repeat("x", 256<<10-2) + `"`) }))
	if got, err := s.Append(t.Context(), eventstore.Append{}); got != (eventstore.Appended{}) || err != nil {
		t.Errorf("nothing to append gives %+v, %v", got, err)
	}
}
