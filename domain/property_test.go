package domain

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// eventsOf lists empty events of all types that may stand in a kind of stream.
func eventsOf(t *testing.T, stream Stream) (out []Event) {
	t.Helper()
	for _, name := range Types() {
		e := sample(t, name)
		if (State{}).Fold(stream, e, 0) == nil {
			out = append(out, e)
		}
	}
	return out
}

func TestEvolveTakesAnyOrderOfEvents(t *testing.T) {
	t.Parallel()
	for _, stream := range []Stream{
		ProjectStream("p"), ProjectNameStream("n"), PushStream("p", "git", "1"), RefStream("p", "r"), BuildStream("bld_1"),
		SlotStream("e", "s"), DeploymentStream("dep_1"), WorkerStream("w"), OperationStream(time.Time{}),
	} {
		events := eventsOf(t, stream)
		if len(events) == 0 {
			t.Fatalf("nothing may stand in %s", stream)
		}
		t.Run(stream.Kind(), rapid.MakeCheck(func(t *rapid.T) {
			state, queue := State{}, Queue{}
			for i, e := range rapid.SliceOfN(rapid.SampledFrom(events), 0, 30).Draw(t, "events") {
				if err := state.Fold(stream, e, rapid.Int64Range(0, 5).Draw(t, "sequence")); err != nil {
					t.Fatal(err)
				}
				queue.Fold(Recorded{Cursor: Cursor{1, int64(i + 1)}, Stream: stream}, e)
				queue.Plan(map[string]int{"build": 1, "deploy": 1}, time.Time{}, time.Minute)
			}
		}))
	}
}

// system is a control plane whose clock, workers and people do as they are drawn.
type system struct {
	*scenario

	t           *rapid.T
	builds      []BuildID
	deployments []DeploymentID
	attempts    []AttemptID
	next        map[AttemptID]int64
	published   map[string]time.Time
	n           int
}

const republish = 20 * time.Second

// try decides a command; a refusal or a gap is fine, any other error isn't.
func (s *system) try(cmd Command) []string {
	s.t.Helper()
	types, err := s.when(cmd)
	if _, refused := errors.AsType[*Refusal](err); refused {
		return nil
	}
	if _, gap := errors.AsType[*GapError](err); err != nil && !gap {
		s.t.Fatalf("%T: %v", cmd, err)
	}
	return types
}

func (s *system) push() {
	s.n++
	n := s.n
	commit := fmt.Sprint("c", n)
	s.try(push(n, commit))
	id := BuildID(fmt.Sprint("bld_", n))
	s.builds = append(s.builds, id)
	s.try(RequestBuilds{Push: received(n, commit), IDs: []BuildID{id}})
}

func (s *system) deployBuilt() {
	for _, id := range s.builds {
		if Of[Build](s.state, BuildStream(id)).Phase == Succeeded && rapid.Bool().Draw(s.t, "deploy") {
			s.n++
			d := DeploymentID(fmt.Sprint("dep_", s.n))
			s.try(DeployBuild{Project: "prj_1", Build: id, IDs: []DeploymentID{d}})
			s.deployments = append(s.deployments, d)
		}
	}
}

func (s *system) byHand() {
	s.n++
	d := DeploymentID(fmt.Sprint("dep_", s.n))
	s.try(RequestDeployment{
		Project: "prj_1", Environment: "env_1", Service: "svc_1", Deployment: d,
		Rollback: true, Lift: rapid.Bool().Draw(s.t, "lift"),
	})
	s.deployments = append(s.deployments, d)
}

// schedule publishes what the queue plans, and holds it against what was published before.
func (s *system) schedule() {
	free := map[string]int{"build": rapid.IntRange(-1, 3).Draw(s.t, "build slots"), "deploy": rapid.IntRange(-1, 3).Draw(s.t, "deploy slots")}
	underway := map[string]int{}
	for subject, at := range s.published {
		if w := s.queue.Works[subject]; w != nil && w.Attempt == "" && !w.Published.IsZero() && s.now.Sub(at) < republish {
			underway[w.Class]++
		}
	}
	plan := s.queue.Plan(free, s.now, republish)
	sent := map[string]int{}
	for _, w := range plan.Publish {
		if at, before := s.published[w.Subject]; before && w.Published.Equal(at) && s.now.Sub(at) < republish {
			s.t.Fatalf("%s was published %v ago", w.Subject, s.now.Sub(at))
		}
		sent[w.Class]++
		w.Published, s.published[w.Subject] = s.now, s.now
	}
	for class, n := range sent {
		if n+underway[class] > max(0, free[class]) {
			s.t.Fatalf("%d %s jobs published and %d under way for %d free slots", n, class, underway[class], free[class])
		}
	}
	for _, r := range plan.Supersede {
		s.try(SupersedeBuild(r))
	}
}

