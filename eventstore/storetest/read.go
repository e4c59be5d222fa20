package storetest

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

func readPicksByProjectTypeStreamAndCorrelation(t *testing.T, open func() Store) {
	s := open()
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
		e := NewEvent(c.kind)
		e.ProjectID, e.CorrelationID = c.project, c.correlation
		if got := MustAppend(t, s, One(c.stream, 0, e)); got.First.Position != int64(i+1) {
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
		for _, e := range Collect(t, s.Read(t.Context(), c.query)) {
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

func findGivesWhatIsRecordedInOrder(t *testing.T, open func() Store) {
	s := open()
	events := NewEvents(3, "A")
	MustAppend(t, s, One("build/1", 0, events...))
	found, err := s.Find(t.Context(), events[2].ID, NewEvent("never").ID, events[0].ID)
	if got := Positions(found); got != "1:1 3:3" || err != nil {
		t.Errorf("found %s, %v", got, err)
	}
	var invalid *eventstore.InvalidError
	if _, err := s.Find(t.Context(), "1"); !errors.As(err, &invalid) {
		t.Errorf("got %v, want an InvalidError", err)
	}
}

func checkTellsACursorAheadOfTheLog(t *testing.T, open func() Store) {
	s := open()
	Fill(t, s, 3)
	head, err := s.Head(t.Context())
	if err != nil || head.Position != 3 {
		t.Fatalf("the head is %v, %v", head, err)
	}
	for _, good := range []domain.Cursor{{}, {LogEpoch: head.LogEpoch, Position: 1}, head} {
		if err := s.Check(t.Context(), good); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
	beyond := domain.Cursor{LogEpoch: head.LogEpoch, Position: 4}
	want := &eventstore.CursorAheadError{Cursor: beyond, Head: head}
	if diff := cmp.Diff(error(want), s.Check(t.Context(), beyond)); diff != "" {
		t.Errorf("want - got +\n%s", diff)
	}
	for _, err := range s.Read(t.Context(), eventstore.Query{After: beyond}) {
		if diff := cmp.Diff(error(want), err); diff != "" {
			t.Errorf("reading: want - got +\n%s", diff)
		}
	}
	for _, err := range s.Subscribe(t.Context(), beyond, eventstore.Filter{}) {
		if diff := cmp.Diff(error(want), err); diff != "" {
			t.Errorf("following: want - got +\n%s", diff)
		}
	}
}
