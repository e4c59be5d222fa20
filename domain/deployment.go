package domain

import (
	"fmt"
	"slices"
	"time"
)

// DeploymentEvent may stand in a deployment's stream.
//
//sumtype:decl
type DeploymentEvent interface {
	Event
	deploymentEvent()
}

type inDeployment struct{}

func (inDeployment) deploymentEvent() {}

// DeploymentRequested wants a release of a service to run in an environment.
type DeploymentRequested struct {
	fact
	inDeployment

	Deployment      DeploymentID  `json:"deployment"`
	Project         ProjectID     `json:"project"`
	ProjectName     string        `json:"projectName"` // the project's, which never changes
	Environment     EnvironmentID `json:"environment"`
	EnvironmentName string        `json:"environmentName"` // the environment's
	Namespace       string        `json:"namespace"`       // the environment's in Kubernetes
	Service         ServiceID     `json:"service"`
	ServiceName     string        `json:"serviceName"` // the service's, and that of its objects in Kubernetes
	Release         Release       `json:"release"`     // what shall run
	Spec            ServiceSpec   `json:"spec"`        // how it shall run
	// "push"; "manual": a person wants the image of a build; "rollback": a person wants an earlier release
	Reason string `json:"reason"`
}

// DeploymentQueued says that another deployment has the slot.
type DeploymentQueued struct {
	fact
	inDeployment

	Behind DeploymentID `json:"behind"` // the deployment that has the slot
}

// DeploymentStarted gives a worker the work.
type DeploymentStarted struct {
	fact
	inDeployment

	Attempt     AttemptID `json:"attempt"`
	Worker      WorkerID  `json:"worker"`      // that does it
	Incarnation string    `json:"incarnation"` // of the worker's process: a UUIDv7, new at each start
	// of the attempt: one more with every claim of the slot, from 1; the cluster refuses lower ones
	FencingEpoch int64       `json:"fencingEpoch"`
	Deadline     Time        `json:"deadline"`           // for the verdict; set by the first attempt, kept by later ones
	Previous     *Activation `json:"previous,omitempty"` // what serves now, and comes back if this fails
}

// ManifestsApplied says that the cluster has accepted the objects.
type ManifestsApplied struct {
	fact
	inDeployment

	Namespace string   `json:"namespace"` // that they stand in, in Kubernetes
	Objects   []string `json:"objects"`   // kind and name of each: "Deployment/hello"
	Changed   int      `json:"changed"`   // count of those that were made or changed, the namespace not counted
}

// RolloutProgressed is what the cluster shows; at most one a second and only when something changed.
type RolloutProgressed struct {
	fact
	inDeployment

	Wanted    int    `json:"wanted"`            // count of pods that the release shall have
	Updated   int    `json:"updated"`           // count of its pods that exist
	Ready     int    `json:"ready"`             // count of its pods that are ready
	Available int    `json:"available"`         // count of its pods that have been ready for minReady
	Message   string `json:"message,omitempty"` // what isn't well, and what was taken back from other managers of a field
}

// DeploymentSucceeded says that the release serves.
type DeploymentSucceeded struct {
	fact
	inDeployment

	// "sha256:…" of the image as the pods run it; as it was asked for where the cluster doesn't tell
	Digest    string       `json:"digest"`
	Available int          `json:"available"`  // count of pods of the release that are available
	Trailing  int          `json:"trailing"`   // count of old pods that are still ending
	Address   string       `json:"address"`    // within the cluster: "hello.hello-production-a1b2c3.svc:80"
	Duration  Milliseconds `json:"durationMs"` // since the first attempt began
}

// DeploymentFailed is the verdict against the release.
type DeploymentFailed struct {
	fact
	inDeployment

	Diagnosis Diagnosis `json:"diagnosis"` // what went wrong, and what to do
}

// RollbackStarted says that what served before comes back.
type RollbackStarted struct {
	fact
	inDeployment

	To Activation `json:"to"` // what served before
}

