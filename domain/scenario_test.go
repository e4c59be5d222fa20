package domain

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

// scenario is a small log: commands are decided on it and their events folded.
type scenario struct {
	t     *testing.T
	state State
	log   []Recorded
	told  []Event // by the log
	now   time.Time
	seq   map[AttemptID]int64
	queue Queue
}

func newScenario(t *testing.T) *scenario {
	t.Helper()
	return &scenario{t: t, state: State{}, now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC), seq: map[AttemptID]int64{}}
}

// when decides a command, records what it gives, and names the new events' types.
func (s *scenario) when(cmd Command) ([]string, error) {
	s.t.Helper()
	changes, err := cmd.Decide(s.state)
	if err != nil {
		return nil, err
	}
	var seq int64
	switch c := cmd.(type) {
	case ReportBuild:
		seq = c.Sequence
	case ReportDeployment:
		seq = c.Sequence
	}
	var types []string
	for _, c := range changes {
		if err := s.state.Fold(c.Stream, c.Event, seq); err != nil {
			s.t.Fatal(err)
		}
		r := Recorded{Cursor: Cursor{1, int64(len(s.log) + 1)}, Stream: c.Stream, Type: TypeOf(c.Event), RecordedAt: s.now, ProjectID: "prj_1"}
		s.log, s.told = append(s.log, r), append(s.told, c.Event)
		s.queue.Fold(r, c.Event)
		types = append(types, r.Type)
	}
	return types, nil
}

// then decides a command and wants exactly these event types.
func (s *scenario) then(cmd Command, want ...string) {
	s.t.Helper()
	got, err := s.when(cmd)
	if err != nil {
		s.t.Fatalf("%T: %v", cmd, err)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		s.t.Fatalf("%T: got %v, want %v", cmd, got, want)
	}
}

// refused decides a command and wants a refusal of this code.
func (s *scenario) refused(cmd Command, code string) {
	s.t.Helper()
	_, err := s.when(cmd)
	var r *Refusal
	if !errors.As(err, &r) || r.Code != code {
		s.t.Fatalf("%T: got %v, want refusal %s", cmd, err, code)
	}
}

func (s *scenario) build(a AttemptID, e Event) ReportBuild {
	s.seq[a]++
	return ReportBuild{Attempt: a, Sequence: s.seq[a], Item: e}
}

func (s *scenario) deploy(a AttemptID, e Event) ReportDeployment {
	s.seq[a]++
	return ReportDeployment{Attempt: a, Sequence: s.seq[a], Item: e}
}

func (s *scenario) project() {
	s.t.Helper()
	s.then(CreateProject{
		ID: "prj_1", Name: "hello", Settings: ProjectSettings{Branch: "main", Registry: "reg"},
		Services: []NewService{{"svc_1", "hello", DefaultSpec()}}, Environments: []NewEnvironment{{"env_1", "production", ""}},
	}, "ProjectNameClaimed", "ProjectCreated", "ServiceAdded", "EnvironmentAdded")
}

func push(n int, commit string) ReceivePush {
	return ReceivePush{
		Push: PushID(fmt.Sprint("psh_", n)), Project: "prj_1", Source: "github", Delivery: strconv.Itoa(n), Kind: "push",
		Ref: "refs/heads/main", Commit: commit, Body: fmt.Sprint("body", n),
	}
}

func received(n int, commit string) PushReceived {
	return PushReceived{Push: PushID(fmt.Sprint("psh_", n)), Project: "prj_1", Ref: "refs/heads/main", Branch: "main", Commit: commit}
}

// built takes a commit from push to a succeeded build.
func (s *scenario) built(n int, commit string) BuildID {
	s.t.Helper()
	id := BuildID(fmt.Sprint("bld_", n))
	s.then(push(n, commit), "PushReceived", "RefMoved")
	s.then(RequestBuilds{Push: received(n, commit), IDs: []BuildID{id}}, "BuildRequested")
	s.then(ClaimBuild{Build: id, Worker: "w", Incarnation: "i"}, "BuildStarted")
	a := NewAttemptID(string(id), 1)
	digest := "sha256:" + commit
	s.then(s.build(a, SourceFetched{Commit: commit}), "SourceFetched")
	s.then(s.build(a, ImagePushed{Reference: "reg/hello@" + digest, Digest: digest}), "ImagePushed")
	s.then(s.build(a, ImageTagged{Reference: "reg/hello:" + commit, Digest: digest}), "ImageTagged")
	s.then(s.build(a, WorkspaceRemoved{}), "WorkspaceRemoved")
	s.then(s.build(a, BuildSucceeded{Digest: digest}), "BuildSucceeded")
	return id
}

