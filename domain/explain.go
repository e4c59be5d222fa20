package domain

import (
	"cmp"
	"slices"
)

// Why is why a service runs what it runs in an environment: from what serves down to the push or the wish that it
// began with, and what was wanted since and doesn't serve.
type Why struct {
	Project         ProjectID     `json:"project"`
	ProjectName     string        `json:"projectName"`
	Environment     EnvironmentID `json:"environment"`
	EnvironmentName string        `json:"environmentName"`
	Service         ServiceID     `json:"service"`
	ServiceName     string        `json:"serviceName"`
	AsOf            Cursor        `json:"asOf"`
	Release         *Release      `json:"release"` // what serves; nil: nothing does
	Since           Time          `json:"since"`
	Steps           []Link        `json:"steps"`  // that led to it, newest first
	Beside          []Aside       `json:"beside"` // what doesn't serve, newest first
	More            int           `json:"more"`   // so many older ones beside aren't told
}

// Link is an event of the log and what it says. Because leads from each to an earlier one, and in the end to a push or
// to what a person wanted.
type Link struct {
	Cursor    Cursor     `json:"cursor"`
	Event     string     `json:"event"` // its id
	Type      string     `json:"type"`
	At        Time       `json:"at"`      // of recording
	Subject   string     `json:"subject"` // push, build, deployment, release or project
	Text      string     `json:"text"`
	Who       string     `json:"who"`     // in words
	Actor     string     `json:"actor"`   // as it is recorded
	Because   string     `json:"because"` // id of the event that it follows from; empty: a first cause
	Diagnosis *Diagnosis `json:"diagnosis"`
}

// Outcome is what became of what doesn't serve.
type Outcome string

// The outcomes.
const (
	WasIgnored    Outcome = "ignored"
	WasSuperseded Outcome = "superseded"
	HasFailed     Outcome = "failed"
	WasRolledBack Outcome = "rolled-back"
	WasReplaced   Outcome = "replaced"
	NotDeployed   Outcome = "not-deployed"
	UnderWay      Outcome = "under-way"
)

// Aside is a push, or a deployment that a person asked for, that doesn't serve.
type Aside struct {
	Subject string  `json:"subject"`
	Commit  string  `json:"commit"`
	Outcome Outcome `json:"outcome"`
	Text    string  `json:"text"` // why it doesn't serve
	By      string  `json:"by"`   // id of what took its place; may be empty
	Steps   []Link  `json:"steps"`
}

// Happened is a recorded event with its typed form, personal fields opened where they aren't erased.
type Happened struct {
	Recorded Recorded
	Event    Event
}

// Explained names the event types that Explain tells of; a project's are all of its own besides.
func Explained() []string {
	return []string{
		"ProjectCreated", "ProjectConfigured", "ServiceAdded", "ServiceConfigured", "EnvironmentAdded", "WebhookSecretRotated", "SecretSet",
		"PushReceived", "PushIgnored", "BuildRequested", "BuildStarted", "AttemptLost", "ImagePushed", "BuildSucceeded", "BuildFailed", "BuildSuperseded",
		"DeploymentRequested", "DeploymentQueued", "DeploymentStarted", "DeploymentSucceeded", "DeploymentFailed",
		"RollbackStarted", "RolledBack", "RollbackFailed", "DeploymentSuperseded",
		"ReleaseActivated", "ReleaseQuarantined", "QuarantineLifted",
	}
}

// Explain tells why a service runs what it runs in an environment, from events in order of position: the project's and
// the slot's, and those of the pushes, builds and deployments that the answer shall tell of. What isn't among them is
// left out; events of other types don't matter.
func Explain(environment EnvironmentID, service ServiceID, events []Happened) Why {
	t := tale{
		slot: SlotStream(environment, service), service: service, environment: environment,
		state: State{}, told: map[Stream][]Happened{}, pushes: map[PushID]Happened{},
	}
	for _, h := range events {
		t.hear(h)
	}
	w := Why{
		Project: t.project().ID, ProjectName: t.project().Name, Environment: environment, EnvironmentName: t.environmentName(),
		Service: service, ServiceName: t.serviceName(), Steps: []Link{}, Beside: []Aside{},
	}
	if n := len(t.activations); n > 0 {
		last := t.activations[n-1]
		release := last.Event.(ReleaseActivated).Release
		w.Release, w.Since = &release, At(last.Recorded.RecordedAt)
		w.Steps = newestFirst(t.serving(n - 1))
	}
	w.Beside = t.beside(w.Steps)
	return w
}

// tale is what was heard of the events.
type tale struct {
	slot        Stream
	environment EnvironmentID
	service     ServiceID
	projectOf   Stream
	state       State
	told        map[Stream][]Happened // of builds, deployments, and the project, by stream
	streams     []Stream              // of builds and deployments, as they came
	activations []Happened
	barred      []Happened // quarantines, and their end
	pushes      map[PushID]Happened
	order       []PushID
}

func (t *tale) hear(h Happened) {
	stream := h.Recorded.Stream
	switch e := h.Event.(type) {
	case PushReceived:
		t.pushes[e.Push], t.order = h, append(t.order, e.Push)
		return
	case PushIgnored:
		t.pushes[e.Push], t.order = h, append(t.order, e.Push)
		return
	case ReleaseActivated:
		t.activations = append(t.activations, h)
	case ReleaseQuarantined, QuarantineLifted:
		t.barred = append(t.barred, h)
	}
	switch kind := stream.Kind(); kind {
	case "build", "deployment":
		if len(t.told[stream]) == 0 {
			t.streams = append(t.streams, stream)
		}
	case "project":
		t.projectOf = stream
	case "slot":
	default:
		return
	}
	t.told[stream] = append(t.told[stream], h)
	_ = t.state.Fold(stream, h.Event, 0) // an event of another kind of stream changes nothing
}

