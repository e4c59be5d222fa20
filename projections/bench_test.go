package projections_test

import (
	"testing"

	"github.com/google/uuid"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/projections"
)

// BenchmarkReplay tells how many events a second a rebuild applies, of builds with many steps.
func BenchmarkReplay(b *testing.B) {
	w := newWorld(b)
	project := w.project("app")
	const builds, steps = 40, 250
	for range builds {
		w.push(project, "refs/heads/main")
		events := make([]eventstore.NewEvent, steps)
		for i := range events {
			events[i] = eventstore.NewEvent{
				ID: uuid.NewString(), Type: "LayerBuilt", SchemaVersion: 1, ProjectID: project, OccurredAt: w.now,
				Body: []byte(`{"digest":"sha256:1","name":"[1/2] RUN make","durationMs":1200}`),
			}
		}
		_, err := w.store.Append(b.Context(), eventstore.Append{Writes: []eventstore.Write{
			{Stream: domain.BuildStream(w.builds[len(w.builds)-1]), Expected: eventstore.AnyVersion, Events: events},
		}})
		must(b, err)
	}
	p := w.projector(w.store)
	running(b, p.Run)
	ask(b, p.Queries(), projections.At{AtLeast: w.head()})
	for _, name := range []string{"builds", "timeline"} {
		b.Run(name, func(b *testing.B) {
			var applied int64
			for b.Loop() {
				rebuilt, err := p.Rebuild(b.Context(), name)
				must(b, err)
				applied += rebuilt.Cursor.Position
			}
			b.ReportMetric(float64(applied)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
