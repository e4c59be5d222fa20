package eventstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// appendByHand is what a client that isn't ours sends: the function, in a transaction that the client ends.
const appendByHand = `SELECT base + 1 FROM pipeops.append_one($1, -1, $2, '', 'A', 1, '{"n":1}', now(), '', '', '', '', 0, '')`

// connect gives a connection of the application's login.
func (b *bundle) connect(tb testing.TB) *pgx.Conn {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), b.app)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// byHand is a transaction that a client holds open.
type byHand struct {
	pgx.Tx

	done chan error // how its append ended
}

// begin opens a transaction, and gives it a number, so that its age is settled.
func begin(t *testing.T, conn *pgx.Conn) byHand {
	t.Helper()
	tx, err := conn.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), "SELECT pg_current_xact_id()")
	}
	if err != nil {
		t.Fatal(err)
	}
	return byHand{tx, make(chan error, 1)}
}

func (tx byHand) append(ctx context.Context, stream, id string) (position int64, err error) {
	err = tx.QueryRow(ctx, appendByHand, stream, id).Scan(&position)
	return position, err
}

// goAppend appends while the test goes on.
func (tx byHand) goAppend(ctx context.Context, stream, id string) {
	go func() {
		_, err := tx.append(ctx, stream, id)
		tx.done <- err
	}()
}

func (tx byHand) commit(t *testing.T) {
	t.Helper()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// waitsFor waits until one session is held up by another, or has ended its append without.
func (b *bundle) waitsFor(t *testing.T, waiter byHand, holder byHand) {
	t.Helper()
	until(t, "the younger transaction waits for the older one", func() (waits bool) {
		select {
		case err := <-waiter.done:
			t.Fatalf("the younger transaction went past the older one, which has appended and not committed: %v", err)
		default:
		}
		err := b.owner.QueryRow(t.Context(), "SELECT $2 = ANY (pg_blocking_pids($1))",
			waiter.Conn().PgConn().PID(), holder.Conn().PgConn().PID()).Scan(&waits)
		if err != nil {
			t.Fatal(err)
		}
		return waits
	})
}

// reader reads the log at full speed, without a pause, until it is told that all is written.
type reader struct {
	seen []domain.Recorded
	stop context.CancelCauseFunc
	done chan error
}

var errAllWritten = errors.New("all is written")

func (b *bundle) readAtFullSpeed(t *testing.T) *reader {
	t.Helper()
	written, stop := context.WithCancelCause(t.Context())
	r := &reader{stop: stop, done: make(chan error, 1)}
	go func() {
		var after domain.Cursor
		for last := false; ; {
			for e, err := range b.Read(t.Context(), eventstore.Query{After: after}) {
				if err != nil {
					r.done <- err
					return
				}
				r.seen, after = append(r.seen, e), e.Cursor
			}
			if last {
				r.done <- nil
				return
			}
			last = context.Cause(written) != nil // once more
		}
	}()
	t.Cleanup(func() { stop(errAllWritten) })
	return r
}

// all gives the ids seen, by position, after checking that positions are 1, 2, 3, … and each stream's versions too.
func (r *reader) all(t *testing.T) (ids []string) {
	t.Helper()
	r.stop(errAllWritten)
	if err := <-r.done; err != nil {
		t.Fatal(err)
	}
	dense(t, r.seen)
	for _, e := range r.seen {
		ids = append(ids, e.ID)
	}
	return ids
}

// dense checks that what was read from the beginning on is without gap, double and inversion.
func dense(t *testing.T, seen []domain.Recorded) {
	t.Helper()
	versions := map[domain.Stream]int64{}
	var before time.Time
	for i, e := range seen {
		if versions[e.Stream]++; e.Cursor.Position != int64(i+1) || e.Version != versions[e.Stream] {
			t.Fatalf("event %d seen is %v, version %d of %s, want version %d", i+1, e.Cursor, e.Version, e.Stream, versions[e.Stream])
		}
		if e.RecordedAt.Before(before) {
			t.Fatalf("event %d was recorded at %s, the one before it at %s", i+1, e.RecordedAt, before)
		}
		before = e.RecordedAt
	}
}

// In a store whose order is that of numbers given out before the commit, a reader that has seen the younger
// transaction's event never sees the older one's.
func TestAcceptance01_TheOlderTransactionCommitsLastAndTheReaderMissesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	reader := b.readAtFullSpeed(t)
	one, two := b.connect(t), b.connect(t) // to streams of their own: nothing but the log's order stands between them
	var order []string                     // of commits
	for i := range 50 {
		olderID, youngerID := uuid.NewString(), uuid.NewString()
		older, younger := begin(t, one), begin(t, two)
		mustAppend := func(tx byHand, stream, id string) {
			t.Helper()
			if _, err := tx.append(t.Context(), stream, id); err != nil {
				t.Fatal(err)
			}
		}
		if i%2 == 0 { // the older one appends last, and commits last
			mustAppend(younger, "build/younger", youngerID)
			younger.commit(t)
			mustAppend(older, "build/older", olderID)
			older.commit(t)
			order = append(order, youngerID, olderID)
			continue
		}
		// The older one appends first; the younger one can't commit before it.
		mustAppend(older, "build/older", olderID)
		younger.goAppend(t.Context(), "build/younger", youngerID)
		b.waitsFor(t, younger, older)
		older.commit(t)
		if err := <-younger.done; err != nil {
			t.Fatal(err)
		}
		younger.commit(t)
		order = append(order, olderID, youngerID)
	}
	if diff := cmp.Diff(order, reader.all(t)); diff != "" {
		t.Errorf("committed - read +\n%s", diff)
	}
}

