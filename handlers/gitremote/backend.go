package gitremote

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/cgi" //nolint:gosec // G504 is about Go before 1.6.3
	"strings"
	"time"
)

// ServeHTTP implements http.Handler for what git asks for; requests for
// anything else of a repository get 404.
func (r *Remote) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	s := r.session.Load()
	if s == nil || !s.enter() {
		r.passOn(w, req)
		return
	}
	defer s.requests.Done()
	q, ok := parseQuery(req)
	if !ok {
		http.Error(w, "this is a git remote: git remote add pipeops <this address>/git/<project>", http.StatusNotFound)
		return
	}
	p, actor, err := r.authorise(req, q)
	var no *denied
	switch {
	case errors.As(err, &no):
		if no.status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Basic realm="PipeOps: any user name, an API token as the password"`)
		}
		http.Error(w, no.reason, no.status)
	case err != nil:
		r.unavailable(req.Context(), w, err)
	default:
		r.serve(w, req, s, q, p, actor)
	}
}

func (r *Remote) unavailable(ctx context.Context, w http.ResponseWriter, err error) {
	r.cfg.Log.ErrorContext(ctx, "git request not served", "err", err)
	w.Header().Set("Retry-After", "30")
	http.Error(w, "PipeOps can't serve this right now: try again", http.StatusServiceUnavailable)
}

// query is what git wants of which repository.
type query struct {
	project string // name or id
	path    string // "info/refs", "git-upload-pack" or "git-receive-pack"
	push    bool
}

const (
	uploadPack  = "git-upload-pack"
	receivePack = "git-receive-pack"
)

// parseQuery reads "/git/<project>[.git]/<path>"; false for what smart HTTP has not.
func parseQuery(req *http.Request) (query, bool) {
	rest, ok := strings.CutPrefix(req.URL.Path, "/git/")
	name, path, cut := strings.Cut(rest, "/")
	name = strings.TrimSuffix(name, suffix)
	q := query{project: name, path: path}
	service := path
	want := http.MethodPost
	if path == "info/refs" {
		service, want = req.URL.Query().Get("service"), http.MethodGet
	}
	q.push = service == receivePack
	return q, ok && cut && name != "" && len(name) <= 64 && req.Method == want && (q.push || service == uploadPack)
}

// denied is an answer that isn't the repository's.
type denied struct {
	status int
	reason string
}

func (d *denied) Error() string { return d.reason }

var (
	errToken   = &denied{http.StatusUnauthorized, "give any user name, and an API token of PipeOps as the password"}
	errProject = &denied{http.StatusNotFound, "there is no such project; see: pipeops project list"}
)

// authorise finds the project and who asks. Without a good token nobody learns which projects there are.
func (r *Remote) authorise(req *http.Request, q query) (Project, string, error) {
	token := tokenOf(req)
	if token == "" {
		return Project{}, "", errToken
	}
	p, err := r.cfg.Projects.GitProject(req.Context(), q.project)
	if err != nil {
		return Project{}, "", err
	}
	may := r.cfg.Access.MayFetch
	if q.push {
		may = r.cfg.Access.MayPush
	}
	actor, err := may(req.Context(), token, p.ID)
	switch {
	case err != nil:
		return Project{}, "", err
	case actor == "":
		r.cfg.Log.WarnContext(req.Context(), "git request refused: the token is no good for this", "project", p.ID, "path", q.path)
		return Project{}, "", errToken
	case p.ID == "":
		return Project{}, "", errProject
	}
	return p, actor, nil
}

// tokenOf takes the token from basic or bearer authentication.
func tokenOf(req *http.Request) string {
	if _, password, ok := req.BasicAuth(); ok {
		return password
	}
	scheme, token, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "bearer") {
		return strings.TrimSpace(token)
	}
	return ""
}

// serve lets git's http-backend answer.
func (r *Remote) serve(w http.ResponseWriter, req *http.Request, s *session, q query, p Project, actor string) {
	ctx, cancel := context.WithTimeoutCause(req.Context(), time.Minute, errors.New("too many requests at once"))
	defer cancel()
	select {
	case r.gate <- struct{}{}:
		defer func() { <-r.gate }()
	case <-ctx.Done():
		w.Header().Set("Retry-After", "30")
		http.Error(w, "PipeOps is busy with other pushes: try again", http.StatusServiceUnavailable)
		return
	}
	if req.ContentLength > r.maxBody() {
		http.Error(w, "the push is too large: push fewer commits at a time, or keep large files out of the repository", http.StatusRequestEntityTooLarge)
		return
	}
	repo, err := r.ensure(ctx, p)
	if err != nil {
		r.unavailable(ctx, w, err)
		return
	}
	defer r.bound(w, s)()
	env := r.backendEnv(req, actor)
	if q.push && q.path == receivePack {
		push := r.begin(p, repo, actor)
		defer r.end(push)
		env = append(env,
			// Who and which push: git writes both into the reflog.
			"GIT_COMMITTER_NAME="+actor, "GIT_COMMITTER_EMAIL="+push.id,
			hookProgramEnv+"="+r.cfg.HookProgram, hookSocketEnv+"="+s.socket, hookPushEnv+"="+push.id)
	}
	(&cgi.Handler{
		Path: r.backend, Dir: r.cfg.Root, Env: env,
		Logger: slog.NewLogLogger(r.cfg.Log.Handler(), slog.LevelWarn),
		Stderr: &lines{log: r.cfg.Log, project: p.ID},
	}).ServeHTTP(w, r.forBackend(w, req, repo, q))
}

// maxBody leaves room for what a request has around the pack.
func (r *Remote) maxBody() int64 { return r.cfg.MaxPush + 16<<20 }

// bound gives a request its time, which a server that ends cuts short. The function ends the bounds.
func (r *Remote) bound(w http.ResponseWriter, s *session) func() {
	control := http.NewResponseController(w)
	until := func(t time.Time) {
		_ = control.SetReadDeadline(t) // a writer that can't goes without
		_ = control.SetWriteDeadline(t)
	}
	until(time.Now().Add(r.cfg.Within))
	stop := context.AfterFunc(s.ctx, func() { until(time.Now().Add(finishWithin)) })
	return func() {
		if stop() {
			until(time.Time{})
		}
	}
}

// backendEnv is all that git gets to know. The server's environment, with its passwords, is not in it.
func (r *Remote) backendEnv(req *http.Request, actor string) []string {
	return append(gitEnv(),
		"HOME="+r.cfg.Root, "GIT_PROJECT_ROOT="+r.cfg.Root, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER="+actor,
		"GIT_PROTOCOL="+req.Header.Get("Git-Protocol"))
}

// forBackend gives the request as http-backend shall see it: at the
// repository's place on disk, without the token, which would stand in the
// environment of git and of hooks.
func (r *Remote) forBackend(w http.ResponseWriter, req *http.Request, repo *repository, q query) *http.Request {
	// git answers while it still reads: the server must not swallow the rest of the body.
	_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 has it anyway
	inner := req.Clone(req.Context())
	inner.URL.Path, inner.URL.RawPath = "/"+string(repo.project)+suffix+"/"+q.path, ""
	inner.Header = http.Header{}
	for _, keep := range []string{"Content-Type", "Content-Encoding", "Accept", "Accept-Encoding", "Git-Protocol", "User-Agent"} {
		if v := req.Header.Values(keep); len(v) > 0 {
			inner.Header[keep] = v
		}
	}
	if req.Body != nil && req.Body != http.NoBody {
		inner.Body = http.MaxBytesReader(w, req.Body, r.maxBody())
	}
	// git sends large packs in chunks, which package cgi refuses; http-backend reads to the end without a length.
	if inner.ContentLength < 0 {
		inner.TransferEncoding = nil
	}
	return inner
}
