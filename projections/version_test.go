package projections

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pipeops/pipeops/domain"
)

var update = flag.Bool("update", false, "write testdata anew")

// Two binaries with the same version of a read model share its tables: so the same events must give the same rows.
func TestOtherRowsNeedAnotherVersion(t *testing.T) {
	const file = "testdata/versions"
	history := exampleHistory(t)
	var got strings.Builder
	for _, p := range all {
		fmt.Fprintf(&got, "%s v%d %x\n", p.name, p.version, sha256.Sum256([]byte(rowsOf(t, p, history))))
	}
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the same events give other rows than before. Where that is meant, raise the version of the projection, so that its tables "+
			"are built anew beside the old ones, then run this test with -update. Got\n%swant\n%s", got.String(), want)
	}
}

// exampleHistory is every stored form that there has been: at first as a push goes on to its release, then in order of
// name, so that each meets what it may not expect.
func exampleHistory(t *testing.T) (history []domain.Recorded) {
	t.Helper()
	files, err := filepath.Glob("../domain/testdata/events/*.json")
	if err != nil || len(files) < 50 {
		t.Fatalf("%d stored events: %v", len(files), err)
	}
	stored := map[string]domain.Recorded{}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".json")
		var r domain.Recorded
		kind, version, _ := strings.Cut(name, ".v")
		r.Type = kind
		if _, err := fmt.Sscan(version, &r.SchemaVersion); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if r.Body, err = os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
		stored[name] = r
	}
	for _, name := range slices.Concat(strings.Fields(`ProjectCreated.v1 ServiceAdded.v1 EnvironmentAdded.v1 ProjectConfigured.v1 ServiceConfigured.v1
		PushReceived.v1 BuildRequested.v1 BuildStarted.v1 SourceFetched.v1 LayerCached.v1 LayerBuilt.v1 ImageBuilt.v1 ImagePushed.v1 ImageTagged.v1 BuildSucceeded.v1
		DeploymentRequested.v1 DeploymentQueued.v1 DeploymentAdmitted.v1 DeploymentClaimed.v1 DeploymentStarted.v1 ManifestsApplied.v1 RolloutProgressed.v1
		DeploymentSucceeded.v1 ReleaseActivated.v1 DeploymentReleased.v1`), slices.Sorted(maps.Keys(stored))) {
		r, ok := stored[name]
		if !ok {
			t.Fatalf("no stored event %s", name)
		}
		history = append(history, r)
	}
	return history
}

// rowsOf gives every row that a projection makes of a history, at each event that changes it.
func rowsOf(t *testing.T, p *projection, history []domain.Recorded) string {
	t.Helper()
	streams := map[string]domain.Stream{
		"project": "project/project", "push": "push/project/source/delivery", "build": "build/build",
		"deployment": "deployment/deployment", "slot": "slot/environment/service",
	}
	var out strings.Builder
	r := newRows()
	changed := map[string]bool{}
	position := int64(1) // goes on with what changes a row: a new type of event that a projection ignores is no other history
	for _, e := range history {
		for _, kind := range p.streams {
			e.Cursor = domain.Cursor{LogEpoch: 1, Position: position}
			e.ID, e.Stream, e.ProjectID, e.Actor = fmt.Sprintf("00000000-0000-0000-0000-%012d", position), streams[kind], "project", "act_1"
			e.CorrelationID, e.Attempt, e.AttemptSeq = "push", "attempt.1", position
			e.RecordedAt = time.Date(2026, 1, 2, 3, 4, int(position), 0, time.UTC)
			e.OccurredAt = e.RecordedAt.Add(-time.Second)
			apply(t, r, p, e)
			for _, w := range r.writes {
				fmt.Fprintf(&out, "%d %s %s %+v %s\n", w.from, w.table, w.key, w.index, w.doc)
				changed[w.table] = true
			}
			if len(r.writes) > 0 {
				position++
			}
		}
	}
	for _, table := range p.tables {
		if !changed[table] {
			t.Errorf("no event changed %s", table)
		}
	}
	return out.String()
}

// apply lets a projection see an event, as if there were no rows but those in memory.
func apply(t *testing.T, r *rows, p *projection, e domain.Recorded) {
	t.Helper()
	d, made, err := p.decode(e)
	if err != nil || !made {
		t.Fatalf("%s for %s: %v", e.Type, p.name, err)
	}
	for {
		complete, err := r.try(p, d)
		if err != nil {
			t.Fatalf("%s for %s: %v", e.Type, p.name, err)
		}
		if complete {
			return
		}
		for of := range r.missing {
			r.states[of] = &rowState{batch: r.batch}
		}
	}
}
