package domain

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// history is a log as the store would keep it: what commands decide, with ids and times that are the same each time.
type history struct {
	t        failer
	state    State
	events   []Happened
	versions map[Stream]int64
	sequence map[AttemptID]int64
	now      time.Time
	commands int
}

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

func newHistory(t failer) *history {
	return &history{t: t, state: State{}, versions: map[Stream]int64{}, sequence: map[AttemptID]int64{}, now: time.Date(2026, 11, 24, 2, 0, 0, 0, time.UTC)}
}

// do lets an actor want something, and what follows from it by policy.
func (h *history) do(actor string, cmd Command) (decided []Happened) {
	h.t.Helper()
	changes, err := cmd.Decide(h.state)
	if err != nil {
		h.t.Fatalf("%T: %v", cmd, err)
	}
	h.commands++
	h.now = h.now.Add(10 * time.Second)
	id := Derive("command", strconv.Itoa(h.commands))
	var sequence int64
	var attempt AttemptID
	switch c := cmd.(type) {
	case ReportBuild:
		sequence, attempt = c.Sequence, c.Attempt
	case ReportDeployment:
		sequence, attempt = c.Sequence, c.Attempt
	}
	for i, c := range changes {
		if err := h.state.Fold(c.Stream, c.Event, sequence); err != nil {
			h.t.Fatalf("%v", err)
		}
		h.versions[c.Stream]++
		decided = append(decided, Happened{Recorded{
			Cursor: Cursor{1, int64(len(h.events) + i + 1)}, ID: EventID(id, i), Stream: c.Stream, Version: h.versions[c.Stream],
			ProjectID: "prj_1", Type: TypeOf(c.Event), SchemaVersion: 1, OccurredAt: h.now, RecordedAt: h.now, Actor: actor,
			CorrelationID: id, Attempt: attempt, AttemptSeq: sequence,
		}, c.Event})
	}
	h.events = append(h.events, decided...)
	return decided
}

func (h *history) project() {
	h.t.Helper()
	h.do("token:tok_ada", CreateProject{
		ID: "prj_1", Name: "shop", Settings: ProjectSettings{Branch: "main", Registry: "reg"},
		Services: []NewService{{"svc_1", "shop", DefaultSpec()}}, Environments: []NewEnvironment{{"env_1", "production", ""}},
	})
}

// push lets one arrive; its build is asked for.
func (h *history) push(n int) {
	h.t.Helper()
	person := Personal{Text: "Ada", Subject: "sub_1"}
	received := h.do("github:5f3", ReceivePush{
		Push: PushID(fmt.Sprint("psh_", n)), Project: "prj_1", Source: "github", Delivery: fmt.Sprint("d-", n), Kind: "push", Ref: "refs/heads/main",
		Commit: strings.Repeat(strconv.Itoa(n), 40), Body: fmt.Sprint("body", n), Pusher: person, Author: person,
		Message: Personal{Text: fmt.Sprintf("change %d\n\nat length", n), Subject: "sub_1"},
	})
	h.do("policy", RequestBuilds{Push: received[0].Event.(PushReceived), IDs: []BuildID{BuildID(fmt.Sprint("bld_", n))}})
}

func (h *history) report(a AttemptID, item Event) {
	h.t.Helper()
	h.sequence[a]++
	if a.Stream().Kind() == "build" {
		h.do("wrk_build", ReportBuild{Attempt: a, Sequence: h.sequence[a], Item: item})
	} else {
		h.do("wrk_deploy", ReportDeployment{Attempt: a, Sequence: h.sequence[a], Item: item})
	}
}

// build makes the image, and its deployment is asked for.
func (h *history) build(n int) {
	h.t.Helper()
	id := BuildID(fmt.Sprint("bld_", n))
	digest := fmt.Sprintf("sha256:%064d", n)
	h.do("wrk_build", ClaimBuild{Build: id, Worker: "wrk_build", Incarnation: "i"})
	a := Of[Build](h.state, BuildStream(id)).Attempt()
	h.report(a, LayerBuilt{Name: "[1/1] RUN make"})
	h.report(a, ImagePushed{Reference: "reg/shop@" + digest, Digest: digest})
	h.report(a, ImageTagged{Reference: "reg/shop:" + strconv.Itoa(n), Digest: digest})
	h.report(a, BuildSucceeded{Digest: digest, Duration: 61_500})
	h.do("policy", DeployBuild{Project: "prj_1", Build: id, IDs: []DeploymentID{DeploymentID(fmt.Sprint("dep_", n))}})
}

func (h *history) deploy(id DeploymentID, verdict ...Event) {
	h.t.Helper()
	h.do("wrk_deploy", ClaimDeployment{Deployment: id, Worker: "wrk_deploy", Incarnation: "i", At: h.now})
	a := Of[Deployment](h.state, DeploymentStream(id)).Attempt()
	for _, e := range verdict {
		h.report(a, e)
	}
}