func (s *system) claim() {
	for _, subject := range sortedKeys(s.queue.Works) {
		w := s.queue.Works[subject]
		if w.Attempt != "" || !rapid.Bool().Draw(s.t, "claim") {
			continue
		}
		if w.Class == "build" {
			s.try(ClaimBuild{Build: BuildID(subject), Worker: "w", Incarnation: "i"})
		} else {
			s.try(ClaimDeployment{Deployment: DeploymentID(subject), Worker: "w", Incarnation: "i", At: s.now})
		}
		if w := s.queue.Works[subject]; w != nil && w.Attempt != "" && !slices.Contains(s.attempts, w.Attempt) {
			s.attempts = append(s.attempts, w.Attempt)
		}
	}
}

// report brings an item of any attempt that ever was; only the current one's may change anything.
func (s *system) report() {
	if len(s.attempts) == 0 {
		return
	}
	a := rapid.SampledFrom(s.attempts).Draw(s.t, "attempt")
	subject, _, _ := a.Split()
	sequence := s.next[a] + rapid.SampledFrom([]int64{1, 1, 1, 1, 0, 2}).Draw(s.t, "ahead")
	digest := "sha256:" + subject
	var cmd Command
	var current bool
	if a.Stream().Kind() == "build" {
		item := rapid.SampledFrom([]Event{
			SourceFetched{},
			LayerBuilt{},
			ImagePushed{Reference: "reg/hello@" + digest, Digest: digest},
			ImageTagged{Digest: digest},
			WorkspaceRemoved{},
			BuildSucceeded{Digest: digest},
			BuildFailed{},
			AttemptLost{Reason: "x"},
			AttemptLost{Reason: "x", Stopped: true},
		}).Draw(s.t, "item")
		b := Of[Build](s.state, a.Stream())
		current = b.Running && b.Attempt() == a
		cmd = ReportBuild{a, sequence, item}
	} else {
		item := rapid.SampledFrom([]Event{
			ManifestsApplied{}, RolloutProgressed{}, DeploymentSucceeded{}, DeploymentFailed{}, RolledBack{}, RollbackFailed{}, AttemptLost{}, AttemptLost{Stopped: true},
		}).Draw(s.t, "item")
		d := Of[Deployment](s.state, a.Stream())
		current = d.Running && d.Attempt() == a
		cmd = ReportDeployment{a, sequence, item}
	}
	types := s.try(cmd)
	if !current && len(types) > 0 {
		s.t.Fatalf("%s isn't the current attempt, and its report led to %v", a, types)
	}
	if len(types) > 0 {
		s.next[a] = max(s.next[a], sequence)
	}
}

// finish takes a running or waiting build to its end.
func (s *system) finish() {
	if len(s.builds) == 0 {
		return
	}
	id := rapid.SampledFrom(s.builds).Draw(s.t, "build")
	s.try(ClaimBuild{Build: id, Worker: "w", Incarnation: "i"})
	b := Of[Build](s.state, BuildStream(id))
	if !b.Running {
		return
	}
	a, digest := b.Attempt(), "sha256:"+string(id)
	if !slices.Contains(s.attempts, a) {
		s.attempts = append(s.attempts, a)
	}
	for _, item := range []Event{ImagePushed{Reference: "reg/hello@" + digest, Digest: digest}, ImageTagged{Digest: digest}, BuildSucceeded{Digest: digest}} {
		if len(s.try(ReportBuild{a, s.next[a] + 1, item})) > 0 {
			s.next[a]++
		}
	}
	s.deployBuilt()
}

