package build_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/uuid"

	"github.com/pipeops/pipeops/internal/local"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/runner/build"
)

// request is a build of a Dockerfile of a project of the test's own.
func request(t *testing.T, repository, dockerfile string) build.Request {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	id := uuid.NewString()
	return build.Request{ID: id, Project: "prj_" + id, Context: root, Dockerfile: root, Filename: "Dockerfile", RootDir: ".", Repository: repository}
}

// faulty is a registry whose requests go through a handler of the test's first, which says whether it answered.
func faulty(t *testing.T, answers func(http.ResponseWriter, *http.Request) bool) (host string) {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !answers(w, r) {
			inner.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func isManifestPut(r *http.Request) bool {
	return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/")
}

func TestPushThatIsRefusedForNowIsTriedAgain(t *testing.T) {
	t.Parallel()
	var refuse atomic.Bool
	refuse.Store(true)
	host := faulty(t, func(w http.ResponseWriter, r *http.Request) bool {
		if isManifestPut(r) && refuse.Load() {
			http.Error(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}`, http.StatusTooManyRequests)
			return true
		}
		return false
	})
	b := build.New(build.Config{Address: testenv.BuildKit(t), PushAgain: []time.Duration{10 * time.Millisecond, 20 * time.Millisecond, time.Millisecond}})
	var told []string
	digest, err := b.Build(t.Context(), request(t, host+"/app", "FROM scratch\nCOPY Dockerfile /\n"), build.Watch{
		Step: func(s build.Step) { told = append(told, "step") },
		Made: func(build.Made) { told = append(told, "made") },
		Retried: func(try int, reason string, in time.Duration) {
			told = append(told, fmt.Sprintf("retried %d", try))
			if !strings.Contains(reason, "slow down") || in < 10*time.Millisecond {
				t.Errorf("retried in %v: %s", in, reason)
			}
			refuse.Store(try < 2)
		},
	})
	if err != nil || !strings.HasPrefix(digest, "sha256:") {
		t.Errorf("%q, %v", digest, err)
	}
	if want := []string{"step", "made", "retried 1", "retried 2"}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}

func TestPushThatIsDeniedIsTriedOnce(t *testing.T) {
	t.Parallel()
	var puts atomic.Int64
	host := faulty(t, func(w http.ResponseWriter, r *http.Request) bool {
		if isManifestPut(r) {
			puts.Add(1)
			http.Error(w, `{"errors":[{"code":"DENIED","message":"denied"}]}`, http.StatusForbidden)
			return true
		}
		return false
	})
	b := build.New(build.Config{Address: testenv.BuildKit(t)})
	_, err := b.Build(t.Context(), request(t, host+"/app", "FROM scratch\nCOPY Dockerfile /\n"), build.Watch{})
	var failed *build.Error
	if !errors.As(err, &failed) || failed.Stage != build.Push || failed.Again || puts.Load() != 1 {
		t.Errorf("%+v after %d puts", err, puts.Load())
	}
}

func TestPushThatTakesTooLongFails(t *testing.T) {
	t.Parallel()
	over := make(chan struct{})
	host := faulty(t, func(_ http.ResponseWriter, r *http.Request) bool {
		if isManifestPut(r) {
			select {
			case <-over:
			case <-r.Context().Done():
			}
			return true
		}
		return false
	})
	t.Cleanup(func() { close(over) })
	b := build.New(build.Config{Address: testenv.BuildKit(t), PushWithin: 200 * time.Millisecond})
	_, err := b.Build(t.Context(), request(t, host+"/app", "FROM scratch\nCOPY Dockerfile /\n"), build.Watch{})
	var failed *build.Error
	if !errors.As(err, &failed) || failed.Stage != build.Push || failed.Message != build.ErrPushTimeout.Error() {
		t.Errorf("%+v", err)
	}
}

// tokens is a registry that wants tokens, and notes whose token opened what.
type tokens struct {
	host string
	mu   sync.Mutex
	used map[string]map[string]bool // by repository: users
}

func newTokens(t *testing.T) *tokens {
	t.Helper()
	s := &tokens{used: map[string]map[string]bool{}}
	s.host = faulty(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			s.issue(w, r)
			return true
		}
		user, scopes, ok := strings.Cut(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), "|")
		repository, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
		if repository != "" && (!ok || !strings.Contains(scopes, "repository:"+repository+"/")) {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:%s/app:pull,push"`, r.Host, repository))
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return true
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.used[repository] == nil {
			s.used[repository] = map[string]bool{}
		}
		s.used[repository][user] = true
		return false
	})
	return s
}

// issue gives a user a token for what lies under the user's own name.
func (s *tokens) issue(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm() // a broken form has no user
	user, password := r.PostForm.Get("username"), r.PostForm.Get("password")
	scopes := strings.Join(append(r.Form["scope"], r.URL.Query()["scope"]...), " ")
	if user == "" || password != "password of "+user || !strings.Contains(scopes, "repository:"+user+"/") {
		http.Error(w, "wrong user", http.StatusForbidden)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"access_token": user + "|" + scopes, "expires_in": 3600}) // the client is gone
}

