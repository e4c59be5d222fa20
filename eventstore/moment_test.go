package eventstore_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/storetest"
)

func TestATimeIsThePlaceOfTheLastEventRecordedByThen(t *testing.T) {
	t.Parallel()
	s := setup(t)
	var early *eventstore.BeforeLogError
	if _, err := s.At(t.Context(), time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)); !errors.As(err, &early) || !early.First.IsZero() {
		t.Errorf("in an empty log: got %v, want BeforeLogError", err)
	}
	for i := range 40 {
		storetest.MustAppend(t, s.Store, storetest.One("build/1", int64(3*i), storetest.NewEvents(3, "A")...)) // three with one time of recording
	}
	if _, err := s.owner.Exec(t.Context(), "SELECT pipeops.raise_log_epoch()"); err != nil {
		t.Fatal(err)
	}
	storetest.MustAppend(t, s.Store, storetest.One("build/2", 0, storetest.NewEvent("A")))
	events := storetest.Collect(t, s.Read(t.Context(), eventstore.Query{}))
	want := map[time.Time]domain.Cursor{}
	for _, e := range events {
		want[e.RecordedAt] = e.Cursor
	}
	for at, cursor := range want {
		if got, err := s.At(t.Context(), at.Add(999)); err != nil || got != cursor {
			t.Errorf("at %s: got %s, %v, want %s", at, got, err, cursor)
		}
		before := domain.Cursor{}
		for _, e := range events {
			if e.RecordedAt.Before(at) {
				before = e.Cursor
			}
		}
		got, err := s.At(t.Context(), at.Add(-time.Microsecond))
		if before.Position == 0 {
			if !errors.As(err, &early) || !early.First.Equal(at) {
				t.Errorf("before the first event: got %s, %v", got, err)
			}
		} else if err != nil || got != before {
			t.Errorf("just before %s: got %s, %v, want %s", at, got, err, before)
		}
	}
	var ahead *eventstore.NotYetError
	if got, err := s.At(t.Context(), time.Now().Add(time.Hour)); !errors.As(err, &ahead) {
		t.Errorf("in an hour: got %s, %v, want NotYetError", got, err)
	}
}

func TestAnAppendUnderWayIsWaitedForBeforeATimeIsAPlace(t *testing.T) {
	t.Parallel()
	s := setup(t)
	storetest.MustAppend(t, s.Store, storetest.One("build/1", 0, storetest.NewEvent("A")))
	tx, err := s.owner.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context()) //nolint:errcheck // it may be over
	if _, err := tx.Exec(t.Context(), "SELECT pipeops.lock_log()"); err != nil {
		t.Fatal(err)
	}
	var now time.Time
	if err := tx.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&now); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		c, err := s.At(t.Context(), now)
		if err == nil && c.Position != 1 {
			err = errors.New("got " + c.String())
		}
		answered <- err
	}()
	for waiting := false; !waiting; {
		select {
		case err := <-answered:
			t.Fatalf("it was answered (%v) while an append could still be recorded before", err)
		default:
		}
		err := s.owner.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks
			WHERE locktype = 'advisory' AND mode = 'ShareLock' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&waiting)
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// turnClock turns the database's clock as the log sees it: what is recorded moves the other way.
func (b *bundle) turnClock(t *testing.T, by time.Duration) {
	t.Helper()
	_, err := b.owner.Exec(t.Context(), fmt.Sprintf(`ALTER TABLE pipeops.events DISABLE TRIGGER never_changes;
		UPDATE pipeops.events SET recorded_at = recorded_at - interval '%d seconds';
		ALTER TABLE pipeops.events ENABLE ALWAYS TRIGGER never_changes`, int(by.Seconds())))
	if err != nil {
		t.Fatal(err)
	}
}

// recordedAt is when the event at a position was recorded.
func (b *bundle) recordedAt(t *testing.T, position int64) (at time.Time) {
	t.Helper()
	if err := b.owner.QueryRow(t.Context(), "SELECT recorded_at FROM pipeops.events WHERE position = $1", position).Scan(&at); err != nil {
		t.Fatal(err)
	}
	return at
}

// place fails the test unless a time is that position of the log; 0: it lies ahead.
func (b *bundle) place(t *testing.T, when string, at time.Time, want int64) {
	t.Helper()
	got, err := b.At(t.Context(), at)
	var ahead *eventstore.NotYetError
	if want == 0 && errors.As(err, &ahead) {
		return
	}
	if err != nil || got.Position != want {
		t.Errorf("%s: got %s, %v, want position %d", when, got, err, want)
	}
}

func TestATimeIsTheSamePlaceBeforeAndAfterTheClockJumpedBack(t *testing.T) {
	t.Parallel()
	s := setup(t)
	s.appendEach(t, 1)
	s.turnClock(t, time.Hour)
	s.appendEach(t, 1)
	s.place(t, "between the two, before the jump", s.recordedAt(t, 2).Add(-30*time.Minute), 1)

	s.turnClock(t, -40*time.Minute)
	s.appendEach(t, 1, 2) // the path of one event, and that of several
	latest := s.recordedAt(t, 2)
	for position := int64(3); position <= 5; position++ {
		if at := s.recordedAt(t, position); !at.Equal(latest) {
			t.Errorf("event %d is recorded at %s, want %s, as the last one before the jump", position, at, latest)
		}
	}
	s.place(t, "between the two, which comes again", latest.Add(-30*time.Minute), 0)
	s.place(t, "between the two, which the clock has left behind", latest.Add(-50*time.Minute), 1)
	s.place(t, "the last one's, which the clock hasn't reached again", latest, 0)

	s.turnClock(t, time.Hour)
	s.appendEach(t, 1)
	latest = s.recordedAt(t, 2)
	s.place(t, "between the two, after all", latest.Add(-30*time.Minute), 1)
	s.place(t, "just before the last one", latest.Add(-time.Microsecond), 1)
	s.place(t, "the last one's", latest, 5)
}

// The limit of it: nothing holds a time that was answered while it stood behind the last event.
func TestATimeAfterTheLastEventTakesInWhatIsRecordedOnceTheClockJumpedBackBehindIt(t *testing.T) {
	t.Parallel()
	s := setup(t)
	s.appendEach(t, 1)
	s.turnClock(t, time.Hour)
	halfAnHourLater := func() time.Time { return s.recordedAt(t, 1).Add(30 * time.Minute) }
	s.place(t, "before the jump", halfAnHourLater(), 1)

	s.turnClock(t, -45*time.Minute)
	s.place(t, "while it lies ahead again", halfAnHourLater(), 0)
	s.appendEach(t, 1)

	s.turnClock(t, time.Hour)
	s.place(t, "after the jump", halfAnHourLater(), 2)
}