func (t *tale) project() *Project       { return Of[Project](t.state, t.projectOf) }
func (t *tale) build(id BuildID) *Build { return Of[Build](t.state, BuildStream(id)) }
func (t *tale) deployment(id DeploymentID) *Deployment {
	return Of[Deployment](t.state, DeploymentStream(id))
}

func (t *tale) environmentName() string {
	e, _ := t.project().Environment(string(t.environment))
	return e.Name
}

func (t *tale) serviceName() string {
	s, _ := t.project().Service(string(t.service))
	return s.Name
}

// serving gives the steps that led to the n-th activation, in any order.
func (t *tale) serving(n int) []Link {
	h := t.activations[n]
	id := h.Event.(ReleaseActivated).Deployment
	steps := t.deploying(id, n)
	return append(steps, t.step(h, lastOf(t.lifeOf(DeploymentStream(id)))))
}

// deploying gives the steps of a deployment and of what led to it; before is how many activations may have been its
// model, if it goes back to one.
func (t *tale) deploying(id DeploymentID, before int) (steps []Link) {
	d := t.deployment(id)
	var cause string
	if d.Request.Reason == "rollback" {
		for n, h := range slices.Backward(t.activations[:before]) {
			if h.Event.(ReleaseActivated).Release.ID == d.Request.Release.ID {
				steps, cause = t.serving(n), h.Recorded.ID
				break
			}
		}
	}
	if cause == "" {
		steps = t.building(d.Request.Release.Build)
		cause = lastOf(t.lifeOf(BuildStream(d.Request.Release.Build)))
		steps = append(steps, t.configuration(d.Request)...)
	}
	steps = append(steps, t.life(DeploymentStream(id), cause)...)
	return append(steps, t.lifted(d.Request)...)
}

// building gives the steps of a build and of its push.
func (t *tale) building(id BuildID) (steps []Link) {
	var cause string
	if push, ok := t.pushes[t.build(id).Request.Push]; ok {
		steps, cause = append(steps, t.step(push, "")), push.Recorded.ID
	}
	return append(steps, t.life(BuildStream(id), cause)...)
}

// lifeOf gives the events of a build or deployment that are told.
func (t *tale) lifeOf(stream Stream) []Happened {
	return slices.DeleteFunc(slices.Clone(t.told[stream]), func(h Happened) bool { return t.words(h) == "" })
}

// life gives the steps of a build or deployment, each because of the one before it.
func (t *tale) life(stream Stream, cause string) (steps []Link) {
	for _, h := range t.lifeOf(stream) {
		steps = append(steps, t.step(h, cause))
		cause = h.Recorded.ID
	}
	return steps
}

func lastOf(events []Happened) string {
	if len(events) == 0 {
		return ""
	}
	return events[len(events)-1].Recorded.ID
}

// configuration gives the last change, up to the version that a release runs with, of what concerns it.
func (t *tale) configuration(r DeploymentRequested) []Link {
	for _, h := range slices.Backward(t.told[t.projectOf]) {
		if h.Recorded.Version <= r.Release.ConfigVersion && t.words(h) != "" {
			return []Link{t.step(h, "")}
		}
	}
	return nil
}

// lifted gives who let a release go again that had failed before: that is decided with something of the deployment.
func (t *tale) lifted(r DeploymentRequested) (steps []Link) {
	life := t.told[DeploymentStream(r.Deployment)]
	for _, h := range t.barred {
		e, ok := h.Event.(QuarantineLifted)
		if ok && e.Release == r.Release.ID && slices.ContainsFunc(life, func(of Happened) bool { return together(h, of) }) {
			steps = append(steps, t.step(h, ""))
		}
	}
	return steps
}

// together says whether two events were appended at once.
func together(a, b Happened) bool {
	return a.Recorded.RecordedAt.Equal(b.Recorded.RecordedAt) && a.Recorded.Actor == b.Recorded.Actor &&
		a.Recorded.CorrelationID == b.Recorded.CorrelationID
}

func (t *tale) step(h Happened, because string) Link {
	return Link{
		Cursor: h.Recorded.Cursor, Event: h.Recorded.ID, Type: h.Recorded.Type, At: At(h.Recorded.RecordedAt),
		Subject: subjectOf(h), Text: t.words(h), Who: t.who(h), Actor: h.Recorded.Actor, Because: because,
		Diagnosis: diagnosisOf(h.Event),
	}
}

func subjectOf(h Happened) string {
	switch e := h.Event.(type) {
	case PushReceived:
		return string(e.Push)
	case PushIgnored:
		return string(e.Push)
	case ReleaseActivated:
		return string(e.Release.ID)
	case ReleaseQuarantined:
		return string(e.Release)
	case QuarantineLifted:
		return string(e.Release)
	}
	return string(h.Recorded.Stream)[len(h.Recorded.Stream.Kind())+1:]
}

func diagnosisOf(e Event) *Diagnosis {
	switch e := e.(type) {
	case PushIgnored:
		return e.Diagnosis
	case BuildFailed:
		return &e.Diagnosis
	case DeploymentFailed:
		return &e.Diagnosis
	case RollbackFailed:
		return &e.Diagnosis
	}
	return nil
}

// newestFirst sorts steps, each once.
func newestFirst(steps []Link) []Link {
	slices.SortFunc(steps, func(a, b Link) int { return cmp.Compare(b.Cursor.Position, a.Cursor.Position) })
	return slices.CompactFunc(steps, func(a, b Link) bool { return a.Event == b.Event })
}
