package eventstore_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/storetest"
)

// whileLocked holds the log's lock, so that what enqueue appends piles up behind one append in flight, and then lets
// go. It returns when all n answers are in, by the order of the requests.
func whileLocked(t *testing.T, s *bundle, requests []eventstore.Append) []error {
	t.Helper()
	tx := s.holdLock(t)
	var group sync.WaitGroup
	errs := make([]error, len(requests))
	group.Go(func() {
		if _, err := s.Append(t.Context(), storetest.One("first", eventstore.AnyVersion, storetest.NewEvent("First"))); err != nil {
			t.Error(err)
		}
	})
	until(t, "the first append waits for the lock", s.lockIsAwaited(t))
	for i, r := range requests {
		group.Go(func() { _, errs[i] = s.Append(t.Context(), r) })
		until(t, "an append is queued", func() bool { return s.Queued() == i+1 })
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	group.Wait()
	return errs
}

// lockIsAwaited says whether somebody waits for the log's lock.
func (b *bundle) lockIsAwaited(t *testing.T) func() bool {
	t.Helper()
	return func() (waits bool) {
		err := b.owner.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
			WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted)`).Scan(&waits)
		if err != nil {
			t.Fatal(err)
		}
		return waits
	}
}

// holdLock holds the lock of the log until the transaction ends.
func (b *bundle) holdLock(t *testing.T) pgx.Tx {
	t.Helper()
	tx, err := b.owner.BeginTx(t.Context(), pgx.TxOptions{})
	if err == nil {
		_, err = tx.Exec(t.Context(), "SELECT pipeops.lock_log()")
	}
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// until looks again and again whether something has become true.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("a minute"))
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within %v: %s", context.Cause(ctx), what)
		case <-tick.C:
		}
	}
}

func TestARefusalNeverFailsTheNeighboursInABatch(t *testing.T) {
	t.Parallel()
	s := setup(t)
	known := storetest.NewEvents(1, "Known")
	storetest.MustAppend(t, s.Store, storetest.One("known", 0, known...))
	fenced := storetest.One("fenced", 0, storetest.NewEvent("A"))
	fenced.Move = &eventstore.CursorMove{Name: "c", From: domain.Cursor{LogEpoch: 1, Position: 7}, To: domain.Cursor{LogEpoch: 1, Position: 8}}
	moving := storetest.One("moving", 0, storetest.NewEvents(2, "Good")...)
	moving.Move = &eventstore.CursorMove{Name: "d", To: domain.Cursor{LogEpoch: 1, Position: 8}}
	different := storetest.NewEvent("Different")
	different.ID = known[0].ID
	errs := whileLocked(t, s, []eventstore.Append{
		storetest.One("good/1", 0, storetest.NewEvents(2, "Good")...),
		storetest.One("conflict", 3, storetest.NewEvents(2, "Bad")...),
		storetest.One("known", 0, known...),
		fenced,
		storetest.One("good/2", eventstore.AnyVersion, storetest.NewEvents(3, "Good")...),
		moving,
		attached("a", storetest.NewEvent("Good")),
		storetest.One("mismatch", 0, storetest.NewEvent("Bad"), different), // shares an id with known: goes with the next batch
		storetest.One("good/1", 2, storetest.NewEvent("Good")),             // what the first one leads to
		storetest.One("good/1", 2, storetest.NewEvent("Bad")),              // too late for that
	})
	compare(t, errs, []string{
		"", "stream conflict is at version 0, not at 3", "", "cursor c stands at 0.0, not at 1.7", "", "", "",
		"event " + different.ID + " is recorded with another stream, type or body", "",
		"stream good/1 is at version 3, not at 2",
	})
	all := storetest.Collect(t, s.Read(t.Context(), eventstore.Query{}))
	counts := map[string]int{}
	for i, e := range all {
		counts[e.Type]++
		if e.Cursor.Position != int64(i+1) {
			t.Errorf("event %d is at %v", i+1, e.Cursor)
		}
		if i > 0 && e.RecordedAt.Before(all[i-1].RecordedAt) {
			t.Errorf("%v is recorded before its predecessor", e.Cursor)
		}
	}
	if diff := cmp.Diff(map[string]int{"Known": 1, "First": 1, "Good": 9}, counts); diff != "" {
		t.Errorf("want - got +\n%s", diff)
	}
	if at, err := s.LoadCursor(t.Context(), "d"); at.Position != 8 || err != nil {
		t.Errorf("cursor d at %v, %v", at, err)
	}
}

func TestWhatOnlyTheDatabaseRefusesFailsAlone(t *testing.T) {
	t.Parallel()
	s := setup(t)
	storetest.MustAppend(t, s.Store, attached("taken", storetest.NewEvent("PushReceived")))
	errs := whileLocked(t, s, []eventstore.Append{
		storetest.One("good/1", 0, storetest.NewEvents(2, "Good")...),
		attached("taken", storetest.NewEvent("Bad")),
		attached("free", storetest.NewEvent("Good")),
		storetest.One("good/2", 1, storetest.NewEvent("Bad")),
	})
	compare(t, errs, []string{"", "duplicate key", "", "stream good/2 is at version 0, not at 1"})
	if n := storetest.Count(t, s.Store); n != 1+1+2+1 {
		t.Errorf("%d events", n)
	}
}

// attached is an append of one event with an attachment of that id.
func attached(id string, e eventstore.NewEvent) eventstore.Append {
	a := storetest.One(domain.Stream("push/"+e.ID), 0, e)
	a.Attachments = []eventstore.Attachment{{ID: id, EventID: e.ID, KeyID: "k", Sealed: []byte("x")}}
	return a
}

// compare says which errors don't contain what they should; "" is no error.
func compare(t *testing.T, errs []error, want []string) {
	t.Helper()
	for i, err := range errs {
		if err == nil && want[i] != "" || err != nil && (want[i] == "" || !strings.Contains(err.Error(), want[i])) {
			t.Errorf("request %d: got %v, want %q", i, err, want[i])
		}
	}
}

func TestABatchKeepsItsCapsAndAnAppendAboveThemGoesAlone(t *testing.T) {
	t.Parallel()
	s := setup(t)
	s.Store = s.open(t, eventstore.Config{BatchEvents: 3, BatchBytes: 1000})
	var requests []eventstore.Append
	for i := range 5 {
		requests = append(requests, storetest.One(domain.Stream(fmt.Sprint("build/", i)), 0, storetest.NewEvents(2, "A")...))
	}
	big := storetest.NewEvents(9, "B")
	big[0].Body = []byte(`"` + strings.Repeat("x", 2000) + `"`)
	requests = append(requests, storetest.One("big", 0, big...))
	for i, err := range whileLocked(t, s, requests) {
		if err != nil {
			t.Errorf("request %d: %v", i, err)
		}
	}
	if n := storetest.Count(t, s.Store); n != 1+5*2+9 {
		t.Errorf("%d events", n)
	}
}

func TestCloseRefusesWhatWaitsAndFinishesWhatIsInFlight(t *testing.T) {
	t.Parallel()
	s := setup(t)
	store := s.open(t, eventstore.Config{})
	tx, err := s.owner.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT pipeops.lock_log()"); err != nil {
		t.Fatal(err)
	}
	inFlight, waiting := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := store.Append(t.Context(), storetest.One("a", 0, storetest.NewEvent("A")))
		inFlight <- err
	}()
	until(t, "the first append waits for the lock", s.lockIsAwaited(t))
	go func() {
		_, err := store.Append(t.Context(), storetest.One("b", 0, storetest.NewEvent("B")))
		waiting <- err
	}()
	until(t, "the second one is queued", func() bool { return store.Queued() == 1 })
	gone, leave := context.WithCancelCause(t.Context())
	leave(errors.New("the caller has left"))
	if _, err := store.Append(gone, storetest.One("c", 0, storetest.NewEvent("C"))); err == nil || !strings.Contains(err.Error(), "the caller has left") {
		t.Errorf("a caller who left got %v", err)
	}
	closed := make(chan struct{})
	go func() { store.Close(); close(closed) }()
	until(t, "the store takes no more", func() bool {
		_, err := store.Append(gone, storetest.One("d", 0, storetest.NewEvent("D")))
		return errors.Is(err, eventstore.ErrClosed)
	})
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-inFlight; err != nil {
		t.Errorf("in flight: %v", err)
	}
	if err := <-waiting; !errors.Is(err, eventstore.ErrClosed) {
		t.Errorf("waiting: %v, want ErrClosed", err)
	}
	<-closed
	if n := storetest.Count(t, s.Store); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

func TestAcceptance08_ABlockedAppendSaysWhoBlocksIt(t *testing.T) {
	t.Parallel()
	s := setup(t)
	said := make(warnings, 16)
	store, err := eventstore.Open(t.Context(), eventstore.Config{URL: s.app, Log: slog.New(said)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	tx, err := s.owner.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT pipeops.lock_log()"); err != nil {
		t.Fatal(err)
	}
	blocker := tx.Conn().PgConn().PID()
	done := make(chan error, 1)
	go func() {
		_, err := store.Append(t.Context(), storetest.One("a", 0, storetest.NewEvent("A")))
		done <- err
	}()
	if text := <-said; !strings.Contains(text, fmt.Sprintf("pid %d ", blocker)) {
		t.Errorf("the log says %q, want process %d in it", text, blocker)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// warnings is a log handler that hands on the text of warnings.
type warnings chan string

func (w warnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (w warnings) WithAttrs([]slog.Attr) slog.Handler           { return w }
func (w warnings) WithGroup(string) slog.Handler                { return w }
func (w warnings) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += fmt.Sprintf(" %s=%v", a.Key, a.Value); return true })
	w <- text
	return nil
}

// In a store whose order came from a horizon of transactions, one that only reads and stays open would hold it up. Here
// it stays open until all is appended and seen by who follows: nothing may wait for its end.
func TestAcceptance09_ALongReadingTransactionHoldsUpNoAppend(t *testing.T) {
	t.Parallel()
	const callers, each = 4, 25
	s := setup(t)
	run(t, s.Store)
	s.appendAndFollow(t.Context(), t, "before", 1)
	reader, end := s.readForLong(t)
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("it waited a minute"))
	defer cancel()
	blocked := make(chan string, 1) // 1: one is enough
	watch, stop := context.WithCancelCause(ctx)
	var watcher, group sync.WaitGroup
	watcher.Go(func() { s.watchBlocked(watch, t, reader, blocked) })
	for c := range callers {
		group.Go(func() { s.appendAndFollow(ctx, t, domain.Stream(fmt.Sprint("build/", c)), each) })
	}
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	select {
	case statement := <-blocked:
		t.Errorf("a statement waits for the reading transaction: %s", statement)
		cancel()
	case <-done:
	}
	<-done
	stop(nil)
	watcher.Wait()
	end()
}

// appendAndFollow appends n events, each once the one before it has reached who follows.
func (b *bundle) appendAndFollow(ctx context.Context, t *testing.T, stream domain.Stream, n int) {
	t.Helper()
	for range n {
		appended, err := b.Append(ctx, storetest.One(stream, eventstore.AnyVersion, storetest.NewEvent("A")))
		if err == nil {
			_, err = b.Wait(ctx, domain.Cursor{LogEpoch: appended.Last.LogEpoch, Position: appended.Last.Position - 1})
		}
		if err != nil {
			t.Errorf("append to %s, and follow: %v", stream, err)
			return
		}
	}
}

// watchBlocked looks again and again for a statement that waits for a lock of that process, until ctx ends.
func (b *bundle) watchBlocked(ctx context.Context, t *testing.T, pid uint32, found chan<- string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var statement string
		err := b.owner.QueryRow(t.Context(), `SELECT query FROM pg_stat_activity WHERE datname = current_database() AND $1 = ANY(pg_blocking_pids(pid))`,
			int32(pid)).Scan(&statement) //nolint:gosec // process numbers are small
		if err == nil {
			found <- statement
			return
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			t.Errorf("look for who waits: %v", err)
			return
		}
	}
}

// readForLong begins a transaction that reads as a backup does, with every table of the log locked for it, and gives its
// process. At its end it checks that the transaction still sees what it began with.
func (b *bundle) readForLong(t *testing.T) (pid uint32, end func()) {
	t.Helper()
	tx, err := b.owner.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		t.Fatal(err)
	}
	var tables string
	err = tx.QueryRow(t.Context(), `SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') FROM pg_tables WHERE schemaname = 'pipeops'`).Scan(&tables)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "LOCK TABLE "+tables+" IN ACCESS SHARE MODE"); err != nil {
		t.Fatal(err)
	}
	count := func() (n int64) {
		if err := tx.QueryRow(t.Context(), "SELECT count(*) FROM pipeops.events").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := count()
	return tx.Conn().PgConn().PID(), func() {
		if still := count(); still != before || storetest.Count(t, b.Store) == before {
			t.Errorf("the reading transaction sees %d events, it began with %d; or nothing was appended beside it", still, before)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestACallerThatGivesUpWhileItSendsHoldsUpNobody(t *testing.T) {
	t.Parallel()
	s := setup(t)
	tx := s.holdLock(t)
	ctx, giveUp := context.WithCancelCause(t.Context())
	first := storetest.One("first", 0, storetest.NewEvent("First"))
	gaveUp, others := make(chan error, 1), make(chan error, 2)
	go func() {
		_, err := s.Append(ctx, first)
		gaveUp <- err
	}()
	until(t, "the first append waits for the lock", s.lockIsAwaited(t))
	for i := range cap(others) {
		go func() {
			_, err := s.Append(t.Context(), storetest.One(domain.Stream(fmt.Sprintf("other/%d", i)), 0, storetest.NewEvent("Other")))
			others <- err
		}()
		until(t, "an append is queued", func() bool { return s.Queued() == i+1 })
	}
	reason := errors.New("the caller has gone")
	giveUp(reason)
	if err := <-gaveUp; !errors.Is(err, reason) {
		t.Errorf("the caller that gave up got %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range cap(others) {
		if err := <-others; err != nil {
			t.Error(err)
		}
	}
	storetest.MustAppend(t, s.Store, first) // whether it went through or not, it is there once
	if n := len(storetest.Collect(t, s.Read(t.Context(), eventstore.Query{}))); n != 3 {
		t.Errorf("%d events, want 3", n)
	}
}

func TestWhoGivesUpLeavesNoSessionThatWaitsForTheLock(t *testing.T) {
	t.Parallel()
	s := setup(t)
	tx := s.holdLock(t)
	isAwaited := s.lockIsAwaited(t)
	for range 4 {
		ctx, giveUp := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := s.Append(ctx, storetest.One("a", 0, storetest.NewEvent("A")))
			done <- err
		}()
		until(t, "the append waits for the lock", isAwaited)
		giveUp(nil)
		if err := <-done; err == nil {
			t.Error("appended while another held the lock")
		}
		until(t, "its session has gone", func() bool { return !isAwaited() })
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	storetest.MustAppend(t, s.Store, storetest.One("a", 0, storetest.NewEvent("A")))
	if n := storetest.Count(t, s.Store); n != 1 {
		t.Errorf("%d events, those of callers that had given up among them", n)
	}
}

// A hundred callers make large batches, and the sessions that write them are killed again and again; some callers share
// a stream.
func TestOfACrowdNothingIsLostOrDoubledWhenItsSessionsAreKilled(t *testing.T) {
	t.Parallel()
	const callers, each, shared = 100, 15, 5
	s := setup(t)
	var group sync.WaitGroup
	for c := range callers {
		group.Go(func() {
			for version := range int64(each) {
				_, err := s.Append(t.Context(), eventstore.Append{Writes: []eventstore.Write{
					{Stream: domain.Stream(fmt.Sprint("build/", c)), Expected: version, Events: storetest.NewEvents(1, "A")},
					{Stream: domain.Stream(fmt.Sprint("shared/", c%shared)), Expected: eventstore.AnyVersion, Events: storetest.NewEvents(1, "B")},
				}})
				if err != nil {
					t.Errorf("caller %d, version %d: %v", c, version, err)
				}
			}
		})
	}
	all := make(chan struct{})
	go func() { group.Wait(); close(all) }()
	const kills = 20
	for n := 0; n < kills; {
		select {
		case <-all:
			t.Fatalf("all is written after %d of %d kills: the test did not test", n, kills)
		default:
		}
		tag, err := s.owner.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
			AND application_name = 'pipeops' AND state = 'active' AND query LIKE '%pipeops.append%' ORDER BY pid % 7 LIMIT 1`)
		if err != nil {
			t.Fatal(err)
		}
		n += int(tag.RowsAffected())
	}
	<-all
	if n := storetest.Count(t, s.Store); n != 2*callers*each {
		t.Errorf("%d events, want %d", n, 2*callers*each)
	}
	var versions int
	if err := s.owner.QueryRow(t.Context(), "SELECT max(version) FROM pipeops.events WHERE stream LIKE 'shared/%'").Scan(&versions); err != nil || versions != callers/shared*each {
		t.Errorf("version %d, %v; want %d", versions, err, callers/shared*each)
	}
}