// deployed takes a build live.
func (s *scenario) deployed(n int, build BuildID) {
	s.t.Helper()
	id := DeploymentID(fmt.Sprint("dep_", n))
	s.then(DeployBuild{Project: "prj_1", Build: build, IDs: []DeploymentID{id}}, "DeploymentRequested", "DeploymentAdmitted")
	s.then(ClaimDeployment{Deployment: id, Worker: "w", Incarnation: "i", At: s.now}, "DeploymentStarted", "DeploymentClaimed")
	s.then(s.deploy(NewAttemptID(string(id), 1), DeploymentSucceeded{}), "DeploymentSucceeded", "ReleaseActivated", "DeploymentReleased")
}

func TestAPushBecomesARelease(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.project()
	s.deployed(1, s.built(1, "aaa"))
	slot := Of[Slot](s.state, SlotStream("env_1", "svc_1"))
	if slot.Active().Release.Commit != "aaa" || slot.Holder != "" {
		t.Errorf("slot is %+v", slot)
	}
	if len(s.queue.Works) != 0 {
		t.Errorf("work is left over: %v", s.queue.Works)
	}
}

func TestDeliveriesThatLeadToNothingSayWhy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*ReceivePush)
		reason string
	}{
		"ping":           {func(c *ReceivePush) { c.Kind = "ping" }, "ping"},
		"issue":          {func(c *ReceivePush) { c.Kind = "issues" }, "not-a-push"},
		"tag":            {func(c *ReceivePush) { c.Ref = "refs/tags/v1" }, "tag"},
		"branch deleted": {func(c *ReceivePush) { c.Commit = strings.Repeat("0", 40) }, "branch-deleted"},
		"other branch":   {func(c *ReceivePush) { c.Ref = "refs/heads/other" }, "other-branch"},
		"same head":      {func(c *ReceivePush) { c.Commit = "aaa" }, "duplicate"},
		"replayed body":  {func(c *ReceivePush) { c.Body = "body1" }, "duplicate"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScenario(t)
			s.project()
			s.then(push(1, "aaa"), "PushReceived", "RefMoved")
			s.then(push(2, "bbb"), "PushReceived", "RefMoved")
			s.then(push(3, "aaa"), "PushReceived", "RefMoved")
			c3 := push(4, "ccc")
			c.change(&c3)
			s.then(c3, "PushIgnored")
			again := c3
			again.Delivery = "5"
			got, err := again.Decide(s.state)
			if err != nil || got[0].Event.(PushIgnored).Reason != c.reason {
				t.Errorf("got %v, %v; want reason %s", got, err, c.reason)
			}
			s.then(c3) // the same delivery again is once
		})
	}
}

// from gives the n-th push, which moves the ref from a commit to another.
func from(n int, before, after string) ReceivePush {
	p := push(n, after)
	p.Before = before
	return p
}

func TestADeliveryThatComesTooLateDoesntBringAnOlderVersionBack(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before []ReceivePush
		late   ReceivePush
	}{
		"one":                 {[]ReceivePush{from(1, "", "a"), from(3, "b", "c")}, from(2, "a", "b")},
		"the very first":      {[]ReceivePush{from(2, "a", "b")}, from(1, "", "a")},
		"first of two":        {[]ReceivePush{from(1, "", "a"), from(4, "c", "d")}, from(2, "a", "b")},
		"second of two":       {[]ReceivePush{from(1, "", "a"), from(4, "c", "d")}, from(3, "b", "c")},
		"there and back":      {[]ReceivePush{from(1, "", "a"), from(4, "a", "d")}, from(2, "a", "b")},
		"after more of them":  {[]ReceivePush{from(1, "", "a"), from(3, "b", "c"), from(4, "c", "d"), from(5, "d", "e")}, from(2, "a", "b")},
		"after a forced push": {[]ReceivePush{from(1, "", "a"), from(3, "b", "c"), from(4, "c", "a")}, from(2, "x", "b")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScenario(t)
			s.project()
			for _, p := range c.before {
				s.then(p, "PushReceived", "RefMoved")
			}
			changes, err := c.late.Decide(s.state)
			if err != nil {
				t.Fatal(err)
			}
			ignored, ok := changes[0].Event.(PushIgnored)
			if !ok || ignored.Reason != "overtaken" || ignored.Diagnosis == nil || len(ignored.Diagnosis.Fixes) == 0 {
				t.Errorf("got %+v", changes[0].Event)
			}
		})
	}
}

func TestThereAndBackAndThereAgainAreThreePushes(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.project()
	s.then(from(1, "", "a"), "PushReceived", "RefMoved")
	s.then(from(3, "b", "c"), "PushReceived", "RefMoved") // the one to b never came
	for i, c := range []string{"b", "a", "b", "c", "a"} {
		s.then(from(4+i, Of[Ref](s.state, RefStream("prj_1", "refs/heads/main")).Head, c), "PushReceived", "RefMoved")
	}
	s.then(from(10, "unknown", "d"), "PushReceived", "RefMoved") // something was missed, but d is news
}