var live = DeploymentSucceeded{Available: 2, Address: "shop.shop-production-1.svc:80", Duration: 12_300}

func (h *history) explain() Why {
	w := Explain("env_1", "svc_1", h.events)
	w.AsOf = h.events[len(h.events)-1].Recorded.Cursor
	return w
}

// seeded is a night: three pushes are superseded, the one after them fails and is rolled back by itself.
func seeded(t failer) *history {
	h := newHistory(t)
	h.project()
	h.push(1)
	h.build(1)
	h.deploy("dep_1", live)
	spec := DefaultSpec()
	spec.Replicas, spec.Port = 2, 9000
	h.do("token:0192f7a1-5bd2-7a4e-8e32-5ad2c0ffee42", ConfigureProject{ID: "prj_1", Specs: map[ServiceID]ServiceSpec{"svc_1": spec}})
	for n := 2; n <= 5; n++ {
		h.push(n)
	}
	for n := 2; n <= 4; n++ {
		h.do("scheduler", SupersedeBuild{Build: BuildID(fmt.Sprint("bld_", n)), By: "bld_5"})
	}
	h.do("wrk_build", ClaimBuild{Build: "bld_5", Worker: "wrk_build", Incarnation: "i"})
	h.do("scheduler", LoseBuildAttempt{Attempt: "bld_5.1", Reason: "no heartbeat for 15 s"})
	h.build(5)
	h.deploy("dep_5", DeploymentFailed{Diagnosis: Diagnosis{
		Code: "CRASH_LOOP", Title: "Deployment failed: CrashLoopBackOff", Step: "rollout", Error: "back-off restarting failed container",
		Reason: "the program ends with exit code 1 right after its start", Fixes: []string{"Look at its output"}, Run: "pipeops logs bld_5", ReleaseAtFault: true,
	}}, RolledBack{To: "rel_1", Available: 2, Duration: 4200})
	return h
}

