package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// git runs git over one repository.
type git struct {
	dir, tree, home string
	config          [][2]string
	maxBytes        int64 // of dir
}

const (
	maxOutput  = 64 << 20 // bytes of standard output: a listing of some hundred thousand files
	maxMessage = 2 << 10  // bytes of what git complains
)

var errTooLarge = errors.New("repository is too large")

// run runs one git command and gives its output. git dies with this process, so that nothing writes into a workspace
// that is being swept.
func (g *git) run(ctx context.Context, arguments ...string) (string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := exec.CommandContext(ctx, "git", arguments...) //nolint:gosec // no shell; what comes from users stands behind --end-of-options or is a hash
	cmd.Env = g.environment()
	cmd.Dir = g.tree
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var complaint tail
	output := bounded{limit: maxOutput}
	cmd.Stdout, cmd.Stderr = &output, &complaint

	// The death signal is that of the thread which starts git.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		if context.Cause(ctx) != nil {
			err = context.Cause(ctx)
		}
		return "", fmt.Errorf("start git: %w", err)
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		g.watch(ctx, cancel)
	}()
	err := cmd.Wait()
	stopped := context.Cause(ctx)
	cancel(nil)
	<-watched
	switch {
	case errors.Is(stopped, errTooLarge):
		return "", &Error{TooLarge, fmt.Sprintf("the repository has more than %d bytes at this commit", g.maxBytes)}
	case stopped != nil:
		return "", stopped
	case output.over:
		return "", &Error{TooLarge, "the repository has too many files"}
	case err != nil:
		message := complaint.text()
		if message == "" {
			message = "git " + arguments[0] + ": " + err.Error()
		}
		return "", &Error{classify(message), message}
	}
	return output.String(), nil
}

func (g *git) environment() []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + g.home, "LC_ALL=C", "GIT_DIR=" + g.dir, "GIT_WORK_TREE=" + g.tree,
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=/bin/false", "GIT_LFS_SKIP_SMUDGE=1",
		"GIT_ATTR_NOSYSTEM=1", "GIT_CONFIG_COUNT=" + strconv.Itoa(len(g.config)),
	}
	for i, kv := range g.config {
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, kv[1]))
	}
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "GIT_SSL_CAINFO", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// watch ends git when what it stores grows too large.
func (g *git) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if size(g.dir) > g.maxBytes {
				cancel(errTooLarge)
				return
			}
		}
	}
}

// size adds up the files below dir; what vanishes meanwhile doesn't count.
func size(dir string) (total int64) {
	_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // see above
		}
		if info, err := entry.Info(); err == nil && info.Mode().IsRegular() {
			total += info.Size()
		}
		return nil
	})
	return total
}

// classify reads git's complaint. The first match counts.
func classify(message string) string {
	m := strings.ToLower(message)
	for _, c := range []struct {
		code string
		said []string
	}{
		{CommitNotFound, []string{"not our ref", "unadvertised object", "couldn't find remote ref", "no such remote ref"}},
		{Denied, []string{"authentication failed", "could not read username", "could not read password", "terminal prompts disabled", "error: 401", "error: 403", "access denied"}},
		{RepositoryNotFound, []string{"repository not found", "' not found", "error: 404", "does not appear to be a git repository"}},
		{Network, []string{
			"could not resolve host", "connection refused", "connection reset", "connection timed out", "timed out", "operation too slow",
			"failed to connect", "couldn't connect", "error: 429", "error: 500", "error: 502", "error: 503", "error: 504", "early eof",
			"the remote end hung up", "rpc failed", "empty reply from server", "unexpected disconnect", "expected flush", "expected 'packfile'",
		}},
	} {
		for _, said := range c.said {
			if strings.Contains(m, said) {
				return c.code
			}
		}
	}
	return Failed
}

// bounded keeps output up to a limit.
type bounded struct {
	bytes.Buffer
	limit int
	over  bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.limit {
		b.over = true
		return len(p), nil
	}
	return b.Buffer.Write(p)
}

// tail keeps the end of what is written.
type tail struct{ kept []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - maxMessage; over > 0 {
		t.kept = t.kept[over:]
	}
	return len(p), nil
}

func (t *tail) text() string { return strings.TrimSpace(strings.ToValidUTF8(string(t.kept), "")) }