// RolledBack says that what served before serves alone again.
type RolledBack struct {
	fact
	inDeployment

	To        ReleaseID    `json:"to"`         // what serves again
	Available int          `json:"available"`  // count of its pods that are available
	Duration  Milliseconds `json:"durationMs"` // of the roll-back, in the attempt that ended it
}

// RollbackFailed says that not even that worked: a person must look.
type RollbackFailed struct {
	fact
	inDeployment

	Diagnosis Diagnosis `json:"diagnosis"` // what went wrong, and what to do
}

// DeploymentSuperseded ends a deployment that waited until a newer one came.
type DeploymentSuperseded struct {
	fact
	inDeployment

	By DeploymentID `json:"by"` // the newer deployment
}

// Deployment is one deployment.
type Deployment struct {
	Request     DeploymentRequested
	Phase       Phase // empty: no such deployment
	Attempts    int   // in all; the number in the attempt's id
	Losses      int   // as of a build, since the roll-out, or the roll-back, began
	Incarnation string
	Running     bool
	Lost        bool // the current attempt's worker is gone
	Sequence    int64
	Previous    *Activation
	Deadline    Time
	Undoing     bool // RollbackStarted was recorded
}

// Evolve applies an event.
func (d *Deployment) Evolve(e DeploymentEvent) {
	switch e := e.(type) {
	case DeploymentRequested:
		d.Request, d.Phase = e, Waiting
	case DeploymentQueued, ManifestsApplied, RolloutProgressed:
	case DeploymentStarted:
		d.Attempts++
		d.Running, d.Lost, d.Sequence, d.Incarnation = true, false, 0, e.Incarnation
		d.Deadline, d.Previous = e.Deadline, e.Previous
		d.Phase = Started
		if d.Undoing {
			d.Phase = RollingBack
		}
	case AttemptLost:
		d.Running, d.Lost = false, true
		if !e.Stopped {
			d.Losses++
		}
		d.Phase = Waiting
	case DeploymentSucceeded:
		d.Phase, d.Running = Succeeded, false
	case DeploymentFailed:
		d.Phase = Failed
		d.Running = d.Running && d.Previous != nil // the same worker goes on and rolls back
	case RollbackStarted:
		d.Phase, d.Undoing, d.Losses = RollingBack, true, 0
		if !d.Running {
			d.Phase = Waiting // for a worker to undo it
		}
	case RolledBack:
		d.Phase, d.Running = RolledBackP, false
	case RollbackFailed:
		d.Phase, d.Running = Failed, false
	case DeploymentSuperseded:
		d.Phase, d.Running = Superseded, false
	}
}

// Attempt is the current one's id.
func (d *Deployment) Attempt() AttemptID {
	return NewAttemptID(string(d.Request.Deployment), d.Attempts)
}

// Slot is the stream of the slot that the deployment goes through.
func (d *Deployment) Slot() Stream { return SlotStream(d.Request.Environment, d.Request.Service) }

// DeployContext is what a job and a grant say about a deployment.
type DeployContext struct {
	Request  DeploymentRequested `json:"request"`
	Previous *Activation         `json:"previous,omitempty"` // what comes back on failure
	Deadline Time                `json:"deadline,omitzero"`  // for the verdict
}

// RequestDeployment wants a release to run. Give either Build (deploy its
// image with today's configuration) or Rollback (run an earlier release again,
// with what it ran with).
type RequestDeployment struct {
	Project     ProjectID
	Environment EnvironmentID
	Service     ServiceID
	Deployment  DeploymentID
	Build       BuildID
	Rollback    bool
	To          ReleaseID // with Rollback: which; empty = the one before the active one
	Lift        bool      // lift a quarantine first
	Reason      string
}

// Reads implements Command.
func (c RequestDeployment) Reads(s State) []Stream {
	out := []Stream{ProjectStream(c.Project), SlotStream(c.Environment, c.Service), DeploymentStream(c.Deployment)}
	if c.Build != "" {
		out = append(out, BuildStream(c.Build))
	}
	if w := Of[Slot](s, out[1]).Waiting; w != "" {
		out = append(out, DeploymentStream(w))
	}
	return out
}