func TestAPushToAProjectThatIsntConfiguredIsIgnoredWithADiagnosis(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.then(CreateProject{ID: "prj_1", Name: "hello", Settings: ProjectSettings{Branch: "main"}}, "ProjectNameClaimed", "ProjectCreated")
	changes, err := push(1, "aaa").Decide(s.state)
	if err != nil {
		t.Fatal(err)
	}
	ignored := changes[0].Event.(PushIgnored)
	if ignored.Reason != "not-configured" || len(ignored.Diagnosis.Fixes) != 4 {
		t.Errorf("got %+v", ignored)
	}
}

func TestNamesAreUniqueAndSettingsAreChecked(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.project()
	s.refused(CreateProject{ID: "prj_2", Name: "hello", Settings: ProjectSettings{Branch: "main"}}, "NAME_TAKEN")
	s.refused(CreateProject{ID: "prj_2", Name: "Hello World", Settings: ProjectSettings{Branch: "main"}}, "BAD_NAME")
	s.refused(CreateProject{ID: "prj_2", Name: "b", Settings: ProjectSettings{}}, "BAD_SETTING")
	s.refused(CreateProject{ID: "prj_2", Name: "b", Settings: ProjectSettings{Branch: "main", Repository: "https://me:secret@host/x"}}, "SECRET_IN_URL")
	spec := DefaultSpec()
	spec.RootDir = "../.."
	s.refused(ConfigureProject{ID: "prj_1", Specs: map[ServiceID]ServiceSpec{"svc_1": spec}}, "BAD_SETTING")
	spec = DefaultSpec()
	s.then(ConfigureProject{ID: "prj_1", Specs: map[ServiceID]ServiceSpec{"svc_1": spec}})
	spec.Port = 9000
	s.then(ConfigureProject{ID: "prj_1", Specs: map[ServiceID]ServiceSpec{"svc_1": spec}}, "ServiceConfigured")
}

func TestOnlyTheCurrentAttemptInSequenceIsHeard(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.project()
	s.then(push(1, "aaa"), "PushReceived", "RefMoved")
	s.then(RequestBuilds{Push: received(1, "aaa"), IDs: []BuildID{"bld_1"}}, "BuildRequested")
	s.then(ClaimBuild{Build: "bld_1"}, "BuildStarted")
	s.refused(ClaimBuild{Build: "bld_1"}, "NOT_WAITING")
	one, two := NewAttemptID("bld_1", 1), NewAttemptID("bld_1", 2)
	s.then(ReportBuild{one, 1, SourceFetched{}}, "SourceFetched")
	s.then(ReportBuild{one, 1, SourceFetched{}})
	var gap *GapError
	if _, err := s.when(ReportBuild{one, 3, LayerBuilt{}}); !errors.As(err, &gap) || gap.Stored != 1 {
		t.Errorf("got %v, want a gap after 1", err)
	}
	s.refused(ReportBuild{one, 2, ImagePushed{Reference: "reg/elsewhere@d1", Digest: "d1"}}, "WRONG_IMAGE")
	s.then(ReportBuild{one, 2, ImagePushed{Reference: "reg/hello@d1", Digest: "d1"}}, "ImagePushed")
	s.then(LoseBuildAttempt{one, "lease lapsed"}, "AttemptLost")
	s.then(LoseBuildAttempt{one, "lease lapsed"})
	s.then(ClaimBuild{Build: "bld_1"}, "BuildStarted")
	s.refused(ReportBuild{one, 3, LayerBuilt{}}, "STALE")
	s.refused(ReportBuild{two, 1, ImagePushed{Reference: "reg/hello@d2", Digest: "d2"}}, "DIGEST_FIXED")
	s.refused(ReportBuild{two, 1, ImagePushed{Reference: "reg/hello@d1", Digest: "d1"}}, "DIGEST_FIXED")
	s.refused(ReportBuild{two, 1, BuildSucceeded{Digest: "d1"}}, "NOT_PUSHED")
	s.then(ReportBuild{two, 1, ImageTagged{Digest: "d1"}}, "ImageTagged")
	s.then(ReportBuild{two, 2, BuildSucceeded{Digest: "d1"}}, "BuildSucceeded")
}

func TestThreeLostWorkersEndABuildAndARollout(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.project()
	s.deployed(1, s.built(1, "aaa"))
	s.then(push(2, "bbb"), "PushReceived", "RefMoved")
	s.then(RequestBuilds{Push: received(2, "bbb"), IDs: []BuildID{"bld_x"}}, "BuildRequested")
	for n := 1; n <= 3; n++ {
		s.then(ClaimBuild{Build: "bld_x"}, "BuildStarted")
		want := []string{"AttemptLost"}
		if n == 3 {
			want = append(want, "BuildFailed")
		}
		s.then(LoseBuildAttempt{NewAttemptID("bld_x", n), "gone"}, want...)
	}
	b := s.built(3, "ccc")
	s.then(DeployBuild{Project: "prj_1", Build: b, IDs: []DeploymentID{"dep_x"}}, "DeploymentRequested", "DeploymentAdmitted")
	for n := 1; n <= 6; n++ {
		s.then(ClaimDeployment{Deployment: "dep_x", At: s.now}, "DeploymentStarted", "DeploymentClaimed")
		want := []string{"AttemptLost"}
		switch n {
		case 3:
			want = append(want, "DeploymentFailed", "RollbackStarted")
		case 6:
			want = append(want, "RollbackFailed", "DeploymentReleased")
		}
		s.then(LoseDeploymentAttempt{NewAttemptID("dep_x", n), "gone"}, want...)
	}
	if len(s.queue.Works) != 0 {
		t.Errorf("work is left over: %v", s.queue.Works)
	}
}

