package projections

import (
	"time"

	"github.com/pipeops/pipeops/domain"
)

// Deployment is a row of the read model deployments. Times as in Build.
type Deployment struct {
	ID              domain.DeploymentID  `json:",omitzero"`
	Project         domain.ProjectID     `json:",omitzero"`
	ProjectName     string               `json:",omitzero"`
	Environment     domain.EnvironmentID `json:",omitzero"`
	EnvironmentName string               `json:",omitzero"`
	Namespace       string               `json:",omitzero"`
	Service         domain.ServiceID     `json:",omitzero"`
	ServiceName     string               `json:",omitzero"`
	Release         domain.Release       `json:",omitzero"`
	Reason          string               `json:",omitzero"` // "push", "manual", "rollback"

	Phase    domain.Phase     `json:",omitzero"`
	Attempts int              `json:",omitzero"`
	Attempt  domain.AttemptID `json:",omitzero"`
	Worker   domain.WorkerID  `json:",omitzero"`
	Running  bool             `json:",omitzero"` // an attempt is under way
	Undoing  bool             `json:",omitzero"` // it has failed, and is being rolled back

	Progress Progress            `json:",omitzero"` // as the cluster showed it last
	Behind   domain.DeploymentID `json:",omitzero"` // that has the slot while this one waits for it
	Previous *domain.Release     `json:",omitzero"` // that served when it started

	Diagnosis         *domain.Diagnosis   `json:",omitzero"`
	RollbackDiagnosis *domain.Diagnosis   `json:",omitzero"`
	Digest            string              `json:",omitzero"` // as the pods run it
	Address           string              `json:",omitzero"` // within the cluster; empty until it has succeeded
	Trailing          int                 `json:",omitzero"` // old pods that were still ending when it succeeded
	SupersededBy      domain.DeploymentID `json:",omitzero"`

	Position     int64     `json:",omitzero"` // of its first event
	RequestedAt  time.Time `json:",omitzero"`
	WaitingSince time.Time `json:",omitzero"`
	StartedAt    time.Time `json:",omitzero"`
	Deadline     time.Time `json:",omitzero"` // for the verdict
	FinishedAt   time.Time `json:",omitzero"`
}

// Progress counts pods.
type Progress struct {
	Wanted    int
	Updated   int
	Ready     int
	Available int
	Message   string
}

var deployments = kind[Deployment]{"deployments", func(d Deployment) index {
	return index{project: d.Project, lookup: slotKey(d.Environment, d.Service), place: d.Position}
}}

// slotKey names one service in one environment, as the slot's stream does.
func slotKey(e domain.EnvironmentID, s domain.ServiceID) string {
	return subject(domain.SlotStream(e, s))
}

var deploymentsProjection = &projection{
	name: "deployments", version: 2, streams: []string{"deployment"}, tables: []string{deployments.table},
	apply: func(r *rows, rec domain.Recorded, e domain.Event) {
		key := subject(rec.Stream)
		if e, ok := e.(domain.DeploymentRequested); ok {
			deployments.put(r, key, newDeployment(rec, e))
			return
		}
		deployments.change(r, key, func(d *Deployment) { d.apply(rec.RecordedAt, e) })
	},
}

func newDeployment(rec domain.Recorded, e domain.DeploymentRequested) Deployment {
	return Deployment{
		ID: e.Deployment, Project: e.Project, ProjectName: e.ProjectName, Environment: e.Environment,
		EnvironmentName: e.EnvironmentName, Namespace: e.Namespace, Service: e.Service, ServiceName: e.ServiceName,
		Release: e.Release, Reason: e.Reason, Phase: domain.Waiting, Progress: Progress{Wanted: e.Spec.Replicas},
		Position: rec.Cursor.Position, RequestedAt: rec.RecordedAt, WaitingSince: rec.RecordedAt,
	}
}

func (d *Deployment) apply(at time.Time, e domain.Event) {
	switch e := e.(type) {
	case domain.DeploymentQueued:
		d.Behind = e.Behind
	case domain.DeploymentStarted:
		d.start(e, at)
	case domain.RolloutProgressed:
		d.Progress = Progress{e.Wanted, e.Updated, e.Ready, e.Available, e.Message}
	case domain.AttemptLost:
		d.Phase, d.Running, d.WaitingSince = domain.Waiting, false, at
	case domain.DeploymentSucceeded:
		d.end(domain.Succeeded, at)
		d.Digest, d.Address, d.Trailing, d.Progress.Available = e.Digest, e.Address, e.Trailing, e.Available
	case domain.DeploymentFailed:
		goesOn := d.Running && d.Previous != nil // the same worker rolls back
		d.end(domain.Failed, at)
		d.Diagnosis, d.Running = &e.Diagnosis, goesOn
	case domain.RollbackStarted:
		d.rollBack(at)
	case domain.RolledBack:
		d.end(domain.RolledBackP, at)
		d.Progress.Available = e.Available
	case domain.RollbackFailed:
		d.end(domain.Failed, at)
		d.RollbackDiagnosis = &e.Diagnosis
	case domain.DeploymentSuperseded:
		d.end(domain.Superseded, at)
		d.SupersededBy = e.By
	}
}

func (d *Deployment) start(e domain.DeploymentStarted, at time.Time) {
	d.Phase, d.Attempt, d.Worker, d.StartedAt, d.Deadline = domain.Started, e.Attempt, e.Worker, at, e.Deadline.Time
	d.WaitingSince, d.Behind, d.Running = time.Time{}, "", true
	d.Attempts++
	if d.Undoing {
		d.Phase = domain.RollingBack
	}
	if e.Previous != nil {
		d.Previous = &e.Previous.Release
	}
}

// rollBack follows a failure: the worker at work goes on with it, else it waits for another one.
func (d *Deployment) rollBack(at time.Time) {
	d.Undoing, d.Phase, d.FinishedAt = true, domain.RollingBack, time.Time{}
	if !d.Running {
		d.Phase, d.WaitingSince = domain.Waiting, at
	}
}

func (d *Deployment) end(phase domain.Phase, at time.Time) {
	d.Phase, d.Running, d.FinishedAt, d.WaitingSince = phase, false, at, time.Time{}
}
