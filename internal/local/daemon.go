package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// daemon is one part's process: how to start it, when it is ready, how to end it.
type daemon struct {
	part   string                      // its name and its folder below the home
	path   string                      // the program
	args   []string                    // without the program's name
	env    []string                    // more of it, as name=value
	user   *account                    // who runs it; nil: who runs us
	before func(context.Context) error // called before a new process is started; nil: nothing
	ready  func(context.Context) error
	within time.Duration // from start to ready
	files  []string      // configuration files: a process that was started with other content is replaced
}

// start adopts the running process of this part or starts one, and returns once it is ready.
// The caller holds the part's lock.
func (d daemon) start(ctx context.Context, c Config) error {
	form, err := d.form()
	if err != nil {
		return d.explain(c, err)
	}
	if process, found := d.running(c, form); found {
		if process.Form != form {
			c.Log.InfoContext(ctx, "part replaced, because its program or configuration is another now", "part", d.part)
			if err := end(ctx, c, d.part, endingOf(d.part)); err != nil {
				return err
			}
		} else if err := d.awaitReady(ctx, process.identity); !errors.Is(err, errEnded) {
			return d.explain(c, err)
		}
	}
	if d.before != nil {
		if err := d.before(ctx); err != nil {
			return fmt.Errorf("start %s: %w", d.part, err)
		}
	}
	process, err := d.launch(c, filepath.Join(c.Home, d.part), form)
	if err != nil {
		return d.explain(c, err)
	}
	c.Log.InfoContext(ctx, "part started", "part", d.part, "pid", process.Pid)
	return d.explain(c, d.awaitReady(ctx, process))
}

var errEnded = errors.New("it ended")

func (d daemon) explain(c Config, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("start %s: %w%s", d.part, err, lastLines(filepath.Join(c.Home, d.part, "log"), 12))
}

// running finds the part's process by its identity file or, when its starter was killed before that was written, by
// the mark in its environment.
func (d daemon) running(c Config, form string) (startedPart, bool) {
	if started, err := readStarted(startedFile(c.Home, d.part)); err == nil && started.alive() {
		return started, true
	}
	commandLine := strings.Join(append([]string{d.path}, d.args...), "\x00") + "\x00"
	for _, id := range marked(mark(c.Home, d.part)) {
		found, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", id.Pid))
		if err == nil && string(found) == commandLine {
			started := startedPart{id, form}
			return started, started.write(startedFile(c.Home, d.part)) == nil
		}
	}
	return startedPart{}, false
}

// form tells one way of starting the part from another: the command line, the environment and the configuration.
func (d daemon) form() (string, error) {
	hash := sha256.New()
	for _, text := range slices.Concat([]string{d.path}, d.args, d.env) {
		hash.Write(append([]byte(text), 0))
	}
	for _, file := range d.files {
		content, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		hash.Write(append(content, 0))
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

func (d daemon) launch(c Config, folder, form string) (identity, error) {
	if err := os.MkdirAll(folder, 0o711); err != nil { //nolint:gosec // PostgreSQL's user passes through
		return identity{}, err
	}
	logPath := filepath.Join(folder, "log")
	if err := os.Rename(logPath, logPath+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return identity{}, err
	}
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return identity{}, err
	}
	defer log.Close() //nolint:errcheck // the child has its own
	null, err := os.Open(os.DevNull)
	if err != nil {
		return identity{}, err
	}
	defer null.Close() //nolint:errcheck // only read
	attr := &os.ProcAttr{
		Dir:   folder,
		Env:   append(append(environment(), d.env...), mark(c.Home, d.part)),
		Files: []*os.File{null, log, log},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if d.user != nil {
		attr.Sys.Credential = d.user.credential()
	}
	// Not os/exec: the process outlives us, and nobody here waits for it.
	process, err := os.StartProcess(d.path, append([]string{d.path}, d.args...), attr)
	if err != nil {
		return identity{}, err
	}
	id, err := identify(process.Pid)
	if err != nil {
		return identity{}, errEnded
	}
	if err := (startedPart{id, form}).write(startedFile(c.Home, d.part)); err != nil {
		return identity{}, errors.Join(err, process.Kill())
	}
	return id, process.Release()
}

func (d daemon) awaitReady(ctx context.Context, process identity) error {
	ctx, cancel := context.WithTimeoutCause(ctx, d.within, fmt.Errorf("not ready within %s", d.within))
	defer cancel()
	last := errors.New("nothing was tried")
	for {
		attempt, done := context.WithTimeoutCause(ctx, 3*time.Second, errors.New("no answer within 3 s"))
		err := d.ready(attempt)
		done()
		if err == nil {
			return nil
		}
		if context.Cause(ctx) == nil {
			last = err
		}
		if !process.alive() {
			return errEnded
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// ending is how a part is asked to end, and how long it may take to.
type ending struct {
	signal syscall.Signal
	grace  time.Duration
}

func endingOf(part string) ending {
	switch part {
	case "postgres":
		return ending{syscall.SIGINT, 30 * time.Second} // fast shutdown: ends sessions and writes a checkpoint
	case "rabbitmq":
		return ending{syscall.SIGTERM, 30 * time.Second}
	default:
		return ending{syscall.SIGTERM, 10 * time.Second}
	}
}

// end asks the part to end, waits, and after its grace kills what carries its mark.
func end(ctx context.Context, c Config, part string, how ending) error {
	file := startedFile(c.Home, part)
	if started, err := readStarted(file); err == nil && started.alive() {
		if err := started.signal(how.signal); err != nil {
			return fmt.Errorf("stop %s: %w", part, err)
		}
		patience, cancel := context.WithTimeoutCause(ctx, how.grace, errors.New("still there"))
		err := started.await(patience)
		cancel()
		if err != nil {
			c.Log.WarnContext(ctx, "part killed", "part", part, "pid", started.Pid, "after", how.grace)
		}
	}
	for _, id := range marked(mark(c.Home, part)) {
		if err := errors.Join(id.signal(syscall.SIGKILL), id.await(ctx)); err != nil {
			return fmt.Errorf("kill process %d of %s: %w", id.Pid, part, err)
		}
	}
	if err := ignoring(os.Remove(file), os.ErrNotExist); err != nil {
		return fmt.Errorf("forget %s: %w", part, err)
	}
	return nil
}

func startedFile(home, part string) string { return filepath.Join(home, part, "pid") }

// mark stands in the environment of a part and of what it starts, so that they are found without an identity file.
func mark(home, part string) string { return "PIPEOPS_PART=" + home + ":" + part }

// environment is what parts inherit: never the secrets that may stand in ours.
func environment() []string {
	var kept []string
	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		switch strings.ToUpper(name) {
		case "PATH": // runc, iptables and the like are found without a root's login shell, too
			kept = append(kept, "PATH="+value+":/usr/local/sbin:/usr/sbin:/sbin")
		case "HOME", "TMPDIR", "USER", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR":
			kept = append(kept, variable)
		}
	}
	return append(kept, "LC_ALL=C.UTF-8")
}

// lastLines returns the end of a log as text to append to an error.
func lastLines(path string, count int) string {
	content, err := os.ReadFile(path)
	if err != nil || len(content) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(content), "\n"), "\n")
	return fmt.Sprintf("\nlast lines of %s:\n%s", path, strings.Join(lines[max(0, len(lines)-count):], "\n"))
}
