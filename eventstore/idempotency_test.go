package eventstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

func TestTheSameAppendTwiceIsOnce(t *testing.T) {
	t.Parallel()
	s := setup(t)
	for name, a := range map[string]eventstore.Append{
		"one event":   one("build/1", 0, newEvents(1, "A")...),
		"many events": one("build/2", 0, newEvents(3, "A")...),
		"two streams": {Writes: []eventstore.Write{{Stream: "push/1", Events: newEvents(2, "A")}, {Stream: "ref/1", Events: newEvents(1, "B")}}},
	} {
		first := mustAppend(t, s.Store, a)
		mustAppend(t, s.Store, one(a.Writes[0].Stream, eventstore.AnyVersion, newEvent("Later")))
		before := count(t, s.Store)
		for i := range a.Writes[0].Events { // what was asked again later has another time and another cause
			a.Writes[0].Events[i].OccurredAt = time.Now()
			a.Writes[0].Events[i].Trace = "another"
		}
		again := mustAppend(t, s.Store, a)
		first.Known = true
		if diff := cmp.Diff(first, again); diff != "" || count(t, s.Store) != before {
			t.Errorf("%s: first - again +\n%s%d events more", name, diff, count(t, s.Store)-before)
		}
	}
}

func TestAnIDWithAnotherMeaningIsRefusedAndNothingWritten(t *testing.T) {
	t.Parallel()
	s := setup(t)
	events := newEvents(2, "A")
	mustAppend(t, s.Store, one("build/1", 0, events...))
	change := func(f func(*eventstore.NewEvent)) []eventstore.NewEvent {
		changed := slices.Clone(events)
		f(&changed[1])
		return changed
	}
	for name, c := range map[string]struct {
		append eventstore.Append
		want   eventstore.IdempotencyMismatchError
	}{
		"body":       {one("build/1", 0, change(func(e *eventstore.NewEvent) { e.Body = []byte(`{"n":2}`) })...), eventstore.IdempotencyMismatchError{ID: events[1].ID, Reason: "different"}},
		"type":       {one("build/1", 0, change(func(e *eventstore.NewEvent) { e.Type = "B" })...), eventstore.IdempotencyMismatchError{ID: events[1].ID, Reason: "different"}},
		"stream":     {one("build/2", 0, events[0]), eventstore.IdempotencyMismatchError{ID: events[0].ID, Reason: "different"}},
		"half known": {one("build/1", 2, append(slices.Clone(events), eventstore.NewEvent{ID: "ffffffff-0000-4000-8000-000000000000", Type: "A", SchemaVersion: 1, Body: []byte("1"), OccurredAt: time.Now()})...), eventstore.IdempotencyMismatchError{ID: "ffffffff-0000-4000-8000-000000000000", Reason: "missing"}},
	} {
		_, err := s.Append(t.Context(), c.append)
		var mismatch *eventstore.IdempotencyMismatchError
		if !errors.As(err, &mismatch) || *mismatch != c.want {
			t.Errorf("%s: got %v, want %v", name, err, &c.want)
		}
	}
	if n := count(t, s.Store); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
}

func TestTheSameAppendFromManyAtOnceIsOnce(t *testing.T) {
	t.Parallel()
	s := setup(t)
	stores := []*eventstore.Store{s.Store, s.open(t, eventstore.Config{})}
	a := one("push/1", 0, newEvents(2, "PushReceived")...)
	var known atomic.Int64
	var group sync.WaitGroup
	for i := range 50 {
		group.Go(func() {
			got, err := stores[i%2].Append(t.Context(), a)
			if err != nil || got.First.Position != 1 || got.Last.Position != 2 {
				t.Errorf("got %+v, %v", got, err)
			}
			if got.Known {
				known.Add(1)
			}
		})
	}
	group.Wait()
	if n := count(t, s.Store); n != 2 || known.Load() != 49 {
		t.Errorf("%d events, %d of 50 learnt that they were there; want 2 and 49", n, known.Load())
	}
}

// lossy passes bytes between a store and PostgreSQL, and cuts the connection when the answer to an append comes
// back: the transaction is committed then, and its client doesn't know.
type lossy struct {
	net.Listener
	server string
	lose   atomic.Bool
	lost   atomic.Int64
}

func newLossy(t *testing.T, server string) (*lossy, string) {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &lossy{Listener: listener, server: u.Host}
	u.Host = listener.Addr().String()
	var group sync.WaitGroup
	group.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() { l.pass(client) })
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		group.Wait()
	})
	return l, u.String()
}

func (l *lossy) pass(client net.Conn) {
	defer client.Close() //nolint:errcheck // cut on purpose
	server, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", l.server)
	if err != nil {
		return
	}
	defer server.Close() //nolint:errcheck // cut on purpose
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(server, client)
		_ = server.(*net.TCPConn).CloseWrite()
	}()
	answer := make([]byte, 1<<16)
	for {
		n, err := server.Read(answer)
		if err != nil {
			break
		}
		// An answer that ends with ReadyForQuery outside of a transaction, with a row in it, was a statement's.
		if l.lose.Load() && n > 6 && answer[0] == '2' && string(answer[n-6:n]) == "Z\x00\x00\x00\x05I" && l.lose.CompareAndSwap(true, false) {
			l.lost.Add(1)
			break
		}
		if _, err := client.Write(answer[:n]); err != nil {
			break
		}
	}
	_ = client.Close()
	<-done
}