func golden(t *testing.T, name string, w Why) {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(w); err != nil {
		t.Fatal(err)
	}
	for ext, got := range map[string]string{".json": b.String(), ".txt": w.Text(time.UTC)} {
		file := filepath.Join("testdata", "why", name+ext)
		if *update {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { //nolint:gosec // as all of the repository
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil { //nolint:gosec // as all of the repository
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got; -update writes it):\n%s", file, diff)
		}
	}
}

func TestWhatServesAfterThreeSupersededPushesAndARollbackIsExplained(t *testing.T) {
	t.Parallel()
	h := seeded(t)
	golden(t, "rolled-back", h.explain())
	h.do("token:tok_bob", RequestDeployment{
		Project: "prj_1", Environment: "env_1", Service: "svc_1", Deployment: "dep_6", Build: "bld_5", Lift: true, Reason: "manual",
	})
	h.do("wrk_deploy", ClaimDeployment{Deployment: "dep_6", Worker: "wrk_deploy", Incarnation: "i", At: h.now})
	h.do("scheduler", LoseDeploymentAttempt{Attempt: "dep_6.1", Reason: "no heartbeat for 15 s"})
	h.deploy("dep_6", live)
	golden(t, "lifted-by-hand", h.explain())
	h.do("token:tok_ada", RequestDeployment{
		Project: "prj_1", Environment: "env_1", Service: "svc_1", Deployment: "dep_7", Rollback: true, Reason: "rollback",
	})
	h.deploy("dep_7", live)
	h.push(8)
	for i, e := range h.events {
		if p, ok := e.Event.(PushReceived); ok && p.Push == "psh_1" { // her key is gone
			p.Pusher, p.Author, p.Message = erased, erased, erased
			h.events[i].Event = p
		}
	}
	golden(t, "rolled-back-by-hand", h.explain())
}

var erased = Personal{Subject: "sub_1", sealed: "AAAA"}

func TestNothingServesBeforeTheFirstDeployment(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.project()
	h.push(1)
	golden(t, "nothing-yet", h.explain())
	if w := Explain("env_1", "svc_1", nil); w.Release != nil || len(w.Steps)+len(w.Beside) > 0 {
		t.Errorf("of nothing: got %+v", w)
	}
}

// sound checks what every explanation must keep.
func sound(t failer, log []Happened, w Why) {
	t.Helper()
	recorded := map[string]Happened{}
	for _, h := range log {
		recorded[h.Recorded.ID] = h
	}
	lists := [][]Link{w.Steps}
	for _, a := range w.Beside {
		lists = append(lists, a.Steps)
		if a.Text == "" || a.Outcome == "" || a.Commit == "" || len(a.Steps) == 0 {
			t.Fatalf("beside: %+v says too little", a)
		}
	}
	for _, links := range lists {
		at := map[string]Link{}
		for i, l := range links {
			h, there := recorded[l.Event]
			if !there || h.Recorded.Cursor != l.Cursor || h.Recorded.Type != l.Type || l.Text == "" || l.Who == "" {
				t.Fatalf("%+v isn't what stands in the log: %+v", l, h.Recorded)
			}
			if i > 0 && links[i-1].Cursor.Position <= l.Cursor.Position {
				t.Fatalf("%s comes after %s", l.Cursor, links[i-1].Cursor)
			}
			at[l.Event] = l
		}
		for _, l := range links {
			for l.Because != "" {
				cause, there := at[l.Because]
				if !there {
					if _, there = recorded[l.Because]; there {
						break // the image of what was deployed by hand is told elsewhere
					}
					t.Fatalf("%s %s: its cause %s isn't told", l.Cursor, l.Type, l.Because)
				}
				if cause.Cursor.Position >= l.Cursor.Position {
					t.Fatalf("%s %s is because of %s %s, which came later", l.Cursor, l.Type, cause.Cursor, cause.Type)
				}
				l = cause
			}
		}
	}
	if (w.Release == nil) != (len(w.Steps) == 0) {
		t.Fatalf("%v serves, told in %d steps", w.Release, len(w.Steps))
	}
	if len(w.Steps) > 0 {
		last := w.Steps[0]
		for last.Because != "" {
			last = w.Steps[slices.IndexFunc(w.Steps, func(l Link) bool { return l.Event == last.Because })]
		}
		if last.Type != "PushReceived" {
			t.Fatalf("the chain ends in %s", last.Type)
		}
	}
}

func TestEveryExplanationIsMadeOfTheLogAndEndsInItsFirstCause(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		h.project()
		var builds []BuildID
		var deployments []DeploymentID
		try := func(actor string, cmd Command) {
			if _, err := cmd.Decide(h.state); err == nil {
				h.do(actor, cmd)
			}
		}
		for n := 1; n <= rapid.IntRange(1, 40).Draw(t, "things"); n++ {
			build, deployment := BuildID("bld_0"), DeploymentID("dep_0")
			if len(builds) > 0 {
				build = rapid.SampledFrom(builds).Draw(t, "build")
			}
			if len(deployments) > 0 {
				deployment = rapid.SampledFrom(deployments).Draw(t, "deployment")
			}
			b, d := Of[Build](h.state, BuildStream(build)), Of[Deployment](h.state, DeploymentStream(deployment))
			next := DeploymentID(fmt.Sprint("dep_", n, "x"))
			switch rapid.SampledFrom([]string{"push", "build", "build", "claim", "verdict", "verdict", "lose", "supersede", "byhand", "rollback", "configure"}).Draw(t, "what") {
			case "push":
				h.push(n)
				builds = append(builds, BuildID(fmt.Sprint("bld_", n)))
			case "build":
				if b.Phase == Waiting {
					var i int
					_, _ = fmt.Sscanf(string(build), "bld_%d", &i)
					h.build(i)
					deployments = append(deployments, DeploymentID(fmt.Sprint("dep_", i)))
				}
			case "claim":
				try("wrk_deploy", ClaimDeployment{Deployment: deployment, Worker: "wrk_deploy", Incarnation: "i", At: h.now})
			case "verdict":
				if d.Running {
					item := rapid.SampledFrom([]Event{live, live, DeploymentFailed{Diagnosis: Diagnosis{Title: "it broke", ReleaseAtFault: true}}, RolledBack{Available: 1}, RollbackFailed{}}).Draw(t, "verdict")
					try("wrk_deploy", ReportDeployment{Attempt: d.Attempt(), Sequence: d.Sequence + 1, Item: item})
				}
			case "lose":
				if d.Running {
					try("scheduler", LoseDeploymentAttempt{Attempt: d.Attempt(), Reason: "gone"})
				}
			case "supersede":
				try("scheduler", SupersedeBuild{Build: build, By: builds0(builds)})
			case "byhand":
				try("token:t", RequestDeployment{Project: "prj_1", Environment: "env_1", Service: "svc_1", Deployment: next, Build: build, Lift: true, Reason: "manual"})
				deployments = append(deployments, next)
			case "rollback":
				try("token:t", RequestDeployment{Project: "prj_1", Environment: "env_1", Service: "svc_1", Deployment: next, Rollback: true, Lift: true, Reason: "rollback"})
				deployments = append(deployments, next)
			case "configure":
				spec := DefaultSpec()
				spec.Replicas = rapid.IntRange(1, 5).Draw(t, "replicas")
				try("token:t", ConfigureProject{ID: "prj_1", Specs: map[ServiceID]ServiceSpec{"svc_1": spec}})
			}
			w := h.explain()
			sound(t, h.events, w)
			_ = w.Text(time.UTC)
			active := Of[Slot](h.state, SlotStream("env_1", "svc_1")).Active()
			if (active == nil) != (w.Release == nil) || active != nil && active.Release != *w.Release {
				t.Fatalf("%+v serves, explained is %+v", active, w.Release)
			}
		}
	})
}

func builds0(builds []BuildID) BuildID {
	if len(builds) == 0 {
		return "bld_0"
	}
	return builds[len(builds)-1]
}