type login string

func (l login) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: string(l), Password: "password of " + string(l)}, nil
}

func TestTokensOfOneTenantAreNotUsedForAnother(t *testing.T) {
	t.Parallel()
	daemon, server := testenv.BuildKit(t), newTokens(t)
	for range 2 {
		for _, user := range []string{"ada", "bob"} {
			b := build.New(build.Config{Address: daemon, Keychain: login(user)})
			if _, err := b.Build(t.Context(), request(t, server.host+"/"+user+"/app", "FROM scratch\nCOPY Dockerfile /\nLABEL x="+uuid.NewString()+"\n"), build.Watch{}); err != nil {
				t.Fatalf("%s: %v", user, err)
			}
		}
	}
	b := build.New(build.Config{Address: daemon, Keychain: login("bob")})
	if _, err := b.Build(t.Context(), request(t, server.host+"/ada/app", "FROM scratch\nCOPY Dockerfile /\n"), build.Watch{}); err == nil {
		t.Error("bob pushed to ada's repository")
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	for _, user := range []string{"ada", "bob"} {
		if users := server.used[user]; len(users) != 1 || !users[user] {
			t.Errorf("%s's repository was opened by %v", user, users)
		}
	}
}

// ownDaemon starts a buildkitd of the test's own and gives its address and process id.
func ownDaemon(t *testing.T) (address string, pid int) {
	t.Helper()
	testenv.BuildKit(t) // is built and works at all
	testenv.BaseImages(t, local.Busybox)
	home, err := os.MkdirTemp("", "pb") //nolint:usetesting // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	c := testenv.Config()
	c.Home = home
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeoutCause(context.Background(), 30*time.Second, errors.New("clean-up took too long"))
		defer cancel()
		if err := errors.Join(local.StopBuildkitd(ctx, c), os.RemoveAll(home)); err != nil {
			t.Errorf("end the daemon: %v", err)
		}
	})
	if address, err = local.StartBuildkitd(t.Context(), c, testenv.Registry(t)); err != nil {
		t.Fatal(err)
	}
	parts, err := local.Running(c)
	if err != nil || len(parts) != 1 {
		t.Fatalf("%v, %v", parts, err)
	}
	return address, parts[0].Pid
}

func TestDaemonThatDiesOrFreezesIsLostAndNotTheBuild(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGSTOP} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			address, pid := ownDaemon(t)
			b := build.New(build.Config{Address: address, Guard: 300 * time.Millisecond})
			_, err := b.Build(t.Context(), request(t, testenv.Registry(t)+"/build-test/"+uuid.NewString(), "FROM busybox:stable\nRUN echo running; sleep 1000\n"), build.Watch{
				Output: func(line []byte) {
					if strings.HasSuffix(string(line), " running\n") {
						if err := syscall.Kill(pid, signal); err != nil {
							t.Error(err)
						}
					}
				},
			})
			if signal == syscall.SIGSTOP {
				_ = syscall.Kill(pid, syscall.SIGCONT) // so that it can be ended
			}
			if _, lost := errors.AsType[*build.LostError](err); !lost {
				t.Errorf("%T: %v", err, err)
			}
		})
	}
}