func TestWorkersThatAreAskedToEndCostNoTry(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.project()
	s.deployed(1, s.built(1, "aaa"))
	s.then(push(2, "bbb"), "PushReceived", "RefMoved")
	s.then(RequestBuilds{Push: received(2, "bbb"), IDs: []BuildID{"bld_x"}}, "BuildRequested")
	b := s.built(3, "ccc")
	s.then(DeployBuild{Project: "prj_1", Build: b, IDs: []DeploymentID{"dep_x"}}, "DeploymentRequested", "DeploymentAdmitted")
	lose := func(n int, stopped bool, build, deployment []string) {
		t.Helper()
		s.then(ClaimBuild{Build: "bld_x"}, "BuildStarted")
		s.then(ReportBuild{NewAttemptID("bld_x", n), 1, AttemptLost{Stopped: stopped}}, append([]string{"AttemptLost"}, build...)...)
		s.then(ClaimDeployment{Deployment: "dep_x", At: s.now}, "DeploymentStarted", "DeploymentClaimed")
		s.then(ReportDeployment{NewAttemptID("dep_x", n), 1, AttemptLost{Stopped: stopped}}, append([]string{"AttemptLost"}, deployment...)...)
	}
	for n := 1; n <= 5; n++ {
		lose(n, true, nil, nil)
	}
	lose(6, false, nil, nil)
	lose(7, true, nil, nil)
	lose(8, false, nil, nil)
	lose(9, false, []string{"BuildFailed"}, []string{"DeploymentFailed", "RollbackStarted"})
}

func TestAFailedRolloutIsRolledBackAndItsReleaseBarred(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.project()
	s.deployed(1, s.built(1, "aaa"))
	bad := s.built(2, "bbb")
	s.then(DeployBuild{Project: "prj_1", Build: bad, IDs: []DeploymentID{"dep_2"}}, "DeploymentRequested", "DeploymentAdmitted")
	s.then(ClaimDeployment{Deployment: "dep_2", At: s.now}, "DeploymentStarted", "DeploymentClaimed")
	a := NewAttemptID("dep_2", 1)
	s.refused(ReportDeployment{a, 1, RolledBack{}}, "NOT_ROLLING_BACK")
	s.then(s.deploy(a, DeploymentFailed{Diagnosis: Diagnosis{Title: "crash", ReleaseAtFault: true}}), "DeploymentFailed", "ReleaseQuarantined", "RollbackStarted")
	s.refused(ReportDeployment{a, 2, DeploymentSucceeded{}}, "ROLLING_BACK")
	s.then(LoseDeploymentAttempt{a, "gone"}, "AttemptLost")
	s.then(ClaimDeployment{Deployment: "dep_2", At: s.now}, "DeploymentStarted", "DeploymentClaimed")
	s.then(s.deploy(NewAttemptID("dep_2", 2), RolledBack{}), "RolledBack", "DeploymentReleased")
	if active := Of[Slot](s.state, SlotStream("env_1", "svc_1")).Active(); active.Release.Commit != "aaa" {
		t.Errorf("active is %+v", active)
	}
	again := RequestDeployment{Project: "prj_1", Environment: "env_1", Service: "svc_1", Deployment: "dep_3", Build: bad}
	s.refused(again, "QUARANTINED")
	s.then(DeployBuild{Project: "prj_1", Build: bad, IDs: []DeploymentID{"dep_barred"}}, "DeploymentRequested", "DeploymentFailed")
	if barred := Of[Deployment](s.state, DeploymentStream("dep_barred")); barred.Phase != Failed || len(s.queue.Works) != 0 {
		t.Errorf("a barred release is %s, and waiting are %v", barred.Phase, s.queue.Works)
	}
	again.Lift = true
	s.then(again, "QuarantineLifted", "DeploymentRequested", "DeploymentAdmitted")
}

