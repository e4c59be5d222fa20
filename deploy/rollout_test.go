package deploy

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/deploy/watch"
	"github.com/pipeops/pipeops/domain"
)

func TestAFirstReleaseIsServedAndTheSameAgainChangesNothing(t *testing.T) {
	t.Parallel()
	s := setup(t)
	r := s.release(t, "c1", nil)
	a := s.deployed(t, r, try{epoch: 1})
	if got, want := typesOf(a.events), []string{"ManifestsApplied", "DeploymentSucceeded"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if m := only[domain.ManifestsApplied](t, a); m.Changed != 2 || !slices.Contains(m.Objects, "Deployment/web") {
		t.Errorf("got %+v, want two changed objects", m)
	}
	done := only[domain.DeploymentSucceeded](t, a)
	if done.Available != 1 || done.Address != "web."+r.Namespace+".svc:80" || !strings.HasSuffix(r.Release.Image, "@"+done.Digest) {
		t.Errorf("got %+v, want one pod of %s", done, r.Release.Image)
	}
	s.served(t, "c1")

	before := s.versions(t)
	again := r
	again.Deployment = domain.DeploymentID(id("dep"))
	b := s.deployed(t, again, try{epoch: 2, previous: &r})
	if m := only[domain.ManifestsApplied](t, b); m.Changed != 0 {
		t.Errorf("the same release again changed %d objects", m.Changed)
	}
	if d := cmp.Diff(before, s.versions(t)); d != "" {
		t.Errorf("resourceVersions changed (-before +after):\n%s", d)
	}
}

func TestARollingUpdateUnderLoadLosesNoRequest(t *testing.T) {
	t.Parallel()
	s := setup(t)
	one := s.release(t, "c1", func(p *domain.ServiceSpec) { p.Replicas = 3 })
	s.deployed(t, one, try{epoch: 1})
	s.served(t, "c1")
	stop := load(s.address(t))
	two := s.release(t, "c2", func(p *domain.ServiceSpec) { p.Replicas = 3; p.Port = 9090 })
	a := s.deployed(t, two, try{epoch: 2, previous: &one})
	s.served(t, "c2")
	answers, errs := stop()
	quiet(t, errs)
	if answers["c1"] == 0 || answers["c2"] == 0 || len(answers) != 2 {
		t.Errorf("got %v, want answers of both releases and no others", answers)
	}
	var last domain.RolloutProgressed
	for _, e := range a.events {
		if p, ok := e.(domain.RolloutProgressed); ok {
			if p.Wanted != 3 || p.Available < last.Available || p == last {
				t.Errorf("progress went from %+v to %+v", last, p)
			}
			last = p
		}
	}
	if done := only[domain.DeploymentSucceeded](t, a); done.Available != 3 {
		t.Errorf("got %+v", done)
	}
}

func TestAReleaseThatCantStartIsDiagnosedAndRolledBackWhileTheOldOneServes(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, code, says string
		change           func(*domain.DeploymentRequested)
	}{
		{"image that doesn't exist", "IMAGE_NOT_FOUND", "not found", func(r *domain.DeploymentRequested) {
			repository, _, _ := strings.Cut(r.Release.Image, "@")
			r.Release.Image = repository + "@sha256:" + strings.Repeat("0badc0de", 8)
		}},
		{"program that ends at once", "APP_CRASHED", "exit code 3", func(r *domain.DeploymentRequested) { mode("exit")(&r.Spec) }},
		{"port that nobody listens on", "PORT_NOT_LISTENING", "connection refused", func(r *domain.DeploymentRequested) {
			mode("deaf")(&r.Spec)
			r.Spec.Health.Startup.Failures = 5
		}},
		{"program that never gets well", "HEALTH_CHECK_FAILED", "statuscode: 500", func(r *domain.DeploymentRequested) {
			mode("sick")(&r.Spec)
			r.Spec.Strategy.Deadline = 15
		}},
		{"command that isn't there", "START_COMMAND", "/nowhere", func(r *domain.DeploymentRequested) { r.Spec.Command = []string{"/nowhere"} }},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := setup(t)
			good := s.release(t, "good", nil)
			s.deployed(t, good, try{epoch: 1})
			s.served(t, "good")
			stop := load(s.address(t))
			bad := s.release(t, "bad", nil)
			row.change(&bad)
			bad.Release = domain.NewRelease(bad.Service, "bld_x", "bad", bad.Release.Image, 2, bad.Spec)
			a, err := s.try(t, bad, try{epoch: 2, previous: &good})
			answers, errs := stop()
			quiet(t, errs)
			if err != nil {
				t.Fatalf("got %v after %s", err, describe(a.events))
			}
			if got, want := typesOf(a.events), []string{"ManifestsApplied", "DeploymentFailed", "ManifestsApplied", "RolledBack"}; !slices.Equal(got, want) {
				t.Fatalf("got %v, want %v: %s", got, want, describe(a.events))
			}
			d := only[domain.DeploymentFailed](t, a).Diagnosis
			t.Log(d)
			if d.Code != row.code || !strings.Contains(d.Error, row.says) || d.Step != "rollout" || len(d.Fixes) == 0 {
				t.Errorf("got %+v, want %s with %q", d, row.code, row.says)
			}
			if back := only[domain.RolledBack](t, a); back.To != good.Release.ID || back.Available != 1 {
				t.Errorf("got %+v, want release %s", back, good.Release.ID)
			}
			if len(answers) != 1 || answers["good"] == 0 {
				t.Errorf("got %v, want the old release in every answer", answers)
			}
		})
	}
}

func TestARollBackThatFailsSaysSo(t *testing.T) {
	t.Parallel()
	s := setup(t)
	worse := s.release(t, "worse", func(p *domain.ServiceSpec) { mode("deaf")(p); p.Health.Startup.Failures = 2 })
	a, err := s.try(t, s.release(t, "bad", nil), try{n: 2, epoch: 2, previous: &worse, rollback: true})
	if err != nil {
		t.Fatalf("got %v after %s", err, describe(a.events))
	}
	if d := only[domain.RollbackFailed](t, a).Diagnosis; d.Code != "PORT_NOT_LISTENING" || d.Title != "Rollback failed: nothing listens on port 8080" {
		t.Errorf("got %+v", d)
	}
}

func TestProgressIsToldOnceABeatAndOnlyWhenItIsNew(t *testing.T) {
	t.Parallel()
	a := &recorder{}
	r := &rollout{job: &job{attempt: a}, notes: []string{"a note"}}
	now := time.Now()
	for _, step := range []struct {
		p       watch.Progress
		elapsed time.Duration
		want    int // reports so far
	}{
		{watch.Progress{State: watch.Unseen, Wanted: 2}, 0, 0},
		{watch.Progress{State: watch.Moving, Wanted: 2}, 0, 1},
		{watch.Progress{State: watch.Moving, Wanted: 2, Ready: 1}, beat / 2, 1},
		{watch.Progress{State: watch.Moving, Wanted: 2, Ready: 1}, beat, 2},
		{watch.Progress{State: watch.Moving, Wanted: 2, Ready: 1}, 5 * beat, 2},
		{watch.Progress{State: watch.Moving, Wanted: 2, Ready: 2}, 6 * beat, 3},
	} {
		r.progress(step.p, "", now.Add(step.elapsed))
		if len(a.events) != step.want {
			t.Fatalf("after %s: %d reports, want %d", step.elapsed, len(a.events), step.want)
		}
	}
	if p := only[domain.RolloutProgressed](t, a); p.Message != "a note" || p.Ready != 2 {
		t.Errorf("got %+v", p)
	}
}
