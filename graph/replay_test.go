package graph_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/graph"
)

type standing struct {
	Name    string
	Behind  int64
	Skipped []string
	Stopped *struct{ Position, Event, Type, Error string }
}

func (w *world) standing(name string) standing {
	w.t.Helper()
	type answer struct{ Projections []standing }
	all := ask[answer](w, `{ projections { name version cursor behind behindMs movedAt caughtUpAt skipped stopped { position event type error at } } }`, nil).Projections
	i := slices.IndexFunc(all, func(s standing) bool { return s.Name == name })
	if len(all) != 5 || i < 0 {
		w.t.Fatalf("got %+v", all)
	}
	return all[i]
}

func TestAcceptance16_AStoppedReadModelIsShownTriedAgainAndSkippedOverTheAPI(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("hello")
	_, build := w.push(project)
	const decide = `mutation($in: StoppedProjectionInput!) { skipProjection(input: $in) { cursor projection { name } } }`
	in := func(name, reason string) map[string]any {
		return map[string]any{"in": map[string]any{"name": name, "reason": reason, "idempotencyKey": "once"}}
	}
	w.refused("NOT_STOPPED", decide, in("builds", "why not"))
	w.refused("NOT_FOUND", decide, in("nothing", "why not"))
	poisoned, err := w.store.Append(t.Context(), eventstore.Append{Writes: []eventstore.Write{{
		Stream: domain.BuildStream(build), Expected: eventstore.AnyVersion,
		Events: []eventstore.NewEvent{{ID: uuid.NewString(), Type: "BuildStarted", SchemaVersion: 99, Body: []byte(`{}`), ProjectID: project, OccurredAt: w.now}},
	}}})
	must(t, err)
	stopped := w.standing("builds")
	for deadline := time.Now().Add(30 * time.Second); stopped.Stopped == nil && time.Now().Before(deadline); stopped = w.standing("builds") {
	}
	position := poisoned.Last.String()[2:]
	if stopped.Stopped == nil || stopped.Stopped.Position != position || stopped.Stopped.Type != "BuildStarted" || stopped.Behind != 1 {
		t.Fatalf("got %+v, want that it has stopped at %s", stopped, position)
	}
	w.refused("BAD_REASON", decide, in("builds", ""))
	ask[any](w, `mutation { retryProjection(input: {name: "builds", reason: "once more"}) { cursor } }`, nil)
	first := ask[struct{ SkipProjection struct{ Cursor string } }](w, decide, in("builds", "a faulty build wrote it")).SkipProjection.Cursor
	if again := ask[struct{ SkipProjection struct{ Cursor string } }](w, decide, in("builds", "a faulty build wrote it")).SkipProjection.Cursor; again != first {
		t.Errorf("the same key got %s, then %s", first, again)
	}
	ask[any](w, `query($c: Cursor) { build(id: "`+string(build)+`", atLeast: $c) { phase } }`, map[string]any{"c": first})
	if got := w.standing("builds"); got.Stopped != nil || !slices.Equal(got.Skipped, []string{position}) {
		t.Errorf("got %+v, want that it goes on without %s", got, position)
	}
	recorded := last[domain.ProjectionSkipped](w, "")
	if recorded.Projection != "builds" || recorded.Position != poisoned.Last.Position || recorded.Reason != "a faulty build wrote it" || recorded.Event != stopped.Stopped.Event {
		t.Errorf("recorded is %+v", recorded)
	}
}

func TestAReplayTellsHowFarItIsAndWhatItFound(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *graph.Config) { c.Interval = time.Millisecond })
	project := w.project("hello")
	w.push(project)
	s := w.connect()
	type step struct {
		Subject string
		Goal    int64
		Result  *struct {
			Kind      string
			Different int64
			Counts    []struct {
				Name  string
				Count int64
			}
		}
	}
	for id, field := range map[string]string{
		"projections": `replayProjections(names: ["builds", "timeline"], verify: true)`, "rebuild": `replayProjections(names: ["builds"])`,
		"policy": `replayPolicy(project: "hello")`,
	} {
		s.subscribe(id, `subscription { step: `+field+` { subject goal result { kind different counts { name count } differences { what } cursor } } }`, nil)
		var got step
		for got.Result == nil {
			got = data[struct{ Step step }](s, id).Step
		}
		if got.Result.Different != 0 || got.Result.Kind == "" {
			t.Errorf("%s: got %+v", id, got.Result)
		}
		if f, err := s.next(); err != nil || f.Type != "complete" || f.ID != id {
			t.Errorf("%s: got %+v, %v, want that it is complete", id, f, err)
		}
	}
	w.refused("NOT_FOUND", `mutation { replayDelivery(input: {push: "psh_nobody"}) { kind } }`, nil)
}