func TestOnlyAReleaseThatIsAtFaultIsBarred(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.project()
	s.deployed(1, s.built(1, "aaa"))
	b := s.built(2, "bbb")
	try := func(id DeploymentID, d Diagnosis, want ...string) {
		t.Helper()
		s.then(RequestDeployment{Project: "prj_1", Environment: "env_1", Service: "svc_1", Deployment: id, Build: b}, "DeploymentRequested", "DeploymentAdmitted")
		s.then(ClaimDeployment{Deployment: id, At: s.now}, "DeploymentStarted", "DeploymentClaimed")
		a := NewAttemptID(string(id), 1)
		s.then(s.deploy(a, DeploymentFailed{Diagnosis: d}), want...)
		s.then(s.deploy(a, RolledBack{}), "RolledBack", "DeploymentReleased")
	}
	try("dep_2", Diagnosis{Code: "REGISTRY_RATE_LIMIT"}, "DeploymentFailed", "RollbackStarted")
	try("dep_3", Diagnosis{Code: "APP_CRASHED", ReleaseAtFault: true}, "DeploymentFailed", "ReleaseQuarantined", "RollbackStarted") // waited, and deployed again
	s.refused(RequestDeployment{Project: "prj_1", Environment: "env_1", Service: "svc_1", Deployment: "dep_4", Build: b}, "QUARANTINED")

	serving := RequestDeployment{Project: "prj_1", Environment: "env_1", Service: "svc_1", Deployment: "dep_5", Build: "bld_1"}
	s.then(serving, "DeploymentRequested", "DeploymentAdmitted")
	s.then(ClaimDeployment{Deployment: "dep_5", At: s.now}, "DeploymentStarted", "DeploymentClaimed")
	s.then(s.deploy(NewAttemptID("dep_5", 1), DeploymentFailed{Diagnosis: Diagnosis{ReleaseAtFault: true}}), "DeploymentFailed", "RollbackStarted")
}

func TestAFirstReleaseThatNoWorkerIsLeftForSaysThatItsPodsStay(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.project()
	s.then(DeployBuild{Project: "prj_1", Build: s.built(1, "aaa"), IDs: []DeploymentID{"dep_1"}}, "DeploymentRequested", "DeploymentAdmitted")
	for n := 1; n < 3; n++ {
		s.then(ClaimDeployment{Deployment: "dep_1", At: s.now}, "DeploymentStarted", "DeploymentClaimed")
		s.then(LoseDeploymentAttempt{Attempt: NewAttemptID("dep_1", n), Reason: "gone"}, "AttemptLost")
	}
	dead := FailDeployment{Deployment: "dep_1", Diagnosis: Diagnosis{Code: "DEAD_LETTER"}}
	letter, err := dead.Decide(s.state)
	if err != nil {
		t.Fatal(err)
	}
	s.then(ClaimDeployment{Deployment: "dep_1", At: s.now}, "DeploymentStarted", "DeploymentClaimed")
	lost, err := LoseDeploymentAttempt{Attempt: NewAttemptID("dep_1", 3), Reason: "gone"}.Decide(s.state)
	if err != nil {
		t.Fatal(err)
	}
	for _, changes := range [][]Change{letter, lost[1:]} {
		if len(changes) != 2 || TypeOf(changes[1].Event) != "DeploymentReleased" {
			t.Fatalf("got %+v, want the failure and a free slot", changes)
		}
		if text := changes[0].Event.(DeploymentFailed).Diagnosis.String(); !strings.Contains(text, "kubectl scale deployment/hello -n hello-production-") {
			t.Errorf("nothing is said of the pods:\n%s", text)
		}
	}
}

func TestOneDeploymentAtATimeAndTheNewestWaits(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.project()
	b1, b2, b3 := s.built(1, "aaa"), s.built(2, "bbb"), s.built(3, "ccc")
	s.then(DeployBuild{Project: "prj_1", Build: b1, IDs: []DeploymentID{"dep_1"}}, "DeploymentRequested", "DeploymentAdmitted")
	s.then(ClaimDeployment{Deployment: "dep_1", At: s.now}, "DeploymentStarted", "DeploymentClaimed")
	s.then(DeployBuild{Project: "prj_1", Build: b2, IDs: []DeploymentID{"dep_2"}}, "DeploymentRequested", "DeploymentAdmitted", "DeploymentQueued")
	s.then(DeployBuild{Project: "prj_1", Build: b3, IDs: []DeploymentID{"dep_3"}}, "DeploymentRequested", "DeploymentAdmitted", "DeploymentSuperseded", "DeploymentQueued")
	s.refused(ClaimDeployment{Deployment: "dep_3", At: s.now}, "SLOT_TAKEN")
	if p := s.queue.Plan(map[string]int{"deploy": 5}, s.now, time.Minute); len(p.Publish) != 0 {
		t.Errorf("published %v while the slot is taken", p.Publish)
	}
	s.then(s.deploy(NewAttemptID("dep_1", 1), DeploymentSucceeded{}), "DeploymentSucceeded", "ReleaseActivated", "DeploymentReleased")
	if p := s.queue.Plan(map[string]int{"deploy": 5}, s.now, time.Minute); len(p.Publish) != 1 || p.Publish[0].Subject != "dep_3" {
		t.Errorf("got %v, want dep_3", p.Publish)
	}
	s.then(ClaimDeployment{Deployment: "dep_3", At: s.now}, "DeploymentStarted", "DeploymentClaimed")
	s.then(s.deploy(NewAttemptID("dep_3", 1), DeploymentSucceeded{}), "DeploymentSucceeded", "ReleaseActivated", "DeploymentReleased")
	s.then(RequestDeployment{Project: "prj_1", Environment: "env_1", Service: "svc_1", Deployment: "dep_4", Rollback: true}, "DeploymentRequested", "DeploymentAdmitted")
	if r := Of[Deployment](s.state, DeploymentStream("dep_4")).Request.Release; r.Commit != "aaa" {
		t.Errorf("rolls back to %+v", r)
	}
}

