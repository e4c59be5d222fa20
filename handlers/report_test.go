package handlers_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/handlers/commands"
)

// claimed gives a build's attempt that one worker has.
func (p *plane) claimed(t *testing.T) domain.AttemptID {
	t.Helper()
	p.project(t)
	return p.claim(t, "bld_1", "a")
}

// claim lets a worker claim the build of a commit.
func (p *plane) claim(t *testing.T, build domain.BuildID, commit string) domain.AttemptID {
	t.Helper()
	got := p.must(t, push(commit, string(build)))
	e, err := got.Events[0].Decode()
	pushed, ok := e.(domain.PushReceived)
	if err != nil || !ok {
		t.Fatal(err, e)
	}
	p.must(t, domain.RequestBuilds{Push: pushed, IDs: []domain.BuildID{build}})
	p.must(t, domain.ClaimBuild{Build: build, Worker: "wrk_1", Incarnation: "one"})
	return domain.NewAttemptID(string(build), 1)
}

func layers(n int) (items []commands.Item) {
	for range n {
		items = append(items, commands.Item{Event: domain.LayerBuilt{Name: "RUN make"}, At: time.Now()})
	}
	return items
}

func TestAReportIsStoredAsOneAppendAndWhatIsKnownIsDropped(t *testing.T) {
	t.Parallel()
	w := newWorld(t, inProcess(t))
	p, _ := w.core()
	a := p.claimed(t)
	var gap *domain.GapError
	if n, err := p.commands.Report(t.Context(), a, 2, layers(1), "worker"); n != 0 || !errors.As(err, &gap) || gap.Stored != 0 {
		t.Errorf("with a gap before it: got %d, %v", n, err)
	}
	for first, items := range [][]commands.Item{layers(50), layers(60)} { // 1…50, then 2…61
		if n, err := p.commands.Report(t.Context(), a, int64(first)+1, items, "worker"); n != len(items) || err != nil {
			t.Fatalf("got %d, %v, want %d", n, err, len(items))
		}
	}
	last := commands.Item{Event: domain.BuildFailed{Diagnosis: domain.Diagnosis{Code: "X"}}, At: time.Now()}
	for range 2 { // its answer was lost the first time
		if n, err := p.commands.Report(t.Context(), a, 62, append(layers(0), last), "worker"); n != 1 || err != nil {
			t.Fatalf("final item: got %d, %v", n, err)
		}
	}
	if stored, over, err := p.commands.Progress(t.Context(), a); stored != 62 || over != "" || err != nil {
		t.Errorf("got %d, %q, %v, want 62", stored, over, err)
	}
	at, sequence := map[time.Time]int{}, int64(0)
	for r, err := range p.store.ReadStream(t.Context(), a.Stream(), 2) {
		if err != nil {
			t.Fatal(err)
		}
		if sequence++; r.AttemptSeq != sequence {
			t.Errorf("item %d stands after %d", r.AttemptSeq, sequence-1)
		}
		at[r.RecordedAt]++
	}
	if sequence != 62 || len(at) > 3 {
		t.Errorf("%d items were recorded at %d times, want 62 at 3", sequence, len(at))
	}
}

func TestItemsBeforeOneThatCannotBeStoredAreKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t, inProcess(t))
	p, _ := w.core()
	a := p.claimed(t)
	items := layers(3)
	items[2].Event = domain.LayerBuilt{Name: strings.Repeat("x", 300<<10)}
	n, err := p.commands.Report(t.Context(), a, 1, items, "worker")
	if n != 2 || !commands.Unwritable(err) {
		t.Errorf("got %d, %v, want 2 and why the third can't be stored", n, err)
	}
	if stored, _, err := p.commands.Progress(t.Context(), a); stored != 2 || err != nil {
		t.Errorf("got %d, %v, want 2", stored, err)
	}
}

func TestProgressFollowsWhatIsNew(t *testing.T) {
	t.Parallel()
	w := newWorld(t, inProcess(t))
	p, _ := w.core()
	a := p.claimed(t)
	for i := range int64(3) {
		if _, err := p.commands.Report(t.Context(), a, i+1, layers(1), "worker"); err != nil {
			t.Fatal(err)
		}
		if stored, over, err := p.commands.Progress(t.Context(), a); stored != i+1 || over != "" || err != nil {
			t.Errorf("got %d, %q, %v, want %d", stored, over, err, i+1)
		}
	}
	p.must(t, domain.LoseBuildAttempt{Attempt: a, Reason: "silent"})
	if stored, over, err := p.commands.Progress(t.Context(), a); stored != 3 || over == "" || err != nil {
		t.Errorf("lost: got %d, %q, %v", stored, over, err)
	}
	first, ok, err := p.store.First(t.Context(), a.Stream())
	if want := "BuildRequested"; first.Type != want || !ok || err != nil {
		t.Errorf("the stream begins with %s, %v, %v, want %s", first.Type, ok, err, want)
	}
	if _, ok, err := p.store.First(t.Context(), "build/bld_none"); ok || err != nil {
		t.Errorf("of no stream: got %v, %v", ok, err)
	}
}
