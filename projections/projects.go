package projections

import (
	"time"

	"github.com/pipeops/pipeops/domain"
)

// Project is a row of the read model projects: the project as the domain folds it.
type Project struct {
	domain.Project

	Position  int64 // of its first event
	CreatedAt time.Time
	UpdatedAt time.Time
}

var projects = kind[Project]{"projects", func(p Project) index {
	return index{project: p.ID, lookup: p.Name, place: p.Position}
}}

var projectsProjection = &projection{
	name: "projects", version: 1, streams: []string{"project"}, tables: []string{projects.table},
	apply: func(r *rows, rec domain.Recorded, e domain.Event) {
		event, ok := e.(domain.ProjectEvent)
		if !ok {
			return
		}
		key := subject(rec.Stream)
		p, known := projects.get(r, key)
		if !known {
			p.Position, p.CreatedAt = rec.Cursor.Position, rec.RecordedAt
		}
		p.Evolve(event)
		p.UpdatedAt = rec.RecordedAt
		projects.put(r, key, p)
	},
}

// subject is what a stream is about: its name without the kind.
func subject(s domain.Stream) string { return string(s)[len(s.Kind())+1:] }
