package handlers_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/commands"
)

// As while an upgrade is under way: operations of a newer version stand in the day's stream.
func TestOperationsAreRecordedBesideThoseOfANewerVersion(t *testing.T) {
	t.Parallel()
	w := newWorld(t, inProcess(t))
	p, _ := w.core()
	at := time.Now()
	execute := func(cmd domain.Command) (commands.Result, error) {
		return p.commands.Execute(t.Context(), cmd, commands.Meta{CommandID: uuid.NewString(), Actor: "test", At: at})
	}
	newer := func(stream domain.Stream, event string, version int) {
		t.Helper()
		if _, err := p.store.Append(t.Context(), eventstore.Append{Writes: []eventstore.Write{{
			Stream: stream, Expected: eventstore.AnyVersion, Events: []eventstore.NewEvent{{
				ID: uuid.NewString(), Type: event, SchemaVersion: version, Body: []byte(`{}`), OccurredAt: at, Actor: "test", CorrelationID: "newer",
			}},
		}}}); err != nil {
			t.Fatal(err)
		}
	}
	erase := domain.EraseSubject{Subject: "act_1", Reason: "request 4711", Keys: 1, At: at}
	newer(domain.OperationStream(at), "MoonLanded", 1)
	got, err := execute(erase)
	if err != nil || len(got.Events) != 1 || got.Events[0].Version != 2 {
		t.Errorf("got %+v, %v", got, err)
	}
	newer(domain.OperationStream(at), "TokenCreated", 99)
	for what, cmd := range map[string]domain.Command{"a schema version": erase, "a type where there is a state": domain.CreateProject{ID: "prj_1", Name: "hello"}} {
		newer(domain.ProjectStream("prj_1"), "MoonLanded", 1)
		if _, err := execute(cmd); !isNewer(err) {
			t.Errorf("%s that is unknown: got %v, want *domain.UnknownTypeError", what, err)
		}
	}
}

func isNewer(err error) bool {
	_, newer := errors.AsType[*domain.UnknownTypeError](err)
	return newer
}
