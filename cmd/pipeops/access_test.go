package main

import (
	"log/slog"
	"maps"
	"slices"
	"testing"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/config"
	"github.com/pipeops/pipeops/internal/testenv"
)

// newAccess gives the access of a control plane over a real database; nothing runs on it but its store.
func newAccess(t *testing.T) access {
	t.Helper()
	url := testenv.Postgres(t)
	c, err := openCore(t.Context(), config.Config{Home: t.TempDir(), DatabaseURL: url, MigrateURL: url}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.store.Close)
	return access{c}
}

func (a access) decide(t *testing.T, project domain.ProjectID, cmd domain.Command) {
	t.Helper()
	if _, err := a.commands.Execute(t.Context(), cmd, commands.Meta{CommandID: newID("cmd"), Actor: "test", At: now(), Project: project}); err != nil {
		t.Fatal(err)
	}
}

// begins gives the first attempt at a build of a new project.
func (a access) begins(t *testing.T, name, repository string) (domain.ProjectID, domain.AttemptID) {
	t.Helper()
	project, build := domain.ProjectID(newID("prj")), domain.BuildID(newID("bld"))
	a.decide(t, project, domain.CreateProject{
		ID: project, Name: name, Settings: domain.ProjectSettings{Repository: repository, Branch: "main", Registry: "reg.test"},
		Services: []domain.NewService{{ID: "svc_1", Name: name, Spec: domain.DefaultSpec()}},
	})
	a.decide(t, project, domain.RequestBuilds{
		Push: domain.PushReceived{Push: "psh_1", Project: project, Ref: "refs/heads/main", Branch: "main", Commit: "abc"}, IDs: []domain.BuildID{build},
	})
	a.decide(t, project, domain.ClaimBuild{Build: build, Worker: "wrk_1", Incarnation: "i"})
	return project, domain.NewAttemptID(string(build), 1)
}

func TestAnAttemptIsGrantedOnlyWhatOpensItsOwnSource(t *testing.T) {
	t.Parallel()
	a := newAccess(t)
	granted := func(project domain.ProjectID, attempt domain.AttemptID) map[string]string {
		t.Helper()
		secrets, err := a.jobSecrets(t.Context(), attempt, project, bus.KindBuild)
		if err != nil {
			t.Fatal(err)
		}
		return secrets
	}
	ours, attempt := a.begins(t, "ours", "")
	if got := granted(ours, attempt); !slices.Equal(slices.Collect(maps.Keys(got)), []string{"git-token"}) {
		t.Errorf("for our own remote: got %v", got)
	}
	public, attempt := a.begins(t, "public", "https://github.com/acme/shop.git")
	if got := granted(public, attempt); len(got) != 0 {
		t.Errorf("for a public repository elsewhere: got %v", got)
	}
	if err := a.secrets.Put(t.Context(), public, domain.GitCredential("https://git.example/acme/shop"), 1, []byte("of another host")); err != nil {
		t.Fatal(err)
	}
	if got := granted(public, attempt); len(got) != 0 {
		t.Errorf("with a credential for another host: got %v", got)
	}
	if err := a.secrets.Put(t.Context(), public, domain.GitCredential("https://github.com/"), 1, []byte("ada:token")); err != nil {
		t.Fatal(err)
	}
	if got := granted(public, attempt); len(got) != 1 || got["git-credential"] != "ada:token" {
		t.Errorf("with a credential for the host: got %v", got)
	}
}

func TestATokenToFetchIsGoodWhileItsAttemptRuns(t *testing.T) {
	t.Parallel()
	a := newAccess(t)
	project, attempt := a.begins(t, "ours", "")
	other, _ := a.begins(t, "other", "")
	token := a.newFetchToken(attempt, project)
	may := func(token string, project domain.ProjectID) string {
		t.Helper()
		actor, err := a.MayFetch(t.Context(), token, project)
		if err != nil {
			t.Fatal(err)
		}
		return actor
	}
	if got := may(token, project); got != string(attempt) {
		t.Errorf("while it runs: got %q", got)
	}
	for name, got := range map[string]string{
		"another project": may(token, other), "a changed token": may(token+"0", project),
		"an attempt that never was": may(a.newFetchToken("bld_none.1", project), project),
	} {
		if got != "" {
			t.Errorf("%s: let in as %q", name, got)
		}
	}
	a.decide(t, project, domain.LoseBuildAttempt{Attempt: attempt, Reason: "gone"})
	if got := may(token, project); got != "" {
		t.Errorf("after it ended: let in as %q", got)
	}
}