// Decide implements Command.
func (c RequestDeployment) Decide(s State) ([]Change, error) {
	p := Of[Project](s, ProjectStream(c.Project))
	env, okEnv := p.Environment(string(c.Environment))
	svc, okSvc := p.Service(string(c.Service))
	if p.ID == "" || !okEnv || !okSvc {
		return nil, &Refusal{Code: "NO_TARGET", Field: "environment", Message: "there is no such service or environment in the project", Fix: "see: pipeops project show " + p.Name}
	}
	slot := Of[Slot](s, SlotStream(env.ID, svc.ID))
	release, spec, err := c.release(s, slot, svc, p)
	if err != nil {
		return nil, err
	}
	return admit(s, slot, "", DeploymentRequested{
		Deployment: c.Deployment, Project: p.ID, ProjectName: p.Name,
		Environment: env.ID, EnvironmentName: env.Name, Namespace: env.Namespace,
		Service: svc.ID, ServiceName: svc.Name, Release: release, Spec: spec, Reason: c.Reason,
	}, c.Lift)
}

func (c RequestDeployment) release(s State, slot *Slot, svc Service, p *Project) (Release, ServiceSpec, error) {
	if !c.Rollback {
		b := Of[Build](s, BuildStream(c.Build))
		if b.Phase != Succeeded || b.Pushed == nil || !slices.Contains(b.Request.Services, svc.ID) {
			return Release{}, ServiceSpec{}, &Refusal{Code: "NO_IMAGE", Field: "build", Message: "build " + string(c.Build) + " has no image of this service", Fix: "choose a succeeded build of the project: pipeops status " + p.Name}
		}
		return NewRelease(svc.ID, b.Request.Build, b.Request.Commit, b.Pushed.Reference, p.Version, svc.Spec), svc.Spec, nil
	}
	active := slot.Active()
	for _, a := range slices.Backward(slot.History) {
		if (c.To == "" && a.Release.ID != active.Release.ID) || (c.To != "" && a.Release.ID == c.To) {
			return a.Release, a.Spec, nil
		}
	}
	return Release{}, ServiceSpec{}, &Refusal{Code: "NO_EARLIER_RELEASE", Field: "release", Message: "there is no such earlier release to go back to", Fix: "see what was deployed: pipeops events --project " + p.Name}
}

// admit puts a deployment in line, in place of who waited there.
func admit(s State, slot *Slot, push PushID, r DeploymentRequested, lift bool) ([]Change, error) {
	slotStream, stream := SlotStream(r.Environment, r.Service), DeploymentStream(r.Deployment)
	var changes []Change
	if why, barred := slot.Quarantined[r.Release.ID]; barred {
		if !lift {
			return nil, &Refusal{Code: "QUARANTINED", Field: "release", Message: "this release failed before: " + why, Fix: "push a fix, change the configuration, or lift the bar: pipeops deploy " + r.ProjectName + " --lift-quarantine"}
		}
		changes = append(changes, Change{slotStream, QuarantineLifted{Release: r.Release.ID}})
	}
	changes = append(changes, Change{stream, r}, Change{slotStream, DeploymentAdmitted{Deployment: r.Deployment, Push: push}})
	if slot.Waiting != "" {
		if Of[Deployment](s, DeploymentStream(slot.Waiting)).Phase == Waiting {
			changes = append(changes, Change{DeploymentStream(slot.Waiting), DeploymentSuperseded{By: r.Deployment}})
		}
	}
	if slot.Holder != "" {
		changes = append(changes, Change{stream, DeploymentQueued{Behind: slot.Holder}})
	}
	return changes, nil
}

// DeployBuild wants the image of a succeeded build in every environment that
// follows its branch. Where a newer push was faster, its deployment stands; a
// quarantined release fails at once. Both are told, neither is admitted.
type DeployBuild struct {
	Project ProjectID
	Build   BuildID
	IDs     []DeploymentID // at least one per service and environment
}