func TestTheQueueIsFairAndReplacesOlderBuilds(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var q Queue
	ask := func(position int64, id BuildID, project ProjectID, ref string) {
		q.Fold(Recorded{Cursor: Cursor{1, position}, Stream: BuildStream(id), RecordedAt: now}, BuildRequested{Build: id, Project: project, Ref: ref, Image: "i"})
	}
	ask(1, "bld_a1", "prj_a", "refs/heads/x")
	ask(2, "bld_a2", "prj_a", "refs/heads/y")
	ask(3, "bld_b1", "prj_b", "refs/heads/x")
	ask(4, "bld_a3", "prj_a", "refs/heads/x")
	p := q.Plan(map[string]int{"build": 2}, now, time.Minute)
	var got []string
	for _, w := range p.Publish {
		got = append(got, w.Subject)
		w.Published = now
	}
	if want := []string{"bld_a2", "bld_b1"}; !reflect.DeepEqual(got, want) {
		t.Errorf("published %v, want %v", got, want)
	}
	if want := []Replaced{{"bld_a1", "bld_a3"}}; !reflect.DeepEqual(p.Supersede, want) {
		t.Errorf("superseded %v, want %v", p.Supersede, want)
	}
	if p := q.Plan(map[string]int{"build": 2}, now, time.Minute); len(p.Publish) != 0 {
		t.Errorf("published %v again at once", p.Publish)
	}
	if p := q.Plan(map[string]int{"build": 3}, now.Add(2*time.Minute), time.Minute); len(p.Publish) != 3 {
		t.Errorf("published %d after the time for sending again, want 3", len(p.Publish))
	}
}

func TestDerivedIDsNeverChange(t *testing.T) {
	t.Parallel()
	if got, want := NewRelease("svc_1", "", "", "reg/hello@sha256:1", 1, ServiceSpec{RootDir: ".", Port: 8080}).ID, ReleaseID("rel_6b322f4a-2778-59f8-ac53-60c8aa8f661f"); got != want {
		t.Errorf("the same image and configuration give release %s, want %s: bars of earlier versions would not hold", got, want)
	}
	if got, want := EventID("command", 0), "d8f9ec9f-9fe4-5076-a02f-c3ef7e04186e"; got != want {
		t.Errorf("EventID gives %s, want %s", got, want)
	}
	if got := Namespace("hello", "production", "env_1"); len(got) > 63 || !strings.HasPrefix(got, "hello-production-") {
		t.Errorf("namespace %s", got)
	}
}

func TestAnOlderPushThatIsBuiltLaterDoesntReplaceANewerOne(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.project()
	ask := func(n int, commit string) BuildID {
		id := BuildID(fmt.Sprint("bld_", n))
		s.then(push(n, commit), "PushReceived", "RefMoved")
		s.then(RequestBuilds{Push: received(n, commit), IDs: []BuildID{id}}, "BuildRequested")
		s.then(ClaimBuild{Build: id}, "BuildStarted")
		return id
	}
	finish := func(id BuildID, digest string) {
		a := NewAttemptID(string(id), 1)
		s.then(s.build(a, ImagePushed{Reference: "reg/hello@" + digest, Digest: digest}), "ImagePushed")
		s.then(s.build(a, ImageTagged{Digest: digest}), "ImageTagged")
		s.then(s.build(a, BuildSucceeded{Digest: digest}), "BuildSucceeded")
	}
	older, newer := ask(1, "aaa"), ask(2, "bbb")
	finish(newer, "d2")
	s.deployed(2, newer)
	finish(older, "d1")
	s.then(DeployBuild{Project: "prj_1", Build: older, IDs: []DeploymentID{"dep_1"}}, "DeploymentRequested", "DeploymentSuperseded")
	slot := Of[Slot](s.state, SlotStream("env_1", "svc_1"))
	if slot.Active().Release.Commit != "bbb" || slot.Waiting != "" || len(s.queue.Works) != 0 {
		t.Errorf("slot is %+v, waiting are %v", slot, s.queue.Works)
	}
	// By hand it may go.
	s.then(RequestDeployment{Project: "prj_1", Environment: "env_1", Service: "svc_1", Deployment: "dep_3", Build: older}, "DeploymentRequested", "DeploymentAdmitted")
}

