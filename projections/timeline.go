package projections

import (
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"github.com/pipeops/pipeops/domain"
)

// PushStatus is where a push stands as a whole.
type PushStatus string

// The statuses. Received, Building, Deploying and RollingBack are not final.
const (
	PushReceived    PushStatus = "received"
	PushBuilding    PushStatus = "building"
	PushBuilt       PushStatus = "built" // and no environment takes it by itself
	PushDeploying   PushStatus = "deploying"
	PushRollingBack PushStatus = "rolling-back"
	PushLive        PushStatus = "live" // it went live; what serves now is another question
	PushFailed      PushStatus = "failed"
	PushRolledBack  PushStatus = "rolled-back"
	PushSuperseded  PushStatus = "superseded"
	PushIgnored     PushStatus = "ignored"
)

// Push is a row of the read model timeline: a delivery and what became of it. Deployments by hand of what it built
// count as well.
type Push struct {
	ID        domain.PushID
	Project   domain.ProjectID
	Source    string
	Delivery  string
	Ref       string
	Branch    string
	Before    string
	Commit    string
	Forced    bool
	Pusher    Personal
	Author    Personal
	Message   Personal
	Status    PushStatus
	Reason    string            // why it was ignored
	Diagnosis *domain.Diagnosis // of what went wrong last

	Builds      []PushBuild
	Deployments []PushDeployment

	Position   int64 // of its first event
	ReceivedAt time.Time
	FinishedAt time.Time // zero until it is final
}

// PushBuild is a build of a push.
type PushBuild struct {
	ID    domain.BuildID
	Phase domain.Phase
}

// PushDeployment is a deployment of what a push built.
type PushDeployment struct {
	ID          domain.DeploymentID
	Phase       domain.Phase
	Undoing     bool
	Service     string
	Environment string
}

// Personal is a personal field as the event holds it. Queries open it for the reader.
type Personal struct {
	EventID string
	Field   string
	Subject string
	Sealed  string
	Text    string `json:"-"` // once opened
}

// Entry is a row of the read model timeline: an event, told to a person.
type Entry struct {
	ID       string // stable while the entry changes: progress is one entry
	Push     domain.PushID
	Project  domain.ProjectID
	Place    int64 // of its first event: the order
	Position int64 // of its newest event
	Type     string
	Subject  string // push, build or deployment id
	Severity Severity
	Text     string
	At       time.Time
}

// Severity of an entry.
type Severity string

// The severities.
const (
	Info    Severity = "info"
	Success Severity = "success"
	Warning Severity = "warning"
	Failure Severity = "error"
)

// link says which push a build or a deployment belongs to.
type link struct {
	Push    domain.PushID
	Project domain.ProjectID
}

// ignoredPush is what ignored pushes are found by.
const ignoredPush = "ignored"

var (
	pushes = kind[Push]{"pushes", func(p Push) index {
		i := index{project: p.Project, place: p.Position}
		if p.Status == PushIgnored {
			i.lookup = ignoredPush
		}
		return i
	}}
	entries = kind[Entry]{"timeline", func(e Entry) index {
		return index{project: e.Project, lookup: string(e.Push), place: e.Place}
	}}
	links = kind[link]{"timeline_links", func(l link) index { return index{project: l.Project, lookup: string(l.Push)} }}
)

var timelineProjection = &projection{
	name: "timeline", version: 1, streams: []string{"push", "build", "deployment"},
	tables: []string{pushes.table, entries.table, links.table},
	apply: func(r *rows, rec domain.Recorded, e domain.Event) {
		push, ok := pushOf(r, rec, e)
		if !ok {
			return
		}
		if push.apply(rec, e) {
			pushes.put(r, string(push.ID), push)
		} else {
			pushes.keep(r, string(push.ID), push)
		}
		if t, told := tell(rec, e, push); told {
			tellIn(r, push, rec, t)
		}
	},
}

// pushOf gives the push that an event belongs to.
func pushOf(r *rows, rec domain.Recorded, e domain.Event) (Push, bool) {
	l := link{Project: rec.ProjectID}
	switch e := e.(type) {
	case domain.PushReceived, domain.PushIgnored:
		return newPush(rec, e), true
	case domain.BuildRequested:
		l.Push = e.Push
	case domain.DeploymentRequested:
		of, _ := links.get(r, string(domain.BuildStream(e.Release.Build)))
		l.Push = of.Push
	default:
		l, _ = links.get(r, string(rec.Stream))
		links.keep(r, string(rec.Stream), l)
		return pushes.get(r, string(l.Push))
	}
	links.put(r, string(rec.Stream), l)
	return pushes.get(r, string(l.Push))
}

func newPush(rec domain.Recorded, e domain.Event) Push {
	p := Push{Project: rec.ProjectID, Status: PushReceived, Position: rec.Cursor.Position, ReceivedAt: rec.RecordedAt}
	switch e := e.(type) {
	case domain.PushReceived:
		p.ID, p.Source, p.Delivery, p.Ref, p.Branch = e.Push, e.Source, e.Delivery, e.Ref, e.Branch
		p.Before, p.Commit, p.Forced = e.Before, e.Commit, e.Forced
		p.Pusher = sealed(rec, "pusher", e.Pusher)
		p.Author = sealed(rec, "author", e.Author)
		p.Message = sealed(rec, "message", e.Message)
	case domain.PushIgnored:
		p.ID, p.Source, p.Delivery, p.Ref, p.Commit = e.Push, e.Source, e.Delivery, e.Ref, e.Commit
		p.Status, p.Reason, p.Diagnosis, p.FinishedAt = PushIgnored, e.Reason, e.Diagnosis, rec.RecordedAt
	}
	return p
}

