package projections

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/pipeops/pipeops/domain"
)

// ServiceStatus is what runs of one service in one environment.
type ServiceStatus struct {
	Project         domain.ProjectID
	ProjectName     string
	Environment     domain.EnvironmentID
	EnvironmentName string
	Namespace       string
	Service         domain.ServiceID
	ServiceName     string

	Release     *domain.Release // what serves; nil until a deployment has succeeded
	Digest      string          // of its image, as the pods run it
	Commit      string
	Address     string // within the cluster
	ActivatedAt time.Time
	Phase       domain.Phase // of the latest deployment; empty when there was none
	Latest      *Deployment  // that was asked for
	Quarantined []Quarantine
}

// Status gives what runs of a project (id or name) where, one row per environment and service.
func (q *Queries) Status(ctx context.Context, project string, at At) ([]ServiceStatus, error) {
	p, err := q.Project(ctx, project, at)
	if err != nil || p == nil {
		return nil, err
	}
	return q.StatusOf(ctx, []Project{*p}, at)
}

// StatusOf is Status of several projects, in their order. They must be as of the same moment.
func (q *Queries) StatusOf(ctx context.Context, found []Project, at At) ([]ServiceStatus, error) {
	if len(found) == 0 {
		return nil, nil
	}
	ids := make([]string, len(found))
	for i, p := range found {
		ids[i] = string(p.ID)
	}
	known, err := list(ctx, q, at, environmentsProjection, slots, "project = ANY ($2)", ids)
	if err != nil {
		return nil, err
	}
	byKey, latest := map[string]Slot{}, map[domain.DeploymentID]*Deployment{}
	for _, s := range known {
		byKey[slotKey(s.Environment, s.Service)] = s
		latest[s.Latest], latest[s.Deployment] = nil, nil
	}
	delete(latest, "")
	rows, err := q.DeploymentsOf(ctx, slices.Collect(maps.Keys(latest)), at)
	if err != nil {
		return nil, err
	}
	for i := range rows {
		latest[rows[i].ID] = &rows[i]
	}
	var out []ServiceStatus
	for _, p := range found {
		for _, e := range p.Environments {
			for _, s := range p.Services {
				out = append(out, statusOf(p, e, s, byKey[slotKey(e.ID, s.ID)], latest))
			}
		}
	}
	return out, nil
}

func deref[T any](p *T) (value T) {
	if p != nil {
		value = *p
	}
	return value
}

func statusOf(p Project, e domain.Environment, s domain.Service, slot Slot, of map[domain.DeploymentID]*Deployment) ServiceStatus {
	out := ServiceStatus{
		Project: p.ID, ProjectName: p.Name, Environment: e.ID, EnvironmentName: e.Name, Namespace: e.Namespace,
		Service: s.ID, ServiceName: s.Name, Release: slot.Release, ActivatedAt: slot.ActivatedAt,
		Latest: of[slot.Latest], Quarantined: slot.Quarantined,
	}
	if out.Latest != nil {
		out.Phase = out.Latest.Phase
	}
	if slot.Release != nil {
		out.Commit = slot.Release.Commit
	}
	if active := of[slot.Deployment]; active != nil {
		out.Digest, out.Address = active.Digest, active.Address
	}
	return out
}