// verdict lets who has the slot, or is next, succeed or fail.
func (s *system) verdict() {
	slot := Of[Slot](s.state, SlotStream("env_1", "svc_1"))
	id := slot.Holder
	if id == "" {
		id = slot.Waiting
	}
	if id == "" {
		return
	}
	s.try(ClaimDeployment{Deployment: id, Worker: "w", Incarnation: "i", At: s.now})
	a := Of[Deployment](s.state, DeploymentStream(id)).Attempt()
	if !slices.Contains(s.attempts, a) {
		s.attempts = append(s.attempts, a)
	}
	item := rapid.SampledFrom([]Event{
		DeploymentSucceeded{}, DeploymentSucceeded{}, DeploymentFailed{}, DeploymentFailed{Diagnosis: Diagnosis{ReleaseAtFault: true}}, RolledBack{}, RollbackFailed{},
	}).Draw(s.t, "verdict")
	if len(s.try(ReportDeployment{a, s.next[a] + 1, item})) > 0 {
		s.next[a]++
	}
}

func (s *system) lose() {
	if len(s.attempts) == 0 {
		return
	}
	a := rapid.SampledFrom(s.attempts).Draw(s.t, "attempt")
	if a.Stream().Kind() == "build" {
		s.try(LoseBuildAttempt{a, "gone"})
	} else {
		s.try(LoseDeploymentAttempt{a, "gone"})
	}
}

func (s *system) fail() {
	if works := sortedKeys(s.queue.Works); len(works) > 0 {
		subject := rapid.SampledFrom(works).Draw(s.t, "subject")
		s.try(FailBuild{Build: BuildID(subject)})
		s.try(FailDeployment{Deployment: DeploymentID(subject)})
	}
}

// check holds what must be true at any time.
func (s *system) check() {
	slot := Of[Slot](s.state, SlotStream("env_1", "svc_1"))
	for _, id := range s.deployments {
		d := Of[Deployment](s.state, DeploymentStream(id))
		if (d.Phase.Final() || d.Phase == "") && (slot.Holder == id || slot.Waiting == id) {
			s.t.Fatalf("%s is %s and has the slot: %+v", id, d.Phase, slot)
		}
		if d.Running && slot.Holder != id {
			s.t.Fatalf("%s runs without the slot, which %s has", id, slot.Holder)
		}
		if open := s.queue.Works[string(id)] != nil; open != (d.Phase != "" && !d.Phase.Final()) {
			s.t.Fatalf("%s is %s; in the queue: %v", id, d.Phase, open)
		}
		if d.Phase == Waiting && slot.Holder != id && slot.Waiting != id {
			s.t.Fatalf("%s waits, and the slot doesn't know: %+v", id, slot)
		}
	}
	if a := slot.Active(); a != nil {
		if _, barred := slot.Quarantined[a.Release.ID]; barred {
			s.t.Fatalf("%s serves and is barred", a.Release.ID)
		}
	}
	if holder := s.queue.slots[SlotStream("env_1", "svc_1")].holder; holder != slot.Holder {
		s.t.Fatalf("the queue takes %q for the holder, the slot %q", holder, slot.Holder)
	}
	for _, id := range s.builds {
		b := Of[Build](s.state, BuildStream(id))
		if open := s.queue.Works[string(id)] != nil; open != !b.Phase.Final() {
			s.t.Fatalf("%s is %s; in the queue: %v", id, b.Phase, open)
		}
	}
}

// checkBegin folds the log anew up to each position, from where the queue says that this can begin.
func (s *system) checkBegin() {
	var whole Queue
	for folded, r := range s.log {
		whole.Fold(r, s.told[folded])
		begin := int(whole.Begin(r.Cursor.Position))
		var part Queue
		for i := begin; i <= folded; i++ {
			part.Fold(s.log[i], s.told[i])
		}
		same := func(a, b *Work) bool { return *a == *b }
		if !maps.EqualFunc(part.Works, whole.Works, same) || !maps.Equal(part.slots, whole.slots) {
			s.t.Fatalf("at %d, folded from %d on: %v, slots %v; not %v, %v", folded+1, begin, part.Works, part.slots, whole.Works, whole.slots)
		}
	}
	if begin := int(whole.Begin(int64(len(s.log)))); begin != len(s.log) {
		s.t.Fatalf("all work is over, and a fold begins after %d of %d", begin, len(s.log))
	}
}