// Reads implements Command.
func (c DeployBuild) Reads(s State) []Stream {
	out := []Stream{ProjectStream(c.Project), BuildStream(c.Build)}
	b := Of[Build](s, out[1])
	if b.Phase != "" {
		out = append(out, RefStream(c.Project, b.Request.Ref))
	}
	for _, t := range b.releases(Of[Project](s, out[0])) {
		slot := SlotStream(t.environment.ID, t.service.ID)
		out = append(out, slot)
		if w := Of[Slot](s, slot).Waiting; w != "" {
			out = append(out, DeploymentStream(w))
		}
	}
	return out
}

// Decide implements Command.
func (c DeployBuild) Decide(s State) ([]Change, error) {
	p, b := Of[Project](s, ProjectStream(c.Project)), Of[Build](s, BuildStream(c.Build))
	if b.Phase != Succeeded || b.Pushed == nil {
		return nil, &Refusal{Code: "NO_IMAGE", Field: "build", Message: "build " + string(c.Build) + " has no image"}
	}
	targets := b.releases(p)
	if len(targets) > len(c.IDs) {
		return nil, tooMany("deployments", len(c.IDs))
	}
	ref := Of[Ref](s, RefStream(p.ID, b.Request.Ref))
	var changes []Change
	for i, t := range targets {
		slot := Of[Slot](s, SlotStream(t.environment.ID, t.service.ID))
		r := NewRelease(t.service.ID, c.Build, b.Request.Commit, b.Pushed.Reference, p.Version, t.service.Spec)
		request := DeploymentRequested{
			Deployment: c.IDs[i], Project: p.ID, ProjectName: p.Name,
			Environment: t.environment.ID, EnvironmentName: t.environment.Name, Namespace: t.environment.Namespace,
			Service: t.service.ID, ServiceName: t.service.Name, Release: r, Spec: t.service.Spec, Reason: "push",
		}
		stream := DeploymentStream(request.Deployment)
		why, barred := slot.Quarantined[r.ID]
		switch {
		case ref.newer(slot.Pushed.Push, b.Request.Push):
			changes = append(changes, Change{stream, request}, Change{stream, DeploymentSuperseded{By: slot.Pushed.Deployment}})
		case barred:
			changes = append(changes, Change{stream, request}, Change{stream, DeploymentFailed{Diagnosis: quarantined(request, why)}})
		default:
			more, err := admit(s, slot, b.Request.Push, request, false)
			if err != nil {
				return nil, err
			}
			changes = append(changes, more...)
		}
	}
	return changes, nil
}

func quarantined(r DeploymentRequested, why string) Diagnosis {
	return Diagnosis{
		Code: "QUARANTINED", Title: "Not deployed: this release failed before", Step: "admission",
		Error:  "release " + string(r.Release.ID) + " is barred: " + why,
		Reason: "The same image with the same configuration failed in " + r.EnvironmentName + " before, and would fail again",
		Fixes: []string{
			"Push a commit that mends it, or change the configuration: either makes another release",
			"Where the cause lay elsewhere and is gone, lift the bar and deploy it: pipeops deploy " + r.ProjectName + " --lift-quarantine",
		},
		Run: "pipeops status " + r.ProjectName,
	}
}

// ClaimDeployment gives a deployment and its slot to a worker.
type ClaimDeployment struct {
	Deployment  DeploymentID
	Worker      WorkerID
	Incarnation string
	At          time.Time
}

// Reads implements Command.
func (c ClaimDeployment) Reads(s State) []Stream {
	out := []Stream{DeploymentStream(c.Deployment)}
	if d := Of[Deployment](s, out[0]); d.Phase != "" {
		out = append(out, d.Slot())
	}
	return out
}