func TestAnAppendWhoseAnswerIsLostIsWrittenOnce(t *testing.T) {
	t.Parallel()
	s := setup(t)
	proxy, address := newLossy(t, s.app)
	through := &bundle{app: address}
	store := through.open(t, eventstore.Config{PollInterval: time.Hour})
	mustAppend(t, store, one("build/0", 0, newEvent("A"))) // the statement is prepared
	for i := range 5 {
		for _, n := range []int{1, 3} {
			before := count(t, s.Store)
			proxy.lose.Store(true)
			stream := domain.Stream(fmt.Sprintf("build/%d-%d", i, n))
			got := mustAppend(t, store, one(stream, 0, newEvents(n, "A")...))
			if !got.Known || got.First.Position != before+1 || got.Last.Position != before+int64(n) || count(t, s.Store) != before+int64(n) {
				t.Errorf("%d events after %d: %+v, then the head is %d", n, before, got, count(t, s.Store))
			}
		}
	}
	if n := proxy.lost.Load(); n != 10 {
		t.Errorf("%d answers were lost, want 10: the test did not test", n)
	}
}

func TestAppendsSurviveTheEndOfTheirConnection(t *testing.T) {
	t.Parallel()
	s := setup(t)
	const writers, each = 4, 25
	appended := make(chan struct{}, writers*each)
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for i := range each {
				a := one(domain.Stream(fmt.Sprintf("build/%d", w)), int64(i), newEvent("A"))
				if _, err := s.Append(t.Context(), a); err != nil {
					t.Error(err)
				}
				appended <- struct{}{}
			}
		})
	}
	killed := int64(0)
	for n := range writers * each {
		if <-appended; n%10 != 0 {
			continue
		}
		done, err := s.owner.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'pipeops' AND query LIKE '%pipeops.append%'`)
		if err != nil {
			t.Fatal(err)
		}
		killed += done.RowsAffected()
	}
	group.Wait()
	if n := count(t, s.Store); n != writers*each || killed == 0 {
		t.Errorf("%d events after %d kills, want %d", n, killed, writers*each)
	}
}

func TestACursorFencesASecondLeader(t *testing.T) {
	t.Parallel()
	s := setup(t)
	at := func(position int64) domain.Cursor { return domain.Cursor{LogEpoch: 1, Position: position} }
	move := func(from, to domain.Cursor, events ...eventstore.NewEvent) eventstore.Append {
		a := eventstore.Append{Move: &eventstore.CursorMove{Name: "policies", From: from, To: to}}
		if len(events) > 0 {
			a.Writes = []eventstore.Write{{Stream: "build/1", Expected: eventstore.AnyVersion, Events: events}}
		}
		return a
	}
	first := newEvents(1, "BuildRequested")
	steps := []struct {
		name   string
		append eventstore.Append
		want   error
		known  bool
		then   domain.Cursor
		events int64
	}{
		{"begins", move(domain.Cursor{}, at(5), first...), nil, false, at(5), 1},
		{"the same again", move(domain.Cursor{}, at(5), first...), nil, true, at(5), 1},
		{"a second leader from the same place", move(domain.Cursor{}, at(6), newEvent("BuildRequested")), &eventstore.CursorConflictError{Name: "policies", Actual: at(5)}, false, at(5), 1},
		{"a second leader to the same place", move(domain.Cursor{}, at(5), newEvent("BuildRequested")), &eventstore.CursorConflictError{Name: "policies", Actual: at(5)}, false, at(5), 1},
		{"only moves", move(at(5), at(7)), nil, false, at(7), 1},
		{"only moves, again", move(at(5), at(7)), nil, false, at(7), 1},
		{"only moves, from behind", move(at(5), at(8)), &eventstore.CursorConflictError{Name: "policies", From: at(5), Actual: at(7)}, false, at(7), 1},
		{"what is done already, from the right place", move(at(7), at(9), first...), nil, true, at(9), 1},
		{"what is done already, by a deposed leader", move(at(7), at(8), first...), &eventstore.CursorConflictError{Name: "policies", From: at(7), Actual: at(9)}, false, at(9), 1},
		{"goes on", move(at(9), at(10), newEvents(2, "BuildRequested")...), nil, false, at(10), 3},
	}
	for _, step := range steps {
		got, err := s.Append(t.Context(), step.append)
		if diff := cmp.Diff(step.want, err); diff != "" {
			t.Errorf("%s: want - got +\n%s", step.name, diff)
		}
		if got.Known != step.known {
			t.Errorf("%s: known is %v", step.name, got.Known)
		}
		if cursor, err := s.LoadCursor(t.Context(), "policies"); cursor != step.then || err != nil {
			t.Errorf("%s: cursor at %v, %v; want %v", step.name, cursor, err, step.then)
		}
		if n := count(t, s.Store); n != step.events {
			t.Errorf("%s: %d events, want %d", step.name, n, step.events)
		}
	}
	conflict := move(at(10), at(11), newEvent("BuildRequested"))
	conflict.Writes[0].Expected = 1
	var stale *eventstore.ConflictError
	if _, err := s.Append(t.Context(), conflict); !errors.As(err, &stale) {
		t.Errorf("got %v, want a conflict", err)
	}
	if cursor, err := s.LoadCursor(t.Context(), "policies"); cursor != at(10) || err != nil {
		t.Errorf("a refused append moved the cursor to %v, %v", cursor, err)
	}
}
