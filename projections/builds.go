package projections

import (
	"path"
	"time"

	"github.com/pipeops/pipeops/domain"
)

// Build is a row of the read model builds. Times are those of recording, which never go back; a zero time says that
// it hasn't happened.
type Build struct {
	ID          domain.BuildID     `json:",omitzero"`
	Project     domain.ProjectID   `json:",omitzero"`
	ProjectName string             `json:",omitzero"`
	Push        domain.PushID      `json:",omitzero"`
	Repository  string             `json:",omitzero"` // empty: the built-in git remote
	Ref         string             `json:",omitzero"`
	Branch      string             `json:",omitzero"`
	Commit      string             `json:",omitzero"`
	Services    []domain.ServiceID `json:",omitzero"` // that share the image
	Dockerfile  string             `json:",omitzero"` // within the repository

	Phase    domain.Phase     `json:",omitzero"`
	Attempts int              `json:",omitzero"` // so far
	Attempt  domain.AttemptID `json:",omitzero"` // the newest
	Worker   domain.WorkerID  `json:",omitzero"` // of the newest attempt

	Image     string   `json:",omitzero"` // repository, without tag
	Tag       string   `json:",omitzero"`
	Reference string   `json:",omitzero"` // by digest; empty until it is pushed
	Digest    string   `json:",omitzero"`
	Platforms []string `json:",omitzero"`
	SizeBytes int64    `json:",omitzero"`

	Steps  int    `json:",omitzero"` // of the Dockerfile, done in the newest attempt, cached ones among them
	Cached int    `json:",omitzero"` // of these
	Step   string `json:",omitzero"` // done last

	Diagnosis    *domain.Diagnosis `json:",omitzero"`
	SupersededBy domain.BuildID    `json:",omitzero"`

	Position     int64     `json:",omitzero"` // of its first event
	RequestedAt  time.Time `json:",omitzero"`
	WaitingSince time.Time `json:",omitzero"` // zero unless it waits for a worker
	StartedAt    time.Time `json:",omitzero"` // of the newest attempt
	FinishedAt   time.Time `json:",omitzero"`
}

var builds = kind[Build]{"builds", func(b Build) index {
	return index{project: b.Project, lookup: b.Commit, place: b.Position}
}}

var buildsProjection = &projection{
	name: "builds", version: 2, streams: []string{"build"}, tables: []string{builds.table},
	apply: func(r *rows, rec domain.Recorded, e domain.Event) {
		key := subject(rec.Stream)
		if e, ok := e.(domain.BuildRequested); ok {
			builds.put(r, key, newBuild(rec, e))
			return
		}
		builds.change(r, key, func(b *Build) { b.apply(rec.RecordedAt, e) })
	},
}

func newBuild(rec domain.Recorded, e domain.BuildRequested) Build {
	return Build{
		ID: e.Build, Project: e.Project, ProjectName: e.ProjectName, Push: e.Push, Repository: e.Repository,
		Ref: e.Ref, Branch: e.Branch, Commit: e.Commit, Services: e.Services,
		Dockerfile: path.Join(e.Plan.RootDir, e.Plan.Dockerfile), Image: e.Image, Tag: e.Tag, Phase: domain.Waiting,
		Position: rec.Cursor.Position, RequestedAt: rec.RecordedAt, WaitingSince: rec.RecordedAt,
	}
}

func (b *Build) apply(at time.Time, e domain.Event) {
	switch e := e.(type) {
	case domain.BuildStarted:
		b.Phase, b.Attempt, b.Worker, b.StartedAt, b.WaitingSince = domain.Started, e.Attempt, e.Worker, at, time.Time{}
		b.Attempts++
		b.Steps, b.Cached, b.Step = 0, 0, ""
	case domain.LayerCached:
		b.Steps++
		b.Cached++
		b.Step = e.Name
	case domain.LayerBuilt:
		b.Steps++
		b.Step = e.Name
	case domain.ImageBuilt:
		b.Steps, b.Cached = e.Steps, e.Cached
	case domain.ImagePushed:
		b.Reference, b.Digest, b.Platforms, b.SizeBytes = e.Reference, e.Digest, e.Platforms, e.SizeBytes
	case domain.AttemptLost:
		b.Phase, b.WaitingSince = domain.Waiting, at
	case domain.BuildSucceeded:
		b.end(domain.Succeeded, at)
	case domain.BuildFailed:
		b.end(domain.Failed, at)
		b.Diagnosis = &e.Diagnosis
	case domain.BuildSuperseded:
		b.end(domain.Superseded, at)
		b.SupersededBy = e.By
	}
}

func (b *Build) end(phase domain.Phase, at time.Time) {
	b.Phase, b.FinishedAt, b.WaitingSince = phase, at, time.Time{}
}
