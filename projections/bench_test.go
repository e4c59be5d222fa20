package projections_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/projections"
)

// BenchmarkReplay tells how many events a second a rebuild applies, history rows and indexes and the comparison with
// the rows in use among it: of a log in which every push is built in twenty events and deployed in eight.
func BenchmarkReplay(b *testing.B) {
	w := newWorld(b)
	project := w.project("app")
	const pushes = 1500
	for i := range pushes {
		w.delivered(project, i)
	}
	head := w.head().Position
	p := w.projector(w.store)
	running(b, p.Run)
	until(b, func() bool { return len(unready(b, p)) == 0 })
	ask(b, p.Queries(), projections.At{AtLeast: w.head()})
	for _, name := range []string{"builds", "timeline"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				rebuilt, err := p.Verify(b.Context(), name, nil)
				must(b, err)
				b.ReportMetric(float64(rebuilt.Rows), "rows")
			}
			b.ReportMetric(float64(head)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// delivered writes what the log holds of a push that went live, without asking the deciders.
func (w *world) delivered(project domain.ProjectID, n int) {
	w.t.Helper()
	sum := sha256.Sum256([]byte(strconv.Itoa(n)))
	commit, digest := hex.EncodeToString(sum[:20]), "sha256:"+hex.EncodeToString(sum[:])
	push, build := domain.PushID(newID("psh")), domain.BuildID(newID("bld"))
	worker, attempt := domain.WorkerID("wrk_0190a1b2-3c4d-7e5f-8a9b-0c1d2e3f4a5b"), domain.NewAttemptID(string(build), 1)
	built := []domain.Event{
		domain.BuildRequested{
			Build: build, Project: project, ProjectName: "app", Push: push, Repository: "https://github.com/acme/shop.git",
			Ref: "refs/heads/main", Branch: "main", Commit: commit, Services: []domain.ServiceID{"svc_0190a1b2-3c4d-7e5f-8a9b-0c1d2e3f4a5b"},
			Plan: domain.BuildPlan{Dockerfile: "Dockerfile", Args: map[string]string{"NODE_ENV": "production"}}, Image: "ghcr.io/acme/app", Tag: commit, ConfigVersion: 3,
		},
		domain.BuildStarted{Attempt: attempt, Worker: worker, Incarnation: uuid.NewString()},
		domain.SourceFetched{Commit: commit, Files: 312, Bytes: 1 << 20, Duration: 800},
		domain.BuildArgsFiltered{Passed: []string{"NODE_ENV"}, Dropped: []string{}},
	}
	for i := range 11 {
		name := fmt.Sprintf("[build %d/11] RUN npm ci --omit=dev && npm run build -- --mode production", i+1)
		if i < 5 {
			built = append(built, domain.LayerCached{Digest: digest, Name: name})
		} else {
			built = append(built, domain.LayerBuilt{Digest: digest, Name: name, Duration: 4200})
		}
	}
	built = append(built, domain.ImageBuilt{Steps: 11, Cached: 5, Duration: 31000},
		domain.ImagePushed{Reference: "ghcr.io/acme/app@" + digest, Digest: digest, Platforms: []string{"linux/amd64"}, SizeBytes: 93 << 20},
		domain.ImageTagged{Reference: "ghcr.io/acme/app:" + commit, Digest: digest}, domain.WorkspaceRemoved{},
		domain.BuildSucceeded{Digest: digest, Duration: 45000})
	deployment := domain.DeploymentID(newID("dep"))
	rollout := domain.NewAttemptID(string(deployment), 1)
	deployed := []domain.Event{
		domain.DeploymentRequested{
			Deployment: deployment, Project: project, ProjectName: "app", Environment: "env_0190a1b2-3c4d-7e5f-8a9b-0c1d2e3f4a5b", EnvironmentName: "production",
			Namespace: "app-production-a1b2c3", Service: "svc_0190a1b2-3c4d-7e5f-8a9b-0c1d2e3f4a5b", ServiceName: "app",
			Release: domain.Release{ID: "rel_1", Build: build, Commit: commit, Image: "ghcr.io/acme/app@" + digest, ConfigVersion: 3}, Spec: domain.DefaultSpec(), Reason: "push",
		},
		domain.DeploymentStarted{Attempt: rollout, Worker: worker, Deadline: domain.At(w.now.Add(10 * time.Minute))},
		domain.ManifestsApplied{Namespace: "app-production-a1b2c3", Objects: []string{"Deployment/app", "Service/app"}, Changed: 1},
		domain.RolloutProgressed{Wanted: 2, Updated: 1},
		domain.RolloutProgressed{Wanted: 2, Updated: 1, Ready: 1, Available: 1},
		domain.RolloutProgressed{Wanted: 2, Updated: 2, Ready: 2, Available: 2},
		domain.DeploymentSucceeded{Digest: digest, Available: 2, Address: "app.app-production-a1b2c3.svc:80", Duration: 12000},
	}
	_, err := w.store.Append(w.t.Context(), eventstore.Append{Writes: []eventstore.Write{
		w.written(project, domain.PushStream(project, "github", strconv.Itoa(n)), domain.PushReceived{
			Push: push, Project: project, Source: "github", Delivery: strconv.Itoa(n), Ref: "refs/heads/main", Branch: "main", Commit: commit,
		}),
		w.written(project, domain.RefStream(project, "refs/heads/main"), domain.RefMoved{Project: project, Ref: "refs/heads/main", After: commit, Push: push, Body: commit}),
		w.written(project, domain.BuildStream(build), built...),
		w.written(project, domain.DeploymentStream(deployment), deployed...),
	}})
	must(w.t, err)
}

func (w *world) written(project domain.ProjectID, stream domain.Stream, events ...domain.Event) eventstore.Write {
	out := eventstore.Write{Stream: stream, Expected: eventstore.AnyVersion}
	for _, e := range events {
		body, err := json.Marshal(e)
		must(w.t, err)
		out.Events = append(out.Events, eventstore.NewEvent{
			ID: uuid.NewString(), Type: domain.TypeOf(e), SchemaVersion: 1, ProjectID: project, OccurredAt: w.now, Body: body,
			Actor: "github", CorrelationID: "psh_0190a1b2-3c4d-7e5f-8a9b-0c1d2e3f4a5b",
		})
	}
	return out
}
