package projections_test

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/projections"
)

func TestHistoryAnswersAsItWasAnsweredThen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.projector(w.store)
	running(t, p.Run)
	q := p.Queries()
	w.project("app")
	const seed = 42
	r := rand.New(rand.NewPCG(seed, 0))
	type moment struct {
		cursor domain.Cursor
		answer answer
	}
	var moments []moment
	for i := range 600 {
		w.random(r)
		if i%12 == 0 {
			c := w.head()
			moments = append(moments, moment{c, ask(t, q, projections.At{AtLeast: c})})
		}
	}
	for _, m := range moments {
		if diff := cmp.Diff(m.answer, ask(t, q, projections.At{AsOf: &m.cursor})); diff != "" {
			t.Fatalf("seed %d, as of %s (-then +history):\n%s", seed, m.cursor, diff)
		}
	}
	before := domain.Cursor{LogEpoch: 1}
	if got := ask(t, q, projections.At{AsOf: &before}); !cmp.Equal(got, answer{Projects: got.Projects}) || len(got.Projects) > 0 {
		t.Errorf("before the first event there was %v", got)
	}
	last := ask(t, q, projections.At{AtLeast: w.head()})
	saysWhatTheDomainSays(t, w, last)
	for _, name := range []string{"projects", "builds", "deployments", "environments", "timeline"} {
		rebuilt, err := p.Rebuild(t.Context(), name, nil)
		must(t, err)
		if rebuilt.Different != 0 || rebuilt.Cursor != w.head() {
			t.Errorf("rebuild of %s: %d rows differ at %s, want none at %s", name, rebuilt.Different, rebuilt.Cursor, w.head())
		}
	}
	if diff := cmp.Diff(last, ask(t, q, projections.At{AtLeast: w.head()})); diff != "" {
		t.Errorf("after the rebuilds (-before +after):\n%s", diff)
	}
	w.random(r)
	w.push(w.projects[0], "refs/heads/main")
	ask(t, q, projections.At{AtLeast: w.head()}) // they go on
}

// saysWhatTheDomainSays compares rows with the states that the domain folds.
func saysWhatTheDomainSays(t *testing.T, w *world, a answer) {
	t.Helper()
	phases := map[domain.Phase]int{}
	for _, b := range a.Builds {
		if want := w.build(b.ID); b.Phase != want.Phase || b.Attempts != want.Attempts {
			t.Errorf("build %s: %s after %d attempts, the domain says %s after %d", b.ID, b.Phase, b.Attempts, want.Phase, want.Attempts)
		}
		if b.Phase.Final() == b.FinishedAt.IsZero() || (b.Phase == domain.Waiting) == b.WaitingSince.IsZero() {
			t.Errorf("build %s is %s, waits since %s, has finished at %s", b.ID, b.Phase, b.WaitingSince, b.FinishedAt)
		}
	}
	for _, d := range a.Deployments {
		phases[d.Phase]++
		if want := w.deployment(d.ID); d.Phase != want.Phase || d.Attempts != want.Attempts {
			t.Errorf("deployment %s: %s after %d attempts, the domain says %s after %d", d.ID, d.Phase, d.Attempts, want.Phase, want.Attempts)
		}
		if d.Phase.Final() == d.FinishedAt.IsZero() || (d.Phase == domain.Waiting) == d.WaitingSince.IsZero() {
			t.Errorf("deployment %s is %s, waits since %s, has finished at %s", d.ID, d.Phase, d.WaitingSince, d.FinishedAt)
		}
	}
	if phases[domain.Succeeded] == 0 || phases[domain.RolledBackP] == 0 {
		t.Errorf("the history is poor: deployments are %v", phases)
	}
	for _, p := range a.Pushes {
		if p.Status.Final() == p.FinishedAt.IsZero() {
			t.Errorf("push %s is %s and has finished at %s", p.ID, p.Status, p.FinishedAt)
		}
	}
}

func TestTwoProjectorsSideBySideDoEachBatchOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("app")
	first, second := w.projector(w.store), w.projector(w.open())
	running(t, first.Run)
	stop := running(t, second.Run)
	for range 15 {
		w.push(project, "refs/heads/main")
		w.succeed(w.builds[len(w.builds)-1])
	}
	a := ask(t, first.Queries(), projections.At{AtLeast: w.head()})
	if diff := cmp.Diff(a, ask(t, second.Queries(), projections.At{AtLeast: w.head()})); diff != "" {
		t.Errorf("two processes answer differently:\n%s", diff)
	}
	stop()
	w.push(project, "refs/heads/main")
	ask(t, second.Queries(), projections.At{AtLeast: w.head()}) // its process runs no projector any more
	rebuilt, err := first.Rebuild(t.Context(), "timeline", nil)
	must(t, err)
	if rebuilt.Different != 0 {
		t.Errorf("%d rows differ from a replay", rebuilt.Different)
	}
}

