package eventstore_test

import (
	"context"
	"errors"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/storetest"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/migrations"
)

// failover is a primary, an asynchronous standby that is cut off, and a proxy that leads to whichever is in charge.
type failover struct {
	*bundle // on the primary

	t        *testing.T
	primary  *testenv.Server
	standby  *testenv.Server
	proxy    *lossy
	follower *eventstore.Store // another process, which goes through the proxy
}

func newFailover(t *testing.T) *failover {
	t.Helper()
	primary := testenv.NewServer(t)
	f := &failover{bundle: setupIn(t, primary.URL), t: t, primary: primary}
	f.standby = primary.Copy(t, "-R")
	var address string
	f.proxy, address = newLossy(t, f.app)
	f.follower = (&bundle{app: address}).open(t, eventstore.Config{PollInterval: 50 * time.Millisecond})
	run(t, f.follower)
	return f
}

// cutOff waits until the standby has all that was appended, and ends its connection for good.
func (f *failover) cutOff() {
	f.t.Helper()
	standby := setupReading(f.t, f.standby.URL)
	var written string
	if err := f.owner.QueryRow(f.t.Context(), "SELECT pg_current_wal_flush_lsn()::text").Scan(&written); err != nil {
		f.t.Fatal(err)
	}
	until(f.t, "the standby has all", func() bool { return standby("SELECT pg_last_wal_replay_lsn() >= '" + written + "'") })
	standby("ALTER SYSTEM SET primary_conninfo = ''")
	standby("SELECT pg_reload_conf()")
	until(f.t, "the standby is cut off", func() bool {
		return standby("SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)")
	})
}

// setupReading gives what runs a statement as the owner; a query's answer is one boolean.
func setupReading(t *testing.T, address string) func(statement string) bool {
	t.Helper()
	b := &bundle{app: address}
	conn := b.connect(t)
	return func(statement string) (yes bool) {
		rows, err := conn.Query(t.Context(), statement)
		if err == nil {
			if rows.Next() {
				err = rows.Scan(&yes)
			}
			rows.Close()
			err = errors.Join(err, rows.Err())
		}
		if err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
		return yes
	}
}

// takeOver makes the standby the primary, and gives a store on it.
func (f *failover) takeOver() *bundle {
	f.t.Helper()
	f.primary.Kill(f.t)
	if !setupReading(f.t, f.standby.URL)("SELECT pg_promote()") {
		f.t.Fatal("the standby was not promoted")
	}
	return setupIn(f.t, f.standby.URL)
}

// lead has the proxy lead to the standby.
func (f *failover) lead() {
	f.t.Helper()
	u, err := url.Parse(f.standby.URL)
	if err != nil {
		f.t.Fatal(err)
	}
	f.proxy.server.Store(u.Host)
}

func TestAcceptance11_AStandbyThatLacksTheTailTakesOverAndWhoSawMoreIsTold(t *testing.T) {
	t.Parallel()
	const kept, lost = 20, 5
	f := newFailover(t)
	at := func(epoch, position int64) domain.Cursor { return domain.Cursor{LogEpoch: epoch, Position: position} }
	move := func(b *bundle, from, to domain.Cursor) error {
		_, err := b.Append(t.Context(), eventstore.Append{Move: &eventstore.CursorMove{Name: "policies", From: from, To: to}})
		return err
	}
	storetest.Fill(t, f.Store, kept)
	if err := move(f.bundle, domain.Cursor{}, at(1, kept-2)); err != nil {
		t.Fatal(err)
	}
	f.cutOff()
	storetest.Fill(t, f.Store, lost) // confirmed, and seen
	if err := move(f.bundle, at(1, kept-2), at(1, kept+lost)); err != nil {
		t.Fatal(err)
	}
	storetest.Take(t, f.follower, domain.Cursor{}, eventstore.Filter{}, kept+lost)
	live, seen := f.goFollow(at(1, kept+lost-1))
	<-seen

	after := f.takeOver()
	if head, err := after.Head(t.Context()); err != nil || head != at(1, kept) {
		t.Fatalf("the standby's head is %s, %v: the test did not test", head, err)
	}
	var ahead *eventstore.CursorAheadError
	if err := after.Check(t.Context(), at(1, kept+1)); !errors.As(err, &ahead) {
		t.Errorf("before the loss is declared: got %v, want *CursorAheadError", err)
	}
	if epoch, first, err := migrations.Fork(t.Context(), f.standby.URL, 0); err != nil || epoch != 2 || first != kept+1 {
		t.Fatalf("log epoch %d from position %d, %v", epoch, first, err)
	}
	storetest.Fill(t, after.Store, lost+2) // more than was lost: by positions alone nobody would notice
	f.lead()

	forked := func(cursor domain.Cursor) *eventstore.LogForkedError {
		return &eventstore.LogForkedError{Cursor: cursor, ForkedAt: kept + 1}
	}
	if diff := cmp.Diff(error(forked(at(1, kept+lost))), <-live); diff != "" {
		t.Fatalf("who followed the primary: want - got +\n%s", diff)
	}
	for _, position := range []int64{kept + 1, kept + lost, kept + lost + 1} {
		for name, err := range f.read(at(1, position)) {
			if diff := cmp.Diff(error(forked(at(1, position))), err); diff != "" {
				t.Errorf("%s after position %d: want - got +\n%s", name, position, diff)
			}
		}
	}
	for _, position := range []int64{0, kept - 3, kept} {
		want := int(kept + lost + 2 - position)
		seen, head := storetest.Take(t, f.follower, at(1, position), eventstore.Filter{}, want)
		if len(seen) != want || seen[0].Cursor.Position != position+1 || head != at(2, kept+lost+2) {
			t.Errorf("after position %d: %d events up to %s: %s", position, len(seen), head, storetest.Positions(seen))
		}
	}
	dense(t, storetest.Collect(t, f.follower.Read(t.Context(), eventstore.Query{})))
	var fenced *eventstore.CursorConflictError
	if err := move(after, at(1, kept+lost), at(2, kept+lost+1)); !errors.As(err, &fenced) || fenced.Actual != at(1, kept-2) {
		t.Errorf("a leader from before the failover: got %v, want *CursorConflictError", err)
	}
	if err := move(after, at(1, kept-2), at(2, kept+1)); err != nil {
		t.Errorf("the saved cursor: %v", err)
	}
}

