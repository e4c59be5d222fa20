package gitremote

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/handlers/commands"
)

// Hooks that git runs, and what they are told by the environment.
const (
	preReceive  = "pre-receive"
	postReceive = "post-receive"

	hookProgramEnv = "PIPEOPS_HOOK_PROGRAM"
	hookSocketEnv  = "PIPEOPS_HOOK_SOCKET"
	hookPushEnv    = "PIPEOPS_HOOK_PUSH"
)

const (
	pushPrefix = "req"   // of the ids of push requests
	maxRefs    = 1000    // refs moved by one push
	maxUpdates = 1 << 20 // bytes of the refs that a push moves
	hookWithin = time.Minute
)

// RunHook is what git's hook "pipeops hook <name>" does: it hands the refs on
// stdin to the serving process and prints the answer for the one who pushes.
// It gives the exit code; not 0 refuses the push (pre-receive only).
func RunHook(name string, stdin io.Reader, stdout io.Writer, getenv func(string) string) int {
	body, err := io.ReadAll(io.LimitReader(stdin, maxUpdates+1))
	if err == nil && len(body) > maxUpdates && name == preReceive {
		say(stdout, "pipeops: this push moves too many refs. Push fewer at a time.")
		return 1
	}
	var answer []byte
	status := 0
	if err == nil {
		answer, status, err = callServer(name, body, getenv)
	}
	switch {
	case err == nil && status == http.StatusOK:
		_, _ = stdout.Write(answer)
		return 0
	case name == postReceive: // the refs are moved: the reflogs have it
		say(stdout, laterText)
		return 0
	case err == nil && status == http.StatusConflict:
		_, _ = stdout.Write(answer)
		return 1
	}
	say(stdout, "pipeops: the server doesn't answer; nothing was changed. Push again in a minute.")
	return 1
}

// say prints for who pushed, who may have gone.
func say(stdout io.Writer, text string) { _, _ = io.WriteString(stdout, text+"\n") }

const laterText = "pipeops: the push is accepted but can't be recorded right now; it is recorded later, by itself."

func callServer(name string, body []byte, getenv func(string) string) (answer []byte, status int, err error) {
	socket := getenv(hookSocketEnv)
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://pipeops/"+name, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Pipeops-Push", getenv(hookPushEnv))
	res, err := (&http.Client{Transport: transport, Timeout: hookWithin}).Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer res.Body.Close() //nolint:errcheck // only read
	answer, err = io.ReadAll(res.Body)
	return answer, res.StatusCode, err
}

// push is a push request that is under way.
type push struct {
	id      string // "req_…", in the reflog as the e-mail of who moved the ref
	project Project
	repo    *repository
	actor   string
	at      time.Time

	mu       sync.Mutex
	outcomes map[string]outcome // by ref
}

// outcome is what became of a moved ref.
type outcome struct {
	entry
	commands.Received
	refusal *domain.Refusal
}

func (r *Remote) begin(p Project, repo *repository, actor string) *push {
	push := &push{id: r.cfg.NewID(pushPrefix), project: p, repo: repo, actor: actor, at: r.cfg.Now(), outcomes: map[string]outcome{}}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pushes[push.id] = push
	return push
}

func (r *Remote) end(p *push) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pushes, p.id)
}

func (r *Remote) underWay(id string) *push {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pushes[id]
}

// tell lets the push that an entry came from know what became of it, whoever recorded it.
func (r *Remote) tell(o outcome) {
	if p := r.underWay(o.email); p != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.outcomes[o.ref] = o
	}
}

func (p *push) outcome(ref string) (outcome, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o, ok := p.outcomes[ref]
	return o, ok
}

// update is one line of a hook's input.
type update struct{ old, new, ref string }

func (u update) deletes() bool { return strings.Trim(u.new, "0") == "" }

func parseUpdates(r io.Reader) (updates []update) {
	for s := bufio.NewScanner(r); s.Scan(); {
		if f := strings.SplitN(s.Text(), " ", 3); len(f) == 3 {
			updates = append(updates, update{f[0], f[1], f[2]})
		}
	}
	return updates
}