// Decide implements Command.
func (c ClaimDeployment) Decide(s State) ([]Change, error) {
	stream := DeploymentStream(c.Deployment)
	d := Of[Deployment](s, stream)
	if d.Phase != Waiting {
		return nil, notWaiting("deployment", string(c.Deployment), d.Phase)
	}
	slot := Of[Slot](s, d.Slot())
	if slot.Holder != c.Deployment && (slot.Holder != "" || slot.Waiting != c.Deployment) {
		return nil, &Refusal{Code: "SLOT_TAKEN", Message: "deployment " + string(slot.Holder) + " has the slot"}
	}
	started := DeploymentStarted{
		Attempt: NewAttemptID(string(c.Deployment), d.Attempts+1), Worker: c.Worker, Incarnation: c.Incarnation,
		FencingEpoch: slot.FencingEpoch + 1, Deadline: d.Deadline, Previous: d.Previous,
	}
	if d.Attempts == 0 {
		started.Deadline = At(c.At.Add(d.Request.Spec.Strategy.Deadline.Duration()))
		if a := slot.Active(); a != nil {
			previous := *a
			started.Previous = &previous
		}
	}
	return []Change{
		{stream, started},
		{d.Slot(), DeploymentClaimed{Deployment: c.Deployment, Attempt: started.Attempt, FencingEpoch: started.FencingEpoch}},
	}, nil
}

// ReportDeployment is one item that a deployment's worker reports.
type ReportDeployment struct {
	Attempt  AttemptID
	Sequence int64
	Item     Event
}

// Reads implements Command.
func (c ReportDeployment) Reads(s State) []Stream {
	id, _, _ := c.Attempt.Split()
	return ClaimDeployment{Deployment: DeploymentID(id)}.Reads(s)
}

// Decide implements Command.
func (c ReportDeployment) Decide(s State) ([]Change, error) {
	stream := c.Reads(s)[0]
	d := Of[Deployment](s, stream)
	if !d.Running || d.Attempt() != c.Attempt {
		return nil, stale(c.Attempt)
	}
	if done, err := inSequence(d.Sequence, c.Sequence); done || err != nil {
		return nil, err
	}
	item := Change{stream, c.Item}
	released := Change{d.Slot(), DeploymentReleased{Deployment: d.Request.Deployment}}
	switch e := c.Item.(type) {
	case AttemptLost:
		return d.lose(e), nil
	case DeploymentSucceeded:
		if d.Undoing {
			return nil, undoing(d)
		}
		changes := []Change{item}
		if _, barred := Of[Slot](s, d.Slot()).Quarantined[d.Request.Release.ID]; barred { // since this one was admitted
			changes = append(changes, Change{d.Slot(), QuarantineLifted{Release: d.Request.Release.ID}})
		}
		activated := ReleaseActivated{Deployment: d.Request.Deployment, Release: d.Request.Release, Spec: d.Request.Spec}
		return append(changes, Change{d.Slot(), activated}, released), nil
	case DeploymentFailed:
		if d.Undoing {
			return nil, undoing(d)
		}
		return d.fail(e.Diagnosis), nil
	case RolledBack, RollbackFailed:
		if !d.Undoing {
			return nil, &Refusal{Code: "NOT_ROLLING_BACK", Message: "deployment " + string(d.Request.Deployment) + " isn't being rolled back"}
		}
		return []Change{item, released}, nil
	}
	return []Change{item}, nil
}

func undoing(d *Deployment) *Refusal {
	return &Refusal{Code: "ROLLING_BACK", Message: "deployment " + string(d.Request.Deployment) + " has failed and is being rolled back"}
}

// fail records the verdict, bars a release that is at fault unless it is the
// one that served before, and either begins the roll-back or, where nothing
// served before, frees the slot.
func (d *Deployment) fail(diagnosis Diagnosis) []Change {
	stream := DeploymentStream(d.Request.Deployment)
	changes := []Change{{stream, DeploymentFailed{Diagnosis: diagnosis}}}
	if diagnosis.ReleaseAtFault && (d.Previous == nil || d.Previous.Release.ID != d.Request.Release.ID) {
		changes = append(changes, Change{d.Slot(), ReleaseQuarantined{Release: d.Request.Release.ID, Deployment: d.Request.Deployment, Why: diagnosis.Title}})
	}
	if d.Previous == nil {
		return append(changes, Change{d.Slot(), DeploymentReleased{Deployment: d.Request.Deployment}})
	}
	return append(changes, Change{stream, RollbackStarted{To: *d.Previous}})
}