func TestABegunDeploymentThatCantBeHandedOutIsRolledBack(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.project()
	s.deployed(1, s.built(1, "aaa"))
	s.then(DeployBuild{Project: "prj_1", Build: s.built(2, "bbb"), IDs: []DeploymentID{"dep_2"}}, "DeploymentRequested", "DeploymentAdmitted")
	s.then(ClaimDeployment{Deployment: "dep_2", At: s.now}, "DeploymentStarted", "DeploymentClaimed")
	s.then(LoseDeploymentAttempt{NewAttemptID("dep_2", 1), "gone"}, "AttemptLost")
	s.then(FailDeployment{Deployment: "dep_2", Diagnosis: Diagnosis{Code: "DEAD_LETTER"}}, "DeploymentFailed", "RollbackStarted")
	if p := s.queue.Plan(map[string]int{"deploy": 1}, s.now, time.Minute); len(p.Publish) != 1 || p.Publish[0].Subject != "dep_2" {
		t.Errorf("published %v, want dep_2 for its roll-back", p.Publish)
	}
	s.then(ClaimDeployment{Deployment: "dep_2", At: s.now}, "DeploymentStarted", "DeploymentClaimed")
	s.then(LoseDeploymentAttempt{NewAttemptID("dep_2", 2), "gone"}, "AttemptLost")
	s.then(FailDeployment{Deployment: "dep_2", Diagnosis: Diagnosis{Code: "DEAD_LETTER"}}, "RollbackFailed", "DeploymentReleased")
	if len(s.queue.Works) != 0 {
		t.Errorf("work is left over: %v", s.queue.Works)
	}
}

func TestADeploymentThatEndsInLineLeavesTheSlotToItsHolder(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.project()
	b1, b2 := s.built(1, "aaa"), s.built(2, "bbb")
	s.then(DeployBuild{Project: "prj_1", Build: b1, IDs: []DeploymentID{"dep_1"}}, "DeploymentRequested", "DeploymentAdmitted")
	s.then(ClaimDeployment{Deployment: "dep_1", At: s.now}, "DeploymentStarted", "DeploymentClaimed")
	s.then(DeployBuild{Project: "prj_1", Build: b2, IDs: []DeploymentID{"dep_2"}}, "DeploymentRequested", "DeploymentAdmitted", "DeploymentQueued")
	s.then(FailDeployment{Deployment: "dep_2"}, "DeploymentFailed", "DeploymentReleased")
	s.then(RequestDeployment{Project: "prj_1", Environment: "env_1", Service: "svc_1", Deployment: "dep_3", Build: b2}, "DeploymentRequested", "DeploymentAdmitted", "DeploymentQueued")
	if p := s.queue.Plan(map[string]int{"deploy": 5}, s.now, time.Minute); len(p.Publish) != 0 {
		t.Errorf("published %v while dep_1 has the slot", p.Publish)
	}
}

func TestSettingsHoldNoSecretsAndNothingThatCantWork(t *testing.T) {
	t.Parallel()
	for settings, code := range map[ProjectSettings]string{
		{Branch: "main", Repository: "https://ghp_token@github.com/a/b"}:       "SECRET_IN_URL",
		{Branch: "main", Repository: "https://github.com/a/b?private_token=x"}: "SECRET_IN_URL",
		{Branch: "main", Repository: "ssh://git:secret@host/a/b"}:              "BAD_SETTING",
		{Branch: "main", Repository: "ssh://git@host/a/b"}:                     "BAD_SETTING",
		{Branch: "main", Repository: "git@host:a/b.git"}:                       "BAD_SETTING",
		{Branch: "main", Repository: "http://git.example/a/b"}:                 "BAD_SETTING",
		{Branch: "main", Repository: "http://127.example/a/b"}:                 "BAD_SETTING",
		{Branch: "main", Repository: "ssh://-oProxyCommand=x/a"}:               "BAD_SETTING",
		{Branch: "main", Repository: "git@-oProxyCommand=x:a"}:                 "BAD_SETTING",
		{Branch: "main", Registry: "https://ghcr.io/acme"}:                     "BAD_SETTING",
		{Branch: "main", Registry: "me:secret@ghcr.io/acme"}:                   "BAD_SETTING",
		{Branch: "main", Registry: "ghcr.io/acme/"}:                            "BAD_SETTING",
		{Branch: "ma in"}:                  "BAD_SETTING",
		{Branch: "a..b"}:                   "BAD_SETTING",
		{Branch: "refs/heads/main"}:        "BAD_SETTING",
		{Branch: strings.Repeat("b", 600)}: "BAD_SETTING",
		{Branch: "main", Repository: "https://host/a/b", Registry: "[::1]:5000"}:                   "",
		{Branch: "f/x", Repository: "http://127.0.0.1:3000/a/b", Registry: "localhost:5000/a/b-c"}: "",
	} {
		s := newScenario(t)
		cmd := CreateProject{ID: "prj_1", Name: "hello", Settings: settings}
		if code == "" {
			s.then(cmd, "ProjectNameClaimed", "ProjectCreated")
			continue
		}
		s.refused(cmd, code)
		if _, err := cmd.Decide(s.state); strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "ghp_") {
			t.Errorf("the refusal tells the secret: %v", err)
		}
	}
}