func statusOf(t *testing.T, p *projections.Projector, name string) projections.ProjectionStatus {
	t.Helper()
	all, err := p.Status(t.Context())
	must(t, err)
	for _, s := range all {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no projection %s in %v", name, all)
	return projections.ProjectionStatus{}
}

// until waits for a condition that others bring about.
func until(t testing.TB, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			t.Fatal("it did not come about within 30 s")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestARestoredLogIsProjectedAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("app")
	w.push(project, "refs/heads/main")
	p := w.projector(w.store)
	stop := running(t, p.Run)
	seen := w.head()
	ask(t, p.Queries(), projections.At{AtLeast: seen})
	stop()
	// A backup without the newest event is restored beside newer read models.
	for _, statement := range []string{
		"ALTER TABLE pipeops.events DISABLE TRIGGER never_changes",
		"DELETE FROM pipeops.events WHERE position = (SELECT max(position) FROM pipeops.events)",
		"ALTER TABLE pipeops.events ENABLE ALWAYS TRIGGER never_changes",
		"SELECT pipeops.raise_log_epoch()",
	} {
		_, err := w.owner.Exec(t.Context(), statement)
		must(t, err)
	}
	again := w.projector(w.open())
	running(t, again.Run)
	w2 := *w
	w2.store = w.open()
	var forked *projections.CursorError
	if _, err := again.Queries().Projects(t.Context(), projections.Names{}, projections.At{AtLeast: seen}); !errors.As(err, &forked) || !forked.Forked {
		t.Errorf("a cursor of the lost part: got %v, want that the log forked", err)
	}
	if got := ask(t, again.Queries(), projections.At{AtLeast: w2.head()}); len(got.Builds) != 0 || len(got.Pushes) != 1 {
		t.Errorf("got builds %v, pushes %v, want what the restored log says", got.Builds, got.Pushes)
	}
}

func TestPersonalFieldsAreOpenedForTheReaderUntilTheyAreErased(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.push(w.project("app"), "refs/heads/main")
	p := w.projector(w.store)
	running(t, p.Run)
	at := projections.At{AtLeast: w.head()}
	push, err := p.Queries().Push(t.Context(), id, at)
	must(t, err)
	if got := []string{push.Pusher.Text, push.Author.Text, push.Message.Text}; !cmp.Equal(got, []string{"ada", "Ada <ada@example.org>", "fix it"}) {
		t.Errorf("got %q", got)
	}
	var stored string
	must(t, w.owner.QueryRow(t.Context(), "SELECT string_agg(row::text, ' ') FROM projections.pushes_v1").Scan(&stored))
	if strings.Contains(stored, "ada") || strings.Contains(stored, "fix it") {
		t.Errorf("the read model holds personal data in clear: %s", stored)
	}
	_, _, err = w.subjects.Erase(t.Context(), "person-1")
	must(t, err)
	push, err = p.Queries().Push(t.Context(), id, at)
	must(t, err)
	if push.Pusher.Text != "(erased)" || push.Message.Text != "(erased)" {
		t.Errorf("after the erasure: got %q, %q", push.Pusher.Text, push.Message.Text)
	}
}

func TestTheTimelineTellsAPushInWords(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.projector(w.store)
	running(t, p.Run)
	project := w.project("app")
	live := w.push(project, "refs/heads/main")
	w.succeed(w.builds[0])
	w.workOnDeployment(w.deployments[0], nil)
	w.workOnDeployment(w.deployments[0], domain.RolloutProgressed{Wanted: 2, Available: 1})
	w.workOnDeployment(w.deployments[0], domain.RolloutProgressed{Wanted: 2, Available: 2})
	w.workOnDeployment(w.deployments[0], domain.DeploymentSucceeded{Available: 2, Address: "app.svc:80", Duration: 1234})
	failed := w.push(project, "refs/heads/main")
	w.succeed(w.builds[1])
	w.workOnDeployment(w.deployments[1], nil)
	crashed := diagnosis("Deployment failed: CrashLoopBackOff")
	crashed.ReleaseAtFault = true
	w.workOnDeployment(w.deployments[1], domain.DeploymentFailed{Diagnosis: crashed})
	w.workOnDeployment(w.deployments[1], domain.RolledBack{To: "rel_1", Available: 2, Duration: 900})
	ignored := w.push(project, "refs/tags/v1")

	at := projections.At{AtLeast: w.head()}
	for _, want := range []struct {
		push   domain.PushID
		status projections.PushStatus
		tells  []string
	}{
		{live, projections.PushLive, []string{
			"Push of COMMIT to main received", "Build of registry.test/app requested (COMMIT)", "Build started",
			"Source fetched: 3 files, 2.0 KiB", "Built: [1/2] RUN make (2.4 s)", "Image pushed: registry.test/app@DIGEST, 5.0 MiB",
			"Build succeeded (1m1s)", "Deployment of app to production requested", "app to production: rollout started",
			"app to production: 2 of 2 pods available", "app to production: live at app.svc:80 (1.2 s)",
		}},
		{failed, projections.PushRolledBack, nil},
		{ignored, projections.PushIgnored, []string{"Ignored: it is a tag"}},
	} {
		got, err := p.Queries().Timeline(t.Context(), project, want.push, at)
		must(t, err)
		if got.Push.Status != want.status {
			t.Errorf("push %s is %s, want %s", want.push, got.Push.Status, want.status)
		}
		var texts []string
		for _, e := range got.Entries {
			text := strings.ReplaceAll(e.Text, "sha256:"+got.Push.Commit, "DIGEST")
			texts = append(texts, strings.ReplaceAll(text, got.Push.Commit[:7], "COMMIT"))
		}
		if want.tells == nil {
			want.tells = texts[: len(texts)-3 : len(texts)-3]
			want.tells = append(want.tells, "app to production: Deployment failed: CrashLoopBackOff", "app to production: going back to "+short(t, p, live),
				"app to production: rolled back, the release before serves (0.9 s)")
		}
		if diff := cmp.Diff(want.tells, texts); diff != "" {
			t.Errorf("push %s (-want +got):\n%s", want.push, diff)
		}
	}
	last, err := p.Queries().LastPush(t.Context(), project, at)
	must(t, err)
	if last.ID != failed {
		t.Errorf("the last push is %s, want %s: an ignored one doesn't count", last.ID, failed)
	}
	status, err := p.Queries().Status(t.Context(), "app", at)
	must(t, err)
	if len(status) != 1 || status[0].Phase != domain.RolledBackP || status[0].Address != "app.svc:80" || len(status[0].Quarantined) != 1 ||
		status[0].Commit != w.build(w.builds[0]).Request.Commit {
		t.Errorf("status: got %+v", status)
	}
}

func short(t *testing.T, p *projections.Projector, id domain.PushID) string {
	t.Helper()
	push, err := p.Queries().Push(t.Context(), id, projections.At{})
	must(t, err)
	return push.Commit[:7]
}

func TestListsComeInPagesNewestFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.projector(w.store)
	running(t, p.Run)
	project := w.project("app")
	for range 5 {
		w.push(project, "refs/heads/main")
	}
	at := projections.At{AtLeast: w.head()}
	var got []domain.BuildID
	for page := (projections.Page{First: 2}); ; {
		builds, err := p.Queries().Builds(t.Context(), project, "", page, at)
		must(t, err)
		if len(builds) == 0 {
			break
		}
		for _, b := range builds {
			got = append([]domain.BuildID{b.ID}, got...)
			page.Before = b.Position
		}
	}
	if diff := cmp.Diff(w.builds, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	commit := w.build(w.builds[3]).Request.Commit
	found, err := p.Queries().Builds(t.Context(), project, commit[:9], projections.Page{}, at)
	if err != nil || len(found) != 1 || found[0].ID != w.builds[3] {
		t.Errorf("by commit: got %v, %v", found, err)
	}
}

func TestChangesTickForEveryReaderWhenAReadModelMoves(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.projector(w.store)
	running(t, p.Run)
	w.project("app")
	ask(t, p.Queries(), projections.At{AtLeast: w.head()})
	var group sync.WaitGroup
	for range 5 {
		since, err := p.Queries().Changes(t.Context(), 0, projections.OfBuilds)
		must(t, err)
		group.Go(func() {
			if now, err := p.Queries().Changes(t.Context(), since, projections.OfBuilds); err != nil || now == since {
				t.Errorf("got %d, %v after %d", now, err, since)
			}
		})
	}
	w.push(w.projects[0], "refs/heads/main")
	group.Wait()
}