// serveHook answers hooks of pushes that are under way. Status 200 lets git go on.
func (r *Remote) serveHook(w http.ResponseWriter, req *http.Request) {
	p := r.underWay(req.Header.Get("Pipeops-Push"))
	if p == nil {
		http.Error(w, "pipeops: this push isn't known here", http.StatusForbidden)
		return
	}
	updates := parseUpdates(http.MaxBytesReader(w, req.Body, maxUpdates))
	// The hook may be killed with its push: what is recorded is recorded.
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(req.Context()), hookWithin-5*time.Second, errors.New("git's hook waits no longer"))
	defer cancel()
	if req.URL.Path == "/"+preReceive {
		if no := r.check(ctx, p, updates); no != "" {
			w.WriteHeader(http.StatusConflict)
			say(w, no)
		}
		return
	}
	for _, u := range updates {
		_, _ = io.WriteString(w, r.afterUpdate(ctx, p, u)) // who pushed may have gone: it is recorded all the same
	}
}

// check says why a push can't be taken, "" when it can. A ref that goes takes
// its reflog with it: what stands there must be recorded before.
func (r *Remote) check(ctx context.Context, p *push, updates []update) string {
	if len(updates) > maxRefs {
		return fmt.Sprintf("pipeops: one push may move %d refs, this one moves %d. Push fewer at a time.", maxRefs, len(updates))
	}
	for _, u := range updates {
		if !u.deletes() {
			continue
		}
		if err := r.recordRef(ctx, p.repo, u.ref); err != nil {
			r.cfg.Log.ErrorContext(ctx, "earlier pushes not recorded, so their ref isn't deleted", "project", p.project.ID, "ref", u.ref, "err", err)
			return "pipeops: " + u.ref + " can't be deleted before earlier pushes to it are recorded, which doesn't work right now. Push again in a minute."
		}
	}
	return ""
}

// afterUpdate records what was moved, and gives what to tell about it.
func (r *Remote) afterUpdate(ctx context.Context, p *push, u update) string {
	err := r.recordRef(ctx, p.repo, u.ref)
	o, done := p.outcome(u.ref)
	if err == nil && !done && u.deletes() {
		o, err = r.record(ctx, p.repo, deletion(p, u.ref, u.old))
		done = err == nil
	}
	if err == nil && !done {
		err = errors.New("the ref's reflog doesn't have it")
	}
	if err != nil {
		r.cfg.Log.ErrorContext(ctx, "push not recorded yet", "project", p.project.ID, "ref", u.ref, "commit", u.new, "err", err)
		select {
		case r.wake <- struct{}{}:
		default: // it is awake
		}
		return laterText + "\n"
	}
	return o.tell(p.project)
}

// tell words an outcome for who pushed.
func (o outcome) tell(p Project) string {
	name := strings.TrimPrefix(strings.TrimPrefix(o.ref, "refs/heads/"), "refs/")
	switch {
	case o.refusal != nil:
		return "pipeops: " + name + ": " + o.refusal.Error() + "\n"
	case o.Diagnosis != nil:
		return fmt.Sprintf("pipeops: push %s is recorded, but leads to nothing yet\n\n%s", o.Push, o.Diagnosis)
	case o.Ignored == "":
		return fmt.Sprintf("pipeops: push %s accepted, building %s\npipeops: follow with: pipeops events --follow\n", o.Push, short(o.new))
	}
	why := o.Ignored
	switch why {
	case "tag":
		why = "tags aren't built"
	case "branch-deleted":
		why = "it is deleted here; what runs goes on"
	case "other-branch":
		why = "pushes to " + p.Branch + " are built"
	case "duplicate":
		why = "it stood at " + short(o.new) + " already, which was built"
	}
	return fmt.Sprintf("pipeops: push %s of %s ignored: %s\n", o.Push, name, why)
}

// lines writes what git says beside its answers to the log.
type lines struct {
	log     *slog.Logger
	project domain.ProjectID
}

func (l *lines) Write(text []byte) (int, error) {
	l.log.Warn("git http-backend", "project", l.project, "output", clip(strings.ToValidUTF8(strings.TrimSpace(string(text)), "\uFFFD"), 1000))
	return len(text), nil
}
