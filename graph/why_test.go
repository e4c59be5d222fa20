package graph_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/pipeops/pipeops/domain"
)

const whyQuery = `query($project: ID, $environment: ID!, $asOf: Moment, $at: Cursor) { why(project: $project, environment: $environment, asOf: $asOf, atLeast: $at) {
	project projectName environment environmentName service serviceName asOf release { id build commit image configVersion } since more
	steps { ...Step } beside { subject commit outcome text by steps { ...Step } } } }
	fragment Step on WhyStep { cursor event type at subject text who actor because diagnosis { code title error reason fixes run docs log step } }`

// why asks, and reads the answer as the command line does.
func (w *world) why(vars map[string]any) *domain.Why {
	w.t.Helper()
	return ask[struct{ Why *domain.Why }](w, whyQuery, vars).Why
}

// told is the chain without what differs from run to run.
func told(steps []domain.Link) string {
	var b strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&b, "%s %s (%s)\n", s.Cursor, s.Text, s.Who)
	}
	return b.String()
}

func TestWhatServesIsExplainedBackToThePushAndThePerson(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("hello")
	environment := ask[struct{ Project projectIDs }](w, `query($at: Cursor) { project(name: "hello", atLeast: $at) { environments { id } } }`,
		map[string]any{"at": w.head().String()}).Project.Environments[0].ID
	if empty := w.why(map[string]any{"environment": environment, "at": w.head().String()}); empty == nil || empty.Release != nil || len(empty.Steps)+len(empty.Beside) > 0 {
		t.Errorf("before the first push: got %+v", empty)
	}
	first, build := w.push(project)
	w.build(project, build)
	w.deployment(project, domain.DeploymentSucceeded{Digest: "sha256:one", Available: 1, Address: "hello.svc:80"})
	quiet := w.head()
	var superseded []domain.BuildID
	for range 3 {
		_, b := w.push(project)
		superseded = append(superseded, b)
	}
	failing, build := w.push(project)
	for _, b := range superseded {
		w.do(project, domain.SupersedeBuild{Build: b, By: build})
	}
	w.build(project, build)
	bad := w.deployment(project, domain.DeploymentFailed{Diagnosis: broken}, domain.RolledBack{To: "rel_1", Available: 1})

	now := w.why(map[string]any{"project": "hello", "environment": "production", "at": w.head().String()})
	if now.Release == nil || now.Release.Commit != fmt.Sprintf("%040d", 1) || now.ProjectName != "hello" || now.ServiceName != "hello" || now.AsOf != w.head() {
		t.Fatalf("got %+v", now)
	}
	want := `1.17 0000000 serves, with configuration 3 (deployer wrk_1)
1.16 rollout succeeded: 1 pod available at hello.svc:80 (0.0 s) (deployer wrk_1)
1.14 rollout started, attempt 1 (act_1)
1.12 deployment of 0000000 to production asked for, with configuration 3 (act_1)
1.11 build succeeded: sha256:000000000000 (0.0 s) (builder wrk_1)
1.8 build started, attempt 1 (act_1)
1.7 build of 0000000 asked for, with configuration 3 (act_1)
1.5 push of 0000000 to main, "fix" (github, delivery 1) (ada)
1.4 configuration 3: environment production added (token …` + w.id[len(w.id)-6:] + `)
`
	if got := told(now.Steps); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	var beside []string
	for _, a := range now.Beside {
		beside = append(beside, string(a.Outcome)+" "+a.Text)
	}
	if got := strings.Join(beside, "\n"); got != `ROLLED_BACK rolled back by itself: it broke
SUPERSEDED superseded: 0000000 was pushed while its build still waited
SUPERSEDED superseded: 0000000 was pushed while its build still waited
SUPERSEDED superseded: 0000000 was pushed while its build still waited` {
		t.Errorf("beside: got\n%s", got)
	}
	if a := now.Beside[0]; a.Subject != string(failing) || !strings.Contains(told(a.Steps), "rolled back: the release before serves alone again") ||
		!strings.Contains(now.Text(w.now.Location()), "❌ it broke") {
		t.Errorf("got %+v", a)
	}
	for _, steps := range append([][]domain.Link{now.Steps}, now.Beside[0].Steps, now.Beside[3].Steps) {
		for _, s := range steps { // all of it stands in the log
			found, err := w.store.Find(t.Context(), s.Event)
			if err != nil || len(found) != 1 || found[0].Cursor != s.Cursor || found[0].Type != s.Type {
				t.Errorf("%+v: got %+v, %v", s, found, err)
			}
		}
	}
	then := w.why(map[string]any{"environment": environment, "asOf": quiet.String()})
	if told(then.Steps) != want || len(then.Beside) != 0 || then.AsOf != quiet {
		t.Errorf("as of %s: got %+v", quiet, then)
	}

	ask[any](w, `mutation { deploy(input: {project: "hello", build: "`+string(build)+`", liftQuarantine: true}) { cursor } }`, nil)
	w.deployment(project, domain.DeploymentSucceeded{Digest: "sha256:five", Available: 1, Address: "hello.svc:80"})
	ask[any](w, `mutation { rollback(input: {project: "hello"}) { cursor } }`, nil)
	w.deployment(project, domain.DeploymentSucceeded{Digest: "sha256:one", Available: 1, Address: "hello.svc:80"})
	_, _, err := w.subjects.Erase(t.Context(), "p1")
	must(t, err)
	back := w.why(map[string]any{"environment": environment, "at": w.head().String()})
	steps := told(back.Steps)
	if !strings.Contains(steps, "rollback by hand to 0000000 asked for, with configuration 3 that it ran with (token ") ||
		!strings.Contains(steps, "push of 0000000 to main, (erased) (github, delivery 1) ((erased))") || back.Steps[len(back.Steps)-2].Subject != string(first) {
		t.Errorf("after the roll-back by hand: got\n%s", steps)
	}
	if a := back.Beside[0]; !strings.Contains(a.Text, "it served until it was rolled back by hand to 0000000, by token ") || !strings.Contains(told(a.Steps), "quarantine of the release lifted") {
		t.Errorf("got %+v", a)
	}
	if a := back.Beside[1]; a.Subject != string(failing) || !strings.Contains(told(a.Steps), "goes back by itself") || !strings.Contains(fmt.Sprint(a), string(bad)) {
		t.Errorf("got %+v", a)
	}
	for _, c := range []struct{ code, vars string }{
		{"BAD_INPUT", `{"environment": "production"}`},
		{"NOT_FOUND", `{"environment": "production", "project": "nobody"}`},
		{"NOT_FOUND", `{"environment": "moon", "project": "hello"}`},
	} {
		var vars map[string]any
		must(t, json.Unmarshal([]byte(c.vars), &vars))
		w.refused(c.code, whyQuery, vars)
	}
	if none := w.why(map[string]any{"environment": "env_none"}); none != nil {
		t.Errorf("got %+v, want null", none)
	}
}

type projectIDs struct{ Environments []struct{ ID string } }
