// Package gittest receives files of tests, and hands out repositories over HTTP by git's own http-backend; effects.
package gittest

import (
	"net/http"
	"net/http/cgi" //nolint:gosec // no old Go
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Server serves repositories as URL + "/" + name.
type Server struct {
	URL      string
	Token    string       // password that is wanted, empty for none; set it before the first request
	Old      bool         // speak protocol version 0, which gives tips only; set it before the first request
	Away     atomic.Int64 // so many of the next requests are answered with 503
	Requests atomic.Int64
	Redirect string // base URL that all requests are sent on to, empty for none; set it before the first request

	root string

	mu     sync.Mutex
	logins []string // "user:password" of each request, "" for none
}

// Logins gives what each request so far carried as its login, "user:password", or "" for none.
func (s *Server) Logins() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.logins)
}

func (s *Server) note(r *http.Request) {
	login := r.Header.Get("Authorization")
	if user, password, ok := r.BasicAuth(); ok {
		login = user + ":" + password
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logins = append(s.logins, login)
}

// New starts a server that ends with the test.
func New(tb testing.TB) *Server {
	tb.Helper()
	s := &Server{root: tb.TempDir()}
	path, err := exec.CommandContext(tb.Context(), "git", "--exec-path").Output()
	if err != nil {
		tb.Fatalf("find git: %v", err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(path)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + s.root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1"}, Stderr: os.Stderr,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.Requests.Add(1)
		s.note(r)
		if s.Redirect != "" {
			http.Redirect(w, r, s.Redirect+r.URL.RequestURI(), http.StatusMovedPermanently) //nolint:gosec // a test wants it
			return
		}
		if s.Away.Add(-1) >= 0 {
			http.Error(w, "away", http.StatusServiceUnavailable)
			return
		}
		if _, password, _ := r.BasicAuth(); s.Token != "" && password != s.Token {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, "token wanted", http.StatusUnauthorized)
			return
		}
		if s.Old {
			r.Header.Del("Git-Protocol")
		}
		backend.ServeHTTP(w, r)
	}))
	tb.Cleanup(server.Close)
	s.URL = server.URL
	return s
}

// Commit adds a commit on top of main of a repository, made if need be, whose tree holds exactly these files, and gives
// its hash. The content "-> target" makes a symbolic link.
func (s *Server) Commit(tb testing.TB, name string, files map[string]string) string {
	tb.Helper()
	repository := filepath.Join(s.root, name)
	if _, err := os.Stat(repository); err != nil {
		Git(tb, s.root, "init", "--quiet", "--bare", "--initial-branch=main", name)
	}
	tree := tb.TempDir()
	for path, content := range files {
		path = filepath.Join(tree, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			tb.Fatal(err)
		}
		err := os.WriteFile(path, []byte(content), 0o600)
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			_ = os.Remove(path)
			err = os.Symlink(target, path)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	Git(tb, repository, "--work-tree="+tree, "add", "--all", ".")
	Git(tb, repository, "--work-tree="+tree, "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "--quiet", "--allow-empty", "--message=test")
	return Git(tb, repository, "rev-parse", "HEAD")
}

// Forget takes a repository back to a commit and drops all that isn't reachable, as a forced push and a clean-up do.
func (s *Server) Forget(tb testing.TB, name, backTo string) {
	tb.Helper()
	repository := filepath.Join(s.root, name)
	Git(tb, repository, "update-ref", "refs/heads/main", backTo)
	Git(tb, repository, "reflog", "expire", "--expire=all", "--all")
	Git(tb, repository, "read-tree", backTo)
	Git(tb, repository, "prune", "--expire=now")
}

// Git runs git in a folder and gives its output.
func Git(tb testing.TB, folder string, arguments ...string) string {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), "git", arguments...) //nolint:gosec // of the test
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("git %s: %v\n%s", strings.Join(arguments, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}