// abandon fails a deployment that no worker is left for. Where nothing served
// before, nobody undoes what was begun, and the diagnosis says so.
func (d *Deployment) abandon(diagnosis Diagnosis) []Change {
	if d.Previous == nil {
		r := d.Request
		diagnosis.Reason += ". Nothing served before it that could come back, so whatever of it is in the cluster stays there, and its pods may go on running"
		diagnosis.Fixes = append(slices.Clip(diagnosis.Fixes), fmt.Sprintf("If it isn't wanted, stop its pods: kubectl scale deployment/%s -n %s --replicas=0", r.ServiceName, r.Namespace))
	}
	return d.fail(diagnosis)
}

func (d *Deployment) lose(lost AttemptLost) []Change {
	stream := DeploymentStream(d.Request.Deployment)
	lost.Attempt = d.Attempt()
	changes, reason := []Change{{stream, lost}}, lost.Reason
	if lost.Stopped || d.Losses+1 < MaxAttempts {
		return changes
	}
	if d.Undoing {
		diagnosis := exhausted("Rollback", reason, "Once the cause is gone, bring back what served: "+d.Request.rollBackTo(d.Previous.Release.ID))
		return append(changes, Change{stream, RollbackFailed{Diagnosis: diagnosis}}, Change{d.Slot(), DeploymentReleased{Deployment: d.Request.Deployment}})
	}
	return append(changes, d.abandon(exhausted("Deployment", reason, "Once the cause is gone, deploy it again: "+d.Request.again()))...)
}

// again is the command that asks for the same once more.
func (r DeploymentRequested) again() string {
	if r.Reason == "rollback" {
		return r.rollBackTo(r.Release.ID)
	}
	return fmt.Sprintf("pipeops deploy %s --environment %s --service %s --build %s", r.ProjectName, r.EnvironmentName, r.ServiceName, r.Release.Build)
}

func (r DeploymentRequested) rollBackTo(release ReleaseID) string {
	return fmt.Sprintf("pipeops rollback %s --environment %s --service %s --to %s", r.ProjectName, r.EnvironmentName, r.ServiceName, release)
}

// LoseDeploymentAttempt ends an attempt whose lease lapsed.
type LoseDeploymentAttempt struct {
	Attempt AttemptID
	Reason  string
}

// Reads implements Command.
func (c LoseDeploymentAttempt) Reads(s State) []Stream {
	return ReportDeployment{Attempt: c.Attempt}.Reads(s)
}

// Decide implements Command.
func (c LoseDeploymentAttempt) Decide(s State) ([]Change, error) {
	d := Of[Deployment](s, c.Reads(s)[0])
	if !d.Running || d.Attempt() != c.Attempt {
		return nil, nil
	}
	return d.lose(AttemptLost{Reason: c.Reason}), nil
}

// FailDeployment ends a waiting deployment that can't be handed out at all. One
// that was begun may have changed the cluster, so it waits for its roll-back.
type FailDeployment struct {
	Deployment DeploymentID
	Diagnosis  Diagnosis
}

// Reads implements Command.
func (c FailDeployment) Reads(s State) []Stream {
	return ClaimDeployment{Deployment: c.Deployment}.Reads(s)
}

// Decide implements Command.
func (c FailDeployment) Decide(s State) ([]Change, error) {
	stream := DeploymentStream(c.Deployment)
	d := Of[Deployment](s, stream)
	if d.Phase != Waiting {
		return nil, nil
	}
	failed := DeploymentFailed{Diagnosis: c.Diagnosis}
	if d.Undoing {
		return []Change{{stream, RollbackFailed(failed)}, {d.Slot(), DeploymentReleased{Deployment: c.Deployment}}}, nil
	}
	if d.Attempts > 0 {
		return d.abandon(c.Diagnosis), nil
	}
	return []Change{{stream, failed}, {d.Slot(), DeploymentReleased{Deployment: c.Deployment}}}, nil
}
