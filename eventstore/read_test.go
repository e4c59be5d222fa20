package eventstore_test

import (
	"bytes"
	"errors"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/verify"
)

func TestReadPicksByProjectTypeStreamAndCorrelation(t *testing.T) {
	t.Parallel()
	s := setup(t)
	for i, c := range []struct {
		stream      domain.Stream
		project     domain.ProjectID
		kind        string
		correlation string
	}{
		{"build/1", "prj_1", "A", "x"},
		{"build/2", "prj_2", "A", "y"},
		{"operation/1", "", "B", ""},
		{"build/10", "prj_1", "B", "x"},
		{"slot/1", "prj_1", "C", "y"},
		{"builder/1", "prj_3", "A", "x"},
	} {
		e := newEvent(c.kind)
		e.ProjectID, e.CorrelationID = c.project, c.correlation
		if got := mustAppend(t, s.Store, one(c.stream, 0, e)); got.First.Position != int64(i+1) {
			t.Fatalf("appended at %+v", got)
		}
	}
	at := func(position int64) domain.Cursor { return domain.Cursor{LogEpoch: 1, Position: position} }
	for _, c := range []struct {
		query eventstore.Query
		want  string
	}{
		{eventstore.Query{}, "1 2 3 4 5 6"},
		{eventstore.Query{After: at(2), Until: 5}, "3 4 5"},
		{eventstore.Query{After: at(2), Limit: 2}, "3 4"},
		{eventstore.Query{After: at(6)}, ""},
		{eventstore.Query{Project: "prj_1"}, "1 4 5"},
		{eventstore.Query{Project: "prj_9"}, ""},
		{eventstore.Query{Types: []string{"B", "C"}}, "3 4 5"},
		{eventstore.Query{Streams: "build/"}, "1 2 4"},
		{eventstore.Query{Streams: "build/1"}, "1 4"},
		{eventstore.Query{Correlation: "x"}, "1 4 6"},
		{eventstore.Query{Project: "prj_1", Types: []string{"A", "B"}, Streams: "build/", Correlation: "x", After: at(1), Limit: 9}, "4"},
	} {
		var got []string
		for _, e := range collect(t, s.Read(t.Context(), c.query)) {
			got = append(got, strconv.FormatInt(e.Cursor.Position, 10))
		}
		if diff := cmp.Diff(c.want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%+v: want - got +\n%s", c.query, diff)
		}
	}
	for _, err := range s.Read(t.Context(), eventstore.Query{}) {
		if err != nil {
			t.Error(err)
		}
		break // whoever stops early holds nothing: Close would wait for a connection that is still lent
	}
}

func TestFindGivesWhatIsRecordedInOrder(t *testing.T) {
	t.Parallel()
	s := setup(t)
	events := newEvents(3, "A")
	mustAppend(t, s.Store, one("build/1", 0, events...))
	found, err := s.Find(t.Context(), events[2].ID, newEvent("never").ID, events[0].ID)
	if got := positions(found); got != "1:1 3:3" || err != nil {
		t.Errorf("found %s, %v", got, err)
	}
	var invalid *eventstore.InvalidError
	if _, err := s.Find(t.Context(), "1"); !errors.As(err, &invalid) {
		t.Errorf("got %v, want an InvalidError", err)
	}
}

// Not parallel: it measures the process.
func TestReadingALargeLogTakesConstantMemory(t *testing.T) {
	s := setup(t)
	body := append(append([]byte{'"'}, bytes.Repeat([]byte("x"), 200<<10)...), '"')
	const events = 200 // 40 MB
	for range events / 10 {
		batch := newEvents(10, "A")
		for i := range batch {
			batch[i].Body = body
		}
		mustAppend(t, s.Store, one("build/1", eventstore.AnyVersion, batch...))
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

func TestARestoredLogIsTold(t *testing.T) {
	t.Parallel()
	s := setup(t)
	mustAppend(t, s.Store, one("build/1", 0, newEvents(10, "A")...))
	raise := func(atLeast, want int64) {
		t.Helper()
		var epoch int64
		if err := s.owner.QueryRow(t.Context(), "SELECT pipeops.raise_log_epoch($1)", atLeast).Scan(&epoch); err != nil || epoch != want {
			t.Fatalf("raised to %d, %v; want %d", epoch, err, want)
		}
	}
	raise(0, 2)
	got := mustAppend(t, s.Store, one("build/1", 10, newEvents(2, "A")...))
	if want := (domain.Cursor{LogEpoch: 2, Position: 11}); got.First != want {
		t.Errorf("appended at %v, want %v", got.First, want)
	}
	raise(7, 7)
	raise(0, 8)
	mustAppend(t, s.Store, one("build/1", 12, newEvents(1, "A")...))
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
	mustAppend(t, s.Store, one("build/1", 0, newEvent("A")))
	first := collect(t, s.Read(t.Context(), eventstore.Query{}))[0]
	again := collect(t, s.ReadStream(t.Context(), "build/1", 0))[0]
	again.OccurredAt = again.OccurredAt.In(time.FixedZone("elsewhere", 3600))
	if verify.LeafHash(first) != verify.LeafHash(again) {
		t.Error("the leaf depends on how the event was read")
	}
}