// A commit that was cancelled while it waited for the standby is seen, but not confirmed: not to who asks again either.
func TestWhatTheStandbyLacksIsNotConfirmed(t *testing.T) {
	t.Parallel()
	server := testenv.NewServer(t)
	s := setupIn(t, server.URL)
	reading := setupReading(t, server.URL)
	reading("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
	reading("SELECT pg_reload_conf()")
	waits := func() bool {
		return reading(`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'SyncRep')`)
	}
	giveUpOn := func(a eventstore.Append) (confirmed bool) {
		t.Helper()
		ctx, giveUp := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := s.Append(ctx, a)
			done <- err
		}()
		var err error
		until(t, "the append waits for the standby", func() bool {
			select {
			case err = <-done:
				confirmed = err == nil
				return true
			default:
				return waits()
			}
		})
		if giveUp(nil); !confirmed && err == nil {
			err = <-done
		}
		if confirmed != (err == nil) {
			t.Errorf("given up on: %v", err)
		}
		until(t, "nobody waits any more", func() bool { return !waits() })
		return confirmed
	}
	var event eventstore.NewEvent
	var mine eventstore.Append
	for version, confirmed := int64(0), true; confirmed; version++ { // the server needs a moment to know its standbys
		event = storetest.NewEvent("A")
		mine = storetest.One("a", version, event)
		confirmed = giveUpOn(mine)
	}
	until(t, "it is seen", func() bool {
		found, err := s.Find(t.Context(), event.ID)
		return err == nil && len(found) == 1
	})
	if giveUpOn(mine) {
		t.Error("confirmed, with no standby that has it")
	}
	reading("ALTER SYSTEM RESET synchronous_standby_names")
	reading("SELECT pg_reload_conf()")
	if got := storetest.MustAppend(t, s.Store, mine); !got.Known {
		t.Errorf("appended again: %+v", got)
	}
}

// goFollow subscribes, and gives what ends that; seen is closed with the first events.
func (f *failover) goFollow(after domain.Cursor) (ended chan error, seen chan struct{}) {
	ended, seen = make(chan error, 1), make(chan struct{})
	go func() {
		ctx, cancel := context.WithTimeoutCause(f.t.Context(), time.Minute, errors.New("a minute"))
		defer cancel()
		see := sync.OnceFunc(func() { close(seen) })
		for _, err := range f.follower.Subscribe(ctx, after, eventstore.Filter{}) {
			if err != nil {
				ended <- err
				return
			}
			see()
		}
		ended <- errors.New("the subscription ended without an error")
	}()
	return ended, seen
}

// read gives what each way to read from a cursor says.
func (f *failover) read(after domain.Cursor) map[string]error {
	f.t.Helper()
	subscription, _ := f.goFollow(after)
	said := map[string]error{"Check": f.follower.Check(f.t.Context(), after), "Subscribe": <-subscription}
	for _, err := range f.follower.Read(f.t.Context(), eventstore.Query{After: after}) {
		said["Read"] = err
		break
	}
	return said
}
