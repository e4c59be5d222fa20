package projections

import (
	"slices"
	"strings"
	"time"

	"github.com/pipeops/pipeops/domain"
)

// Slot is a row of the read model environments: one service in one environment, as its slot's stream tells. What
// people want to know of it besides, stands in the rows of its project and of its deployments: see ServiceStatus.
type Slot struct {
	Project     domain.ProjectID
	Environment domain.EnvironmentID
	Service     domain.ServiceID

	Release     *domain.Release     // what serves; nil until a deployment has succeeded
	Deployment  domain.DeploymentID // that put it there
	ActivatedAt time.Time
	Latest      domain.DeploymentID // that was asked for
	Holder      domain.DeploymentID // that has the slot; empty: it is free
	Quarantined []Quarantine        // oldest first

	Position int64 // of its first event
}

// Quarantine is a release that failed, and is barred until someone lifts it.
type Quarantine struct {
	Release domain.ReleaseID
	Why     string
}

var slots = kind[Slot]{"environments", func(s Slot) index {
	return index{project: s.Project, lookup: string(s.Environment), place: s.Position}
}}

var environmentsProjection = &projection{
	name: "environments", version: 1, streams: []string{"slot"}, tables: []string{slots.table},
	apply: func(r *rows, rec domain.Recorded, e domain.Event) {
		key := subject(rec.Stream)
		s, known := slots.get(r, key)
		if !known {
			environment, service, _ := strings.Cut(key, "/")
			s = Slot{
				Project: rec.ProjectID, Environment: domain.EnvironmentID(environment), Service: domain.ServiceID(service),
				Position: rec.Cursor.Position,
			}
		}
		s.apply(rec.RecordedAt, e)
		slots.put(r, key, s)
	},
}

func (s *Slot) apply(at time.Time, e domain.Event) {
	switch e := e.(type) {
	case domain.DeploymentAdmitted:
		s.Latest = e.Deployment
	case domain.DeploymentClaimed:
		s.Holder = e.Deployment
	case domain.DeploymentReleased:
		if s.Holder == e.Deployment {
			s.Holder = ""
		}
	case domain.ReleaseActivated:
		s.Release, s.Deployment, s.ActivatedAt = &e.Release, e.Deployment, at
	case domain.ReleaseQuarantined:
		s.lift(e.Release)
		s.Quarantined = append(s.Quarantined, Quarantine{e.Release, e.Why})
	case domain.QuarantineLifted:
		s.lift(e.Release)
	}
}

func (s *Slot) lift(release domain.ReleaseID) {
	s.Quarantined = slices.DeleteFunc(s.Quarantined, func(q Quarantine) bool { return q.Release == release })
}