// sealed keeps a personal field as it is: a read model holds no more than the log does.
func sealed(rec domain.Recorded, field string, p domain.Personal) Personal {
	var form struct {
		Enc string `json:"enc"`
		Sub string `json:"sub"`
	}
	if b, err := json.Marshal(p); err == nil { // it comes from a stored event, and so is sealed
		_ = json.Unmarshal(b, &form)
	}
	if form.Enc == "" {
		return Personal{}
	}
	return Personal{EventID: rec.ID, Field: field, Subject: form.Sub, Sealed: form.Enc}
}

// apply changes the push's parts by an event, and its status by its parts. Most events are steps of a build, which
// change nothing of it: then it says so.
func (p *Push) apply(rec domain.Recorded, e domain.Event) (changed bool) {
	switch e := e.(type) {
	case domain.PushReceived, domain.PushIgnored:
		return true
	case domain.SourceFetched, domain.BuildArgsFiltered, domain.LayerCached, domain.LayerBuilt, domain.RolloutProgressed:
		return false
	case domain.BuildRequested:
		p.Builds = append(p.Builds, PushBuild{ID: e.Build, Phase: domain.Waiting})
	case domain.DeploymentRequested:
		p.Deployments = append(p.Deployments, PushDeployment{
			ID: e.Deployment, Phase: domain.Waiting, Service: e.ServiceName, Environment: e.EnvironmentName,
		})
	case domain.BuildFailed:
		p.Diagnosis = &e.Diagnosis
	case domain.DeploymentFailed:
		p.Diagnosis = &e.Diagnosis
	case domain.RollbackFailed:
		p.Diagnosis = &e.Diagnosis
	case domain.DeploymentSucceeded:
		p.Diagnosis = nil
	}
	id := subject(rec.Stream)
	if i := slices.IndexFunc(p.Builds, func(b PushBuild) bool { return string(b.ID) == id }); i >= 0 {
		p.Builds[i].apply(e)
	}
	if d := p.deployment(id); d != nil {
		d.apply(e)
	}
	p.settle(rec.RecordedAt)
	return true
}

func (p *Push) deployment(id string) *PushDeployment {
	i := slices.IndexFunc(p.Deployments, func(d PushDeployment) bool { return string(d.ID) == id })
	if i < 0 {
		return nil
	}
	return &p.Deployments[i]
}

func (b *PushBuild) apply(e domain.Event) {
	whole := Build{Phase: b.Phase}
	whole.apply(time.Time{}, e)
	b.Phase = whole.Phase
}

func (d *PushDeployment) apply(e domain.Event) {
	switch e.(type) { // who waits for its roll-back is rolling back, to the push
	case domain.RollbackStarted:
		d.Undoing, d.Phase = true, domain.RollingBack
		return
	case domain.DeploymentStarted, domain.AttemptLost:
		if d.Undoing {
			return
		}
	}
	whole := Deployment{Phase: d.Phase}
	whole.apply(time.Time{}, e)
	d.Phase = whole.Phase
}

// settle works out the status. Of the deployments of a service to an environment the latest counts.
func (p *Push) settle(at time.Time) {
	had := p.Status
	p.Status = p.status()
	switch {
	case !p.Status.Final():
		p.FinishedAt = time.Time{}
	case had != p.Status || p.FinishedAt.IsZero():
		p.FinishedAt = at
	}
}

func (p *Push) status() PushStatus {
	built := map[domain.Phase]int{}
	for _, b := range p.Builds {
		built[b.Phase]++
	}
	latest := map[[2]string]domain.Phase{}
	for _, d := range p.Deployments {
		latest[[2]string{d.Environment, d.Service}] = d.Phase
	}
	deployed := map[domain.Phase]int{}
	for _, phase := range latest {
		deployed[phase]++
	}
	switch {
	case len(p.Builds) == 0:
		return PushReceived
	case deployed[domain.RollingBack] > 0:
		return PushRollingBack
	case built[domain.Waiting]+built[domain.Started] > 0:
		return PushBuilding
	case deployed[domain.Waiting]+deployed[domain.Started] > 0:
		return PushDeploying
	case built[domain.Failed]+deployed[domain.Failed] > 0:
		return PushFailed
	case deployed[domain.RolledBackP] > 0:
		return PushRolledBack
	case deployed[domain.Succeeded] > 0:
		return PushLive
	case built[domain.Superseded] == len(p.Builds) || len(latest) > 0:
		return PushSuperseded
	}
	return PushBuilt
}

// Final says whether nothing follows by itself.
func (s PushStatus) Final() bool {
	switch s {
	case PushReceived, PushBuilding, PushDeploying, PushRollingBack:
		return false
	}
	return true
}

// tellIn writes an entry: a new one, or a later state of the one with the same id.
func tellIn(r *rows, p Push, rec domain.Recorded, t told) {
	id, put := t.id, entries.put
	entry, known := Entry{}, false
	if id == "" {
		id, put = strconv.FormatInt(rec.Cursor.Position, 10), entries.add
	} else {
		entry, known = entries.get(r, id)
	}
	if !known {
		entry = Entry{ID: id, Push: p.ID, Project: p.Project, Place: rec.Cursor.Position}
	}
	entry.Position, entry.Type, entry.Subject, entry.At = rec.Cursor.Position, rec.Type, t.subject, rec.RecordedAt
	entry.Severity, entry.Text = t.severity, t.text
	put(r, id, entry)
}