// settle lets every worker be lost until nothing is left to do.
func (s *system) settle() {
	for range 10_000 {
		works := sortedKeys(s.queue.Works)
		if len(works) == 0 {
			return
		}
		s.now = s.now.Add(republish)
		for _, w := range s.queue.Plan(map[string]int{"build": 10, "deploy": 10}, s.now, republish).Publish {
			if w.Class == "build" {
				s.try(ClaimBuild{Build: BuildID(w.Subject)})
			} else {
				s.try(ClaimDeployment{Deployment: DeploymentID(w.Subject), At: s.now})
			}
		}
		for _, subject := range works {
			if w := s.queue.Works[subject]; w != nil && w.Attempt != "" {
				s.try(LoseBuildAttempt{w.Attempt, "gone"})
				s.try(LoseDeploymentAttempt{w.Attempt, "gone"})
			}
		}
		for _, r := range s.queue.Plan(nil, s.now, republish).Supersede {
			s.try(SupersedeBuild(r))
		}
	}
	s.t.Fatalf("work never ends: %v", s.queue.Works)
}

func TestWhateverHappensWorkEndsOnceAndTheSlotIsFree(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := &system{scenario: newScenario(t), t: rt, next: map[AttemptID]int64{}, published: map[string]time.Time{}}
		s.project()
		rt.Repeat(map[string]func(*rapid.T){
			"":         func(*rapid.T) { s.check() },
			"push":     func(*rapid.T) { s.push() },
			"deploy":   func(*rapid.T) { s.deployBuilt() },
			"finish":   func(*rapid.T) { s.finish() },
			"finish 2": func(*rapid.T) { s.finish() },
			"verdict":  func(*rapid.T) { s.verdict() },
			"by hand":  func(*rapid.T) { s.byHand() },
			"schedule": func(*rapid.T) { s.schedule() },
			"claim":    func(*rapid.T) { s.claim() },
			"report":   func(*rapid.T) { s.report() },
			"report 2": func(*rapid.T) { s.report() },
			"report 3": func(*rapid.T) { s.report() },
			"lose":     func(*rapid.T) { s.lose() },
			"fail":     func(*rapid.T) { s.fail() },
			"time":     func(*rapid.T) { s.now = s.now.Add(7 * time.Second) },
		})
		s.settle()
		s.check()
		if slot := Of[Slot](s.state, SlotStream("env_1", "svc_1")); slot.Holder != "" || slot.Waiting != "" {
			rt.Fatalf("all work is over, and the slot isn't free: %+v", slot)
		}
		s.checkBegin()
		pushed := map[Stream]int{}
		for _, r := range s.log {
			if r.Type == reflect.TypeFor[ImagePushed]().Name() {
				if pushed[r.Stream]++; pushed[r.Stream] > 1 {
					rt.Fatalf("%s has two images", r.Stream)
				}
			}
		}
	})
}

// Whichever deliveries come late, in whatever order, the ref stays where the newest push in time has put it. Two in a
// row may be late, three can't be told apart.
func TestLateDeliveriesNeverMoveARefBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := newScenario(t)
		s.project()
		ref := func() *Ref { return Of[Ref](s.state, RefStream("prj_1", "refs/heads/main")) }
		head, row := "", 0
		var late []ReceivePush
		for n := range rapid.IntRange(2, 40).Draw(rt, "pushes") {
			p := from(n, head, fmt.Sprint("c", n))
			head = p.Commit
			if n > 0 && row < 2 && rapid.Bool().Draw(rt, "late") {
				late, row = append(late, p), row+1
				continue
			}
			row = 0
			s.then(p, "PushReceived", "RefMoved")
			for len(late) > 0 && rapid.Bool().Draw(rt, "redelivered") {
				i := rapid.IntRange(0, len(late)-1).Draw(rt, "which")
				s.then(late[i], "PushIgnored")
				late = slices.Delete(late, i, i+1)
			}
			if ref().Head != head {
				rt.Fatalf("the ref stands at %s instead of %s", ref().Head, head)
			}
		}
	})
}

// A walk in order is accepted as it is, wherever it goes and however often it comes back.
func TestPushesInOrderAreNeverTakenForLateOnes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := newScenario(t)
		s.project()
		head := ""
		for n, c := range rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 1, 40).Draw(rt, "commits") {
			if c == head {
				continue
			}
			s.then(from(n, head, c), "PushReceived", "RefMoved")
			head = c
		}
	})
}

func TestARefRemembersBoundedly(t *testing.T) {
	t.Parallel()
	var r Ref
	for n := range 3 * keptCommits {
		r.Evolve(RefMoved{Before: fmt.Sprint("b", n), After: fmt.Sprint("a", n)})
	}
	if len(r.left) != keptCommits || len(r.missed) != keptCommits {
		t.Errorf("%d left, %d missed", len(r.left), len(r.missed))
	}
}