// enough says how long a test of chance goes on: so many turns, or with PIPEOPS_CHAOS_ROUNDS a second for each of them.
func enough(t *testing.T, turns int) func(turn int) bool {
	t.Helper()
	text := os.Getenv("PIPEOPS_CHAOS_ROUNDS")
	if text == "" {
		return func(turn int) bool { return turn >= turns }
	}
	seconds, err := strconv.Atoi(text)
	if err != nil || seconds < 1 {
		t.Fatalf("PIPEOPS_CHAOS_ROUNDS: %q isn't a number from 1", text)
	}
	end := time.Now().Add(time.Duration(seconds) * time.Second)
	return func(int) bool { return time.Now().After(end) }
}

// seed gives what dice begin with; PIPEOPS_SEED repeats a run.
func seed(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64() //nolint:gosec // a test's dice
	if text := os.Getenv("PIPEOPS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("PIPEOPS_SEED: %q isn't a number", text)
		}
	}
	t.Logf("PIPEOPS_SEED=%d", seed)
	return seed
}

func TestAcceptance02_EightWritersThatRollBackAtRandomLeaveNoGap(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if head, err := b.Head(t.Context()); err != nil || head.Position != 0 {
		t.Fatalf("the store begins at %s, %v, want it empty", head, err)
	}
	reader := b.readAtFullSpeed(t)
	stop, dice := enough(t, 100), seed(t)
	var mu sync.Mutex
	var committed []string
	rolledBack := 0
	var group sync.WaitGroup
	for w := range uint64(8) {
		conn := b.connect(t)
		group.Go(func() {
			random := rand.New(rand.NewPCG(dice, w)) //nolint:gosec // a test's dice
			for turn := 0; !stop(turn) && t.Context().Err() == nil; turn++ {
				ids, err := turnByHand(t.Context(), conn, random)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if committed = append(committed, ids...); ids == nil {
					rolledBack++
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	read := reader.all(t)
	slices.Sort(committed)
	slices.Sort(read)
	if diff := cmp.Diff(committed, read); diff != "" || rolledBack == 0 || len(read) == 0 {
		t.Errorf("%d transactions rolled back; committed - read +\n%s", rolledBack, diff)
	}
	t.Logf("%d events, %d transactions rolled back", len(read), rolledBack)
}

// turnByHand appends up to three times in one transaction to any of three streams and gives the ids it has committed:
// none when it rolled back.
func turnByHand(ctx context.Context, conn *pgx.Conn, random *rand.Rand) (ids []string, err error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback(ctx) //nolint:errcheck // after a commit it does nothing
	for range 1 + random.IntN(3) {
		id := uuid.NewString()
		if _, err := (byHand{Tx: tx}).append(ctx, fmt.Sprint("hot/", random.IntN(3)), id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	if random.IntN(3) == 0 {
		return nil, tx.Rollback(ctx)
	}
	return ids, tx.Commit(ctx)
}

// The server's clock is set back by an hour: an event that was recorded in its future stands for that.
func TestAClockThatJumpedBackNeverDatesAnEventBeforeItsPredecessor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	future := time.Now().UTC().Add(time.Hour).Truncate(time.Microsecond)
	_, err := b.owner.Exec(t.Context(), `
		INSERT INTO pipeops.events (position, log_epoch, stream, version, id, project_id, type, schema_version, body, occurred_at,
			recorded_at, actor, correlation_id, causation_id, attempt, attempt_seq, trace)
		VALUES (1, 1, 's', 1, gen_random_uuid(), '', 'A', 1, '{}', now(), '`+future.Format(time.RFC3339Nano)+`', '', '', '', '', 0, '')`)
	if err != nil {
		t.Fatal(err)
	}
	b.appendEach(t, 1, 3) // the path of one event, and that of several
	var seen []domain.Recorded
	for e, err := range b.Read(t.Context(), eventstore.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, e)
	}
	dense(t, seen)
	if len(seen) != 5 || !seen[4].RecordedAt.Equal(future) {
		t.Errorf("%d events, the last recorded at %s, want %s", len(seen), seen[len(seen)-1].RecordedAt, future)
	}
}
