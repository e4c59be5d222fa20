package projections_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/projections"
)

// poison puts an event of a later schema into a build's stream.
func (w *world) poison(build domain.BuildID) domain.Recorded {
	w.t.Helper()
	id := uuid.NewString()
	_, err := w.store.Append(w.t.Context(), eventstore.Append{Writes: []eventstore.Write{{
		Stream: domain.BuildStream(build), Expected: eventstore.AnyVersion, Events: []eventstore.NewEvent{
			{ID: uuid.NewString(), Type: "LayerRenamed", SchemaVersion: 1, Body: []byte(`{}`), ProjectID: w.projects[0], OccurredAt: w.now},
			{ID: id, Type: "BuildStarted", SchemaVersion: 99, Body: []byte(`{}`), ProjectID: w.projects[0], OccurredAt: w.now},
		},
	}}})
	must(w.t, err)
	found, err := w.store.Find(w.t.Context(), id)
	must(w.t, err)
	return found[0]
}

// operate lets somebody decide what becomes of a stopped projection.
func (w *world) operate(q *projections.Queries, name string, decide func(domain.StoppedProjection) domain.Command) error {
	return q.WhileStopped(w.t.Context(), name, func(s projections.ProjectionStatus) error {
		_, err := w.commands.Execute(w.t.Context(), decide(domain.StoppedProjection{
			Projection: s.Name, Version: s.Version, Event: s.StoppedEvent, Position: s.StoppedPosition,
		}), commands.Meta{CommandID: uuid.NewString(), Actor: "act_1", At: w.now})
		return err
	})
}

func TestAcceptance16_APoisonedEventStopsItsProjectionAloneUntilItIsSkipped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("app")
	w.push(project, "refs/heads/main")
	config := w.config(w.store)
	config.RetryStopped = time.Hour // only who is asked tries again
	p, err := projections.New(config)
	must(t, err)
	running(t, p.Run)
	q := p.Queries()
	poisoned := w.poison(w.builds[0])
	w.steps(w.builds[0], 3)
	next := w.project("next")
	at := projections.At{AtLeast: w.head()}
	if found, err := q.Project(t.Context(), string(next), at); err != nil || found == nil {
		t.Errorf("the other projections go on: got %v, %v", found, err)
	}
	stopped := func() bool { // an unknown type belongs to another version of the projection, a known one of a later schema doesn't
		s := statusOf(t, p, "builds")
		return s.StoppedPosition == poisoned.Cursor.Position && s.StoppedEvent == poisoned.ID && s.StoppedType == "BuildStarted" &&
			strings.Contains(s.StoppedError, "schema version 99") && s.Cursor.Position == poisoned.Cursor.Position-1 && s.Behind > 0 && s.BehindFor > 0
	}
	until(t, stopped)
	if s := statusOf(t, p, "deployments"); s.StoppedPosition != 0 {
		t.Errorf("deployments have stopped too: %+v", s)
	}
	b, err := q.Build(t.Context(), w.builds[0], projections.At{})
	if err != nil || b == nil || b.Phase != domain.Waiting {
		t.Errorf("what came before stays: got %v, %v", b, err)
	}
	config.Patience = time.Millisecond
	impatient, err := projections.New(config)
	must(t, err)
	var behind *projections.BehindError
	if _, err := impatient.Queries().Build(t.Context(), w.builds[0], at); !errors.As(err, &behind) || behind.Stopped == "" {
		t.Errorf("got %v, want that it is behind because it has stopped", err)
	}
	var running *projections.RunningError
	if err := w.operate(q, "projects", skip("r")); !errors.As(err, &running) {
		t.Errorf("a projection that runs: got %v", err)
	}
	var unknown *projections.UnknownError
	if err := w.operate(q, "nothing", skip("r")); !errors.As(err, &unknown) {
		t.Errorf("a projection that isn't: got %v", err)
	}
	before := statusOf(t, p, "builds").StoppedAt
	must(t, w.operate(q, "builds", func(s domain.StoppedProjection) domain.Command {
		return domain.RetryProjection{StoppedProjection: s, Reason: "the disk was full", At: w.now}
	}))
	ask(t, q, projections.At{AtLeast: domain.Cursor{LogEpoch: 1, Position: poisoned.Cursor.Position - 1}})
	until(t, stopped) // and it still is
	if after := statusOf(t, p, "builds").StoppedAt; !after.Equal(before) {
		t.Errorf("it has stopped at %s, says %s after it was tried again", before, after)
	}
	until(t, func() bool { return statusOf(t, p, "timeline").StoppedPosition > 0 })
	must(t, w.operate(q, "timeline", skip("made by a program that nobody has any more")))
	must(t, w.operate(q, "builds", skip("made by a program that nobody has any more")))
	b, err = q.Build(t.Context(), w.builds[0], projections.At{AtLeast: w.head()})
	if err != nil || b == nil || b.Steps != 3 || b.Phase != domain.Waiting {
		t.Errorf("what comes after it is applied: got %+v, %v", b, err)
	}
	then, err := q.Build(t.Context(), w.builds[0], projections.At{AsOf: &poisoned.Cursor})
	if err != nil || then == nil || then.Steps != 0 {
		t.Errorf("as of the event that was left out: got %+v, %v", then, err)
	}
	if s := statusOf(t, p, "builds"); s.StoppedPosition != 0 || !slices.Equal(s.Skipped, []int64{poisoned.Cursor.Position}) || s.StoppedError != "" {
		t.Errorf("got %+v, want that it runs and left out %d", s, poisoned.Cursor.Position)
	}
	w.same(t, p, "builds", "timeline")
	had := ask(t, q, projections.At{AtLeast: w.head()})
	rebuilt, err := p.Rebuild(t.Context(), "builds", nil)
	must(t, err)
	if diff := cmp.Diff(had, ask(t, q, projections.At{AtLeast: w.head()})); diff != "" || rebuilt.Different != 0 {
		t.Errorf("a replay differs in %d rows (-before +after):\n%s", rebuilt.Different, diff)
	}
	if s := statusOf(t, p, "builds"); !slices.Equal(s.Skipped, []int64{poisoned.Cursor.Position}) {
		t.Errorf("after the replay it says that it left out %d", s.Skipped)
	}
}

func skip(reason string) func(domain.StoppedProjection) domain.Command {
	return func(s domain.StoppedProjection) domain.Command {
		return domain.SkipProjection{StoppedProjection: s, Reason: reason, At: time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)}
	}
}

func TestTheLogHasTheLastWordOnWhatIsLeftOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("app")
	w.push(project, "refs/heads/main")
	p := w.projector(w.store)
	running(t, p.Run)
	w.steps(w.builds[0], 3)
	applied := w.head()
	if got := ask(t, p.Queries(), projections.At{AtLeast: applied}).Builds[0].Steps; got != 3 {
		t.Fatalf("got %d steps", got)
	}
	// Whoever decided it was frozen until the event was applied after all.
	_, err := w.commands.Execute(t.Context(), skip("too late")(domain.StoppedProjection{
		Projection: "builds", Version: 2, Event: uuid.NewString(), Position: applied.Position,
	}), commands.Meta{CommandID: uuid.NewString(), Actor: "act_1", At: w.now})
	must(t, err)
	until(t, func() bool { return slices.Equal(statusOf(t, p, "builds").Skipped, []int64{applied.Position}) })
	w.steps(w.builds[0], 1)
	if got := ask(t, p.Queries(), projections.At{AtLeast: w.head()}).Builds[0].Steps; got != 3 {
		t.Errorf("got %d steps, want 3: one of four is left out", got)
	}
	w.same(t, p, "builds")
}
