package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pipeops/pipeops/domain"
)

// rounds is how often each crash is tried: 3, or PIPEOPS_CHAOS_ROUNDS.
func rounds(t testing.TB) int {
	t.Helper()
	text := os.Getenv("PIPEOPS_CHAOS_ROUNDS")
	if text == "" {
		return 3
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("PIPEOPS_CHAOS_ROUNDS: %q isn't a number from 1", text)
	}
	return n
}

// seeded gives a random source; PIPEOPS_SEED repeats a run.
func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any seed will do
	if text := os.Getenv("PIPEOPS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("PIPEOPS_SEED: %q isn't a number", text)
		}
	}
	t.Logf("PIPEOPS_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's dice
}

// slowBuild has steps that take a while, so that a kill meets them.
var slowBuild = map[string]string{"Dockerfile": strings.Replace(dockerfile, "ARG PIPEOPS", "RUN sleep 0.7\nARG PIPEOPS", 1) + "# slow\n"}

// TestKilledProcesses kills each kind of process at random steps between the push and the release, starts it again, and
// checks that nothing was lost, done twice, or left behind.
func TestKilledProcesses(t *testing.T) {
	s := newSystem(t)
	dice := seeded(t)
	a := s.newApp("crash")
	path := a.events(a.push("serve", slowBuild), 4*time.Minute) // that a push takes when nothing is killed
	for _, victim := range []struct {
		name        string
		first, last string // events between which it is killed
		of          func() []*process
	}{
		{"serve", "PushReceived", "DeploymentSucceeded", func() []*process { return s.serves }},
		{"runner", "BuildStarted", "WorkspaceRemoved", func() []*process { return s.runners }},
		{"deployer", "DeploymentStarted", "DeploymentSucceeded", func() []*process { return s.deployers }},
	} {
		for round := range rounds(t) {
			steps := indexOf(path, victim.first) + dice.IntN(indexOf(path, victim.last)-indexOf(path, victim.first))
			later := time.Duration(dice.Int64N(int64(500 * time.Millisecond)))
			either := dice.IntN(2)
			t.Run(fmt.Sprintf("%s/%d", victim.name, round), func(t *testing.T) {
				b := a.in(t)
				commit := b.push("serve", slowBuild)
				seen := b.until(commit, 4*time.Minute, func(lines []domain.Line) bool { return len(lines) > steps })
				waitFor(t.Context(), later)
				p := b.workerIn(seen, victim.of(), either)
				t.Logf("kill -9 %s, %s after %s (%d)", p.name, later, seen[steps].Type, steps)
				p.kill()
				p.start(binary(t))
				b.ready()
				b.settled(commit)
			})
		}
	}
}

func indexOf(lines []domain.Line, eventType string) int { return slices.Index(types(lines), eventType) }

// TestFrozenRunner freezes a runner for a minute in mid build: another one takes the build over, and the frozen one
// wakes up without doing harm.
func TestFrozenRunner(t *testing.T) {
	s := newSystem(t)
	dice := seeded(t)
	a := s.newApp("frozen")
	a.events(a.push("serve", slowBuild), 4*time.Minute)
	commit := a.push("serve", slowBuild)
	seen := a.until(commit, time.Minute, func(lines []domain.Line) bool { return lines[len(lines)-1].Type == "SourceFetched" })
	p := a.workerIn(seen, s.runners, 0)
	waitFor(t.Context(), time.Duration(dice.Int64N(int64(2*time.Second))))
	t.Logf("freeze %s", p.name)
	p.signal(syscall.SIGSTOP)
	frozen := time.Now()
	a.settledBut(commit, p)
	waitFor(t.Context(), time.Minute-time.Since(frozen))
	p.signal(syscall.SIGCONT)
	a.settled(commit)
}

// workerIn finds the process that has the newest attempt in the events; where none of them has, the given one.
func (a *sampleApp) workerIn(seen []domain.Line, of []*process, otherwise int) *process {
	a.t.Helper()
	for _, l := range slices.Backward(seen) {
		var d struct{ Worker string }
		if l.Type != "BuildStarted" && l.Type != "DeploymentStarted" || json.Unmarshal(l.Data, &d) != nil {
			continue
		}
		for _, p := range of {
			if key, err := os.ReadFile(filepath.Join(p.home, "key.json")); err == nil && strings.Contains(string(key), d.Worker) {
				return p
			}
		}
	}
	return of[otherwise]
}

// settled waits for the release of a commit and checks what must hold then.
func (a *sampleApp) settled(commit string) { a.settledBut(commit, nil) }

func (a *sampleApp) settledBut(commit string, frozen *process) {
	a.t.Helper()
	lines := a.events(commit, 5*time.Minute)
	if last := lines[len(lines)-1].Type; last != "DeploymentSucceeded" {
		a.t.Fatalf("ended in %s: %v", last, types(lines))
	}
	if n := count(lines, "ImagePushed"); n != 1 {
		a.t.Errorf("%d × ImagePushed in %v", n, types(lines))
	}
	var pushed struct{ Digest string }
	for _, l := range lines {
		if l.Type == "ImagePushed" {
			if err := json.Unmarshal(l.Data, &pushed); err != nil {
				a.t.Fatal(err)
			}
		}
	}
	a.t.Logf("%v", types(lines))
	eventually(a.t, 30*time.Second, "everything is settled", func() error {
		row := a.status()
		if row.Digest != pushed.Digest || row.Commit != commit || row.Phase != "SUCCEEDED" {
			return fmt.Errorf("status is %+v, want digest %s", row, pushed.Digest)
		}
		if got, err := get(a.t.Context(), a.address()); got != commit {
			return fmt.Errorf("serves %q, %w; want %s", got, err, commit)
		}
		if err := a.leftovers(frozen); err != nil {
			return err
		}
		return a.idle()
	})
}

// idle says whether no row of the project stays unfinished.
func (a *sampleApp) idle() error {
	var out struct {
		Builds      []struct{ ID, Phase string }
		Deployments []struct{ ID, Phase string }
	}
	if err := a.clients[1].do(a.t.Context(), `query($p: ID!) { builds(project: $p) { id phase } deployments(project: $p) { id phase } }`, map[string]any{"p": a.name}, &out); err != nil {
		return err
	}
	for _, row := range append(out.Builds, out.Deployments...) {
		if row.Phase == "RUNNING" || row.Phase == "WAITING" || row.Phase == "ROLLING_BACK" {
			return fmt.Errorf("%s is %s", row.ID, row.Phase)
		}
	}
	return nil
}
