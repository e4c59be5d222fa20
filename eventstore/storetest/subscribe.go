package storetest

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

func aSubscriptionReplaysAndThenFollows(t *testing.T, open func() Store) {
	s := open()
	Fill(t, s, 10)
	seen := make(chan []domain.Recorded)
	go func() {
		all, _ := Take(t, s, domain.Cursor{LogEpoch: 1, Position: 4}, eventstore.Filter{}, 16)
		seen <- all
	}()
	Fill(t, s, 10)
	want := Collect(t, s.Read(t.Context(), eventstore.Query{After: domain.Cursor{LogEpoch: 1, Position: 4}}))
	if diff := cmp.Diff(want, <-seen); diff != "" {
		t.Errorf("want - got +\n%s", diff)
	}
}

func theCursorGoesOnWhereTheFilterLetsNothingThrough(t *testing.T, open func() Store) {
	s := open()
	Fill(t, s, 3)
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("a minute"))
	defer cancel()
	live := false
	for batch, err := range s.Subscribe(ctx, domain.Cursor{}, eventstore.Filter{Types: []string{"Never"}}) {
		if err != nil || len(batch.Events) > 0 {
			t.Fatalf("%+v, %v", batch, err)
		}
		if batch.Cursor.Position == 3 && !live { // replayed
			live = true
			Fill(t, s, 1)
		}
		if batch.Cursor.Position == 4 {
			return
		}
	}
	t.Error("the cursor stood still")
}

func aSubscriptionCutAtRandomSeesExactlyTheFilteredLog(t *testing.T, open func() Store) {
	s := open()
	reader := open() // another process, with a ring that is overrun at once
	const events, cuts = 600, 100
	var writer sync.WaitGroup
	writer.Go(func() { Fill(t, s, events) })
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test's dice
	filter := eventstore.Filter{Projects: []domain.ProjectID{"prj_0", "prj_2"}, Types: []string{"B"}}
	var seen []domain.Recorded
	var at domain.Cursor
	for range cuts {
		if at.Position == events {
			break
		}
		n := 1 + random.IntN(3)
		ctx, cut := context.WithCancelCause(t.Context())
		for batch, err := range reader.Subscribe(ctx, at, filter) {
			if err != nil {
				t.Fatal(err)
			}
			seen, at = append(seen, batch.Events...), batch.Cursor
			if at.Position == events { // nothing comes any more
				break
			}
			if n--; n == 0 {
				if random.IntN(2) == 0 {
					break
				}
				cut(errors.New("cut")) // the next one is never seen
			}
		}
		cut(nil)
	}
	for at.Position < events {
		rest, to := Take(t, reader, at, filter, 1)
		seen, at = append(seen, rest...), to
		if t.Failed() || len(seen) == events/3 { // what comes after the last one that the filter lets through
			break
		}
	}
	writer.Wait()
	var want []domain.Recorded
	for e, err := range s.Read(t.Context(), eventstore.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		if filter.Match(e) {
			want = append(want, e)
		}
	}
	if diff := cmp.Diff(Positions(want), Positions(seen)); diff != "" {
		t.Errorf("want - got +\n%s", diff)
	}
}

func waitWakesUpOrEndsWithItsContext(t *testing.T, open func() Store) {
	s := open()
	woken := make(chan error, 1)
	go func() {
		_, err := s.Wait(t.Context(), domain.Cursor{})
		woken <- err
	}()
	Fill(t, s, 1)
	if err := <-woken; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := s.Wait(ctx, domain.Cursor{LogEpoch: 1, Position: 1}); !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
}
