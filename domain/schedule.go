package domain

import (
	"cmp"
	"slices"
	"time"
)

// Work is one build or deployment that isn't over.
type Work struct {
	Class     string // "build" or "deploy"
	Subject   string // build or deployment id
	Project   ProjectID
	Line      string    // what it competes in: newer work of the same line replaces waiting older work
	Since     time.Time // waiting since
	Position  int64     // of the event that asked for it: the order of asking
	Attempt   AttemptID // running as, empty while waiting
	Published time.Time // when a job was last sent for it, zero = never

	begun bool // an attempt has been under way
}

// Queue is all work that isn't over: a fold of the log.
type Queue struct {
	Works map[string]*Work // by subject
	slots map[Stream]claim
}

// claim is who has a slot, since which position.
type claim struct {
	holder   DeploymentID
	position int64
}

// Begin gives the last position that a fold can leave out with all before it, and come to the same queue as one of the
// whole log up to the position folded: nothing that stands there is about what isn't over.
func (q *Queue) Begin(folded int64) int64 {
	for _, w := range q.Works {
		folded = min(folded, w.Position-1)
	}
	for _, c := range q.slots {
		folded = min(folded, c.position-1)
	}
	return folded
}

// ScheduleTypes names the event types that the queue is folded from.
func ScheduleTypes() []string {
	return []string{
		"BuildRequested", "BuildStarted", "BuildSucceeded", "BuildFailed", "BuildSuperseded", "AttemptLost",
		"DeploymentRequested", "DeploymentStarted", "DeploymentSucceeded", "DeploymentFailed", "RollbackStarted",
		"RolledBack", "RollbackFailed", "DeploymentSuperseded", "DeploymentClaimed", "DeploymentReleased",
	}
}

// Fold applies a recorded event.
func (q *Queue) Fold(r Recorded, e Event) {
	if q.Works == nil {
		q.Works, q.slots = map[string]*Work{}, map[Stream]claim{}
	}
	subject := string(r.Stream)[len(r.Stream.Kind())+1:]
	w := q.Works[subject]
	switch e := e.(type) {
	case BuildRequested:
		q.Works[subject] = &Work{
			Class: "build", Subject: subject, Project: e.Project, Since: r.RecordedAt, Position: r.Cursor.Position,
			Line: string(RefStream(e.Project, e.Ref)) + "/" + e.Image,
		}
	case DeploymentRequested:
		q.Works[subject] = &Work{
			Class: "deploy", Subject: subject, Project: e.Project, Since: r.RecordedAt, Position: r.Cursor.Position,
			Line: string(SlotStream(e.Environment, e.Service)),
		}
	case BuildStarted:
		w.start(e.Attempt)
	case DeploymentStarted:
		w.start(e.Attempt)
	case AttemptLost:
		if w != nil {
			w.Attempt, w.Since, w.Published = "", r.RecordedAt, time.Time{}
		}
	case BuildSucceeded, BuildFailed, BuildSuperseded, DeploymentSucceeded, DeploymentSuperseded, RolledBack, RollbackFailed:
		delete(q.Works, subject)
	case DeploymentFailed:
		if w != nil && !w.begun { // nothing to undo
			delete(q.Works, subject)
		}
	case DeploymentClaimed:
		q.slots[r.Stream] = claim{e.Deployment, r.Cursor.Position}
	case DeploymentReleased:
		if q.slots[r.Stream].holder == e.Deployment {
			delete(q.slots, r.Stream)
		}
		delete(q.Works, string(e.Deployment)) // failed with nothing to roll back to
	}
}

func (w *Work) start(a AttemptID) {
	if w != nil {
		w.Attempt, w.begun = a, true
	}
}

// ready says whether the work can be handed out: a deployment waits for its slot.
func (q *Queue) ready(w *Work) bool {
	if w.Attempt != "" {
		return false
	}
	holder := q.slots[Stream(w.Line)].holder
	return w.Class != "deploy" || holder == "" || string(holder) == w.Subject
}

// Plan is what the scheduler shall do now.
type Plan struct {
	Publish   []*Work    // send a job for each
	Supersede []Replaced // builds that a newer one replaces
}

// Replaced is a waiting build and the newer one of its line.
type Replaced struct{ Build, By BuildID }

// Plan hands free slots (by class) to waiting work: fair between projects
// (who has the least running goes first), then by age. A job that was sent
// less than republish ago occupies a slot: it is on its way.
func (q *Queue) Plan(free map[string]int, now time.Time, republish time.Duration) Plan {
	var p Plan
	running := map[ProjectID]int{}
	newest := map[string]*Work{}
	left := map[string]int{"build": free["build"], "deploy": free["deploy"]}
	var waiting []*Work
	for _, w := range q.Works {
		switch {
		case w.Attempt != "":
			running[w.Project]++
		case !w.Published.IsZero() && now.Sub(w.Published) < republish:
			running[w.Project]++
			left[w.Class]--
		default:
			waiting = append(waiting, w)
		}
		if n := newest[w.Line]; w.Class == "build" && (n == nil || n.Position < w.Position) {
			newest[w.Line] = w
		}
	}
	slices.SortFunc(waiting, func(a, b *Work) int { return cmp.Compare(a.Position, b.Position) })
	waiting = slices.DeleteFunc(waiting, func(w *Work) bool {
		n := newest[w.Line]
		if w.Class != "build" || n == w {
			return false
		}
		p.Supersede = append(p.Supersede, Replaced{BuildID(w.Subject), BuildID(n.Subject)})
		return true
	})
	for {
		best := -1
		for i, w := range waiting {
			if left[w.Class] > 0 && q.ready(w) && (best < 0 || running[w.Project] < running[waiting[best].Project]) {
				best = i
			}
		}
		if best < 0 {
			return p
		}
		w := waiting[best]
		waiting = slices.Delete(waiting, best, best+1)
		left[w.Class]--
		running[w.Project]++
		p.Publish = append(p.Publish, w)
	}
}
