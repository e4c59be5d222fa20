package eventstore_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/storetest"
)

// What a filter finds is what looking at every event finds, however far the index of blocks has got.
func TestFilteredReadingFindsWhatLookingAtEveryEventFinds(t *testing.T) {
	t.Parallel()
	s := setup(t)
	dice := rand.New(rand.NewPCG(7, 7))
	name := func(kind string, of int) string { return fmt.Sprint(kind, dice.IntN(of)*dice.IntN(of)) } // some common, some rare
	for range 40 {
		events := storetest.NewEvents(50, "")
		for i := range events {
			events[i].Type, events[i].CorrelationID = name("Type", 5), name("psh_", 9)
			events[i].ProjectID = domain.ProjectID(name("prj_", 7))
			if dice.IntN(9) == 0 {
				events[i].ProjectID, events[i].CorrelationID = "", ""
			}
		}
		storetest.MustAppend(t, s.Store, storetest.One(domain.Stream(name("build/", 20)), eventstore.AnyVersion, events...))
	}
	all := storetest.Collect(t, s.Read(t.Context(), eventstore.Query{}))
	same := func() {
		t.Helper()
		for range 60 {
			q := eventstore.Query{After: domain.Cursor{LogEpoch: 1, Position: dice.Int64N(2000)}}
			if dice.IntN(2) == 0 {
				q.Project = domain.ProjectID(name("prj_", 7))
			}
			if dice.IntN(3) == 0 {
				q.Types = []string{name("Type", 5), name("Type", 5), "Never"}
			}
			if dice.IntN(3) == 0 {
				q.Correlation = name("psh_", 9)
			}
			if dice.IntN(3) == 0 {
				q.Until = q.After.Position + dice.Int64N(900)
			}
			if dice.IntN(4) == 0 {
				q.Limit = 1 + dice.IntN(300)
			}
			filter := eventstore.Filter{Types: q.Types, Correlation: q.Correlation}
			if q.Project != "" {
				filter.Projects = []domain.ProjectID{q.Project}
			}
			var want []domain.Recorded
			for _, e := range all {
				in := e.Cursor.Position > q.After.Position && (q.Until == 0 || e.Cursor.Position <= q.Until)
				if in && filter.Match(e) && (q.Limit == 0 || len(want) < q.Limit) {
					want = append(want, e)
				}
			}
			if diff := cmp.Diff(storetest.Positions(want), storetest.Positions(storetest.Collect(t, s.Read(t.Context(), q)))); diff != "" {
				t.Fatalf("%+v: (-want +got)\n%s", q, diff)
			}
		}
	}
	same() // without an index
	indexed := func(want int64) error {
		var next int64
		if err := s.owner.QueryRow(t.Context(), "SELECT next FROM pipeops.event_blocks_head").Scan(&next); err != nil || next != want {
			return errors.Join(err, fmt.Errorf("%d blocks are indexed, want %d", next, want))
		}
		return nil
	}
	if _, err := s.owner.Exec(t.Context(), "SELECT pipeops.index_blocks(3)"); err != nil {
		t.Fatal(err)
	}
	if err := indexed(3); err != nil {
		t.Fatal(err)
	}
	same() // half of it indexed
	run(t, s.Store)
	deadline := time.After(20 * time.Second)
	for indexed(2000/256) != nil {
		select {
		case <-deadline:
			t.Fatal(indexed(2000 / 256))
		case <-time.After(10 * time.Millisecond):
		}
	}
	same()
}

func TestTheFirstEventsAreFoundThoughTheIndexBeganBeforeThem(t *testing.T) {
	t.Parallel()
	s := setup(t)
	var blocks int
	if err := s.owner.QueryRow(t.Context(), "SELECT pipeops.index_blocks(256)").Scan(&blocks); err != nil || blocks != 0 {
		t.Fatalf("an empty log has %d blocks, %v", blocks, err)
	}
	storetest.MustAppend(t, s.Store, storetest.One("build/1", 0, storetest.NewEvents(3, "A")...))
	if got := storetest.Collect(t, s.Read(t.Context(), eventstore.Query{Types: []string{"A"}})); len(got) != 3 {
		t.Errorf("got %d events, want 3", len(got))
	}
}

// However large the log is, and whatever the planner makes of that.
func TestFilteredReadingReadsNothingButBlocksThatHoldWhatIsWanted(t *testing.T) {
	t.Parallel()
	s := setup(t)
	const rare = domain.ProjectID("prj_rare")
	for range 40 {
		events := storetest.NewEvents(1024, "Common")
		events[500].Type, events[500].ProjectID = "Rare", rare
		storetest.MustAppend(t, s.Store, storetest.One("build/1", eventstore.AnyVersion, events...))
	}
	owner, err := s.owner.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Release()
	for _, statement := range []string{
		"SELECT pipeops.index_blocks(256)", "VACUUM ANALYZE pipeops.events, pipeops.event_blocks", "SELECT pg_stat_force_next_flush()", "SELECT 1",
	} {
		if _, err := owner.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	s.app += "&plan_cache_mode=force_generic_plan"
	reader := s.open(t, eventstore.Config{PoolSize: 1})
	touched := func() (rows int64) {
		_, err := reader.Pool().Exec(t.Context(), "SELECT pg_stat_force_next_flush()")
		if err == nil {
			err = reader.Pool().QueryRow(t.Context(), `SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_user_tables
				WHERE relid = 'pipeops.events'::regclass`).Scan(&rows)
		}
		if err != nil {
			t.Fatal(err)
		}
		return rows
	}
	for name, q := range map[string]eventstore.Query{
		"a type":              {Types: []string{"Rare"}, Limit: 10},
		"a type of a project": {Types: []string{"Rare"}, Project: rare, Limit: 10},
		"a type of streams":   {Types: []string{"Rare"}, Streams: "build", Limit: 10},
		"a type of a stream":  {Types: []string{"Rare"}, Streams: "build/1", Limit: 10},
	} {
		before := touched()
		if got := storetest.Collect(t, reader.Read(t.Context(), q)); len(got) != 10 {
			t.Fatalf("%s: got %d events, want 10", name, len(got))
		}
		// 2, 4 and 8 blocks; the head is looked up, too.
		if rows := touched() - before; rows < 10 || rows > 14*256+100 {
			t.Errorf("%s: %d rows of events were read for 10 in 10 blocks", name, rows)
		}
	}
}