func TestEachGitHostHasACredentialOfItsOwn(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.project()
	s.refused(SetGitCredential{"prj_1"}, "NO_REPOSITORY")
	s.refused(SetGitCredential{"prj_2"}, "NO_PROJECT")
	at := func(repository string) {
		t.Helper()
		s.then(ConfigureProject{ID: "prj_1", Settings: &ProjectSettings{Repository: repository, Branch: "main"}}, "ProjectConfigured")
		s.then(SetGitCredential{"prj_1"}, "SecretSet")
	}
	at("https://GitHub.com/acme/shop.git")
	at("https://github.com/acme/other.git")
	at("https://git.example:8443/acme/shop")
	want := map[string]int{"git-credential/github.com": 2, "git-credential/git.example:8443": 1}
	if got := Of[Project](s.state, ProjectStream("prj_1")).Secrets; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestServiceSettingsThatNoPushCouldUseAreRefusedByName(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*ServiceSpec)
		field  string
	}{
		"text for memory":     {func(s *ServiceSpec) { s.MemoryLimit = "abc" }, "memoryLimit"},
		"unknown unit":        {func(s *ServiceSpec) { s.MemoryRequest = "64MB" }, "memoryRequest"},
		"words for CPU":       {func(s *ServiceSpec) { s.CPURequest = "half" }, "cpuRequest"},
		"below nothing":       {func(s *ServiceSpec) { s.CPULimit = "-1" }, "cpuLimit"},
		"no memory":           {func(s *ServiceSpec) { s.MemoryLimit = "0" }, "memoryLimit"},
		"limit below request": {func(s *ServiceSpec) { s.MemoryLimit = "32Mi" }, "memoryLimit"},
		"digit first":         {func(s *ServiceSpec) { s.Variables = map[string]string{"1ST": "x"} }, "variables"},
		"space in a name":     {func(s *ServiceSpec) { s.Variables = map[string]string{"LOG LEVEL": "x"} }, "variables"},
		"odd build arg":       {func(s *ServiceSpec) { s.BuildArgs = map[string]string{"A-B": "x"} }, "buildArgs"},
		"fine":                {func(s *ServiceSpec) { s.CPULimit, s.MemoryLimit = "0.5", "1Gi" }, ""},
		"fine without":        {func(s *ServiceSpec) { s.CPURequest, s.MemoryRequest = "", "" }, ""},
	} {
		spec := DefaultSpec()
		c.change(&spec)
		problems := spec.Check()
		if c.field == "" && len(problems) == 0 {
			continue
		}
		if len(problems) != 1 || problems[0].Field != c.field || problems[0].Fix == "" {
			t.Errorf("%s: got %v, want one about %s", name, problems, c.field)
		}
	}
}

func TestWhatIsConfiguredFitsIntoWhatFollowsFromIt(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.project()
	large := DefaultSpec()
	large.Variables = map[string]string{"A": strings.Repeat("x", 40<<10)}
	s.refused(ConfigureProject{ID: "prj_1", Specs: map[ServiceID]ServiceSpec{"svc_1": large}}, "BAD_SETTING")
	many := ConfigureProject{ID: "prj_1"}
	for i := range 32 {
		many.Services = append(many.Services, NewService{ServiceID(fmt.Sprint("svc_m", i)), fmt.Sprint("m", i), DefaultSpec()})
	}
	s.refused(many, "TOO_MANY")
	many.Services = many.Services[:15]
	for i := range 8 {
		many.Environments = append(many.Environments, NewEnvironment{EnvironmentID(fmt.Sprint("env_m", i)), fmt.Sprint("e", i), "other"})
	}
	s.refused(many, "TOO_MANY")
	many.Environments = many.Environments[:7]
	if _, err := s.when(many); err != nil {
		t.Fatal(err)
	}
	if p := Of[Project](s.state, ProjectStream("prj_1")); len(p.Services) != 16 || len(p.Environments) != 8 {
		t.Errorf("%d services, %d environments; a decision must leave the state alone", len(p.Services), len(p.Environments))
	}
	s.refused(RequestBuilds{Push: received(1, "aaa")}, "TOO_MANY") // not an error that would hold up the policies
}

func TestAnyDateOfACommitCanBeReadAgain(t *testing.T) {
	t.Parallel()
	for _, seconds := range []int64{0, -1 << 40, 1 << 40, 253402300800, 1 << 55} {
		e := PushReceived{Timestamp: At(time.Unix(seconds, 0))}
		body, err := Encode(e, "id", fakeSeal)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode("PushReceived", 1, body); err != nil {
			t.Errorf("%d: %v", seconds, err)
		}
	}
}

func TestNoVariablesAreTheSameAsEmptyOnes(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.project()
	spec := DefaultSpec()
	spec.Variables, spec.Command = map[string]string{}, []string{}
	s.then(ConfigureProject{ID: "prj_1", Specs: map[ServiceID]ServiceSpec{"svc_1": spec}})
}
