package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/pipeops/pipeops/internal/config"
)

var (
	errSlow  = errors.New("it took too long")
	errEnded = errors.New("the process is gone")
)

// detach starts `up` in the background unless it runs, waits until it is
// ready, and pushes the sample.
func detach(cmd *cobra.Command, cfg config.Config, f upFlags) error {
	ctx := cmd.Context()
	if !running(cfg.Home) {
		if err := background(ctx, cfg, f); err != nil {
			return err
		}
	} else if err := awaitReady(ctx, cfg.Home); err != nil {
		return err
	}
	c, err := newClient()
	if err != nil {
		return err
	}
	lines := [][2]string{{"dashboard", c.url + "/"}, {"graphql", c.url + "/graphql"}}
	if f.sample != "" {
		address, name, err := pushSample(ctx, c, cfg.Home, f.sample)
		if err != nil {
			return err
		}
		lines = append(lines, [2]string{"app", "http://" + address + "/"}, [2]string{"git remote", c.url + "/git/" + name})
	}
	lines = append(lines, [2]string{"token file", filepath.Join(cfg.Home, "token")})
	for _, l := range lines {
		fmt.Fprintf(cmd.OutOrStdout(), "%-10s  %s\n", l[0], l[1])
	}
	return nil
}

// running says whether an `up` holds the home.
func running(home string) bool {
	release, err := exclusive(filepath.Join(home, "up.lock"))
	if err != nil {
		return true
	}
	release()
	return false
}

// background runs `up` in a session of its own, and shows its progress until
// it is ready or has ended.
func background(ctx context.Context, cfg config.Config, f upFlags) error {
	if err := os.MkdirAll(cfg.Home, 0o755); err != nil {
		return err
	}
	if err := os.Remove(reachedFile(cfg.Home)); err != nil && !os.IsNotExist(err) {
		return err
	}
	logFile := filepath.Join(cfg.Home, "up.log")
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{"up"}
	if f.localCluster {
		args = append(args, "--with-local-cluster")
	}
	child := exec.Command(self, args...) //nolint:noctx // it outlives us
	child.Stdout, child.Stderr, child.Dir = log, log, cfg.Home
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	show, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go follow(show, logFile)
	ready := make(chan error, 1)
	go func() { ready <- awaitReady(show, cfg.Home) }()
	select {
	case err := <-ready:
		return err
	case err := <-ended:
		return fmt.Errorf("it ended before it was ready: %w; the end of %s:\n%s", errors.Join(errEnded, err), logFile, tail(logFile, 15))
	}
}

// follow shows the progress lines of a log as they come.
func follow(ctx context.Context, file string) {
	f, err := os.Open(file)
	if err != nil {
		return
	}
	defer f.Close()
	began := now()
	r := bufio.NewReader(f)
	var line string
	for {
		part, err := r.ReadString('\n')
		line += part
		if err == nil {
			if text, ok := strings.CutPrefix(line, progressMark); ok {
				fmt.Fprintf(os.Stderr, "%4.0fs  %s", now().Sub(began).Seconds(), text)
			}
			line = ""
			continue
		}
		if !errors.Is(err, io.EOF) || !waitFor(ctx, 200*time.Millisecond) {
			return
		}
	}
}

func tail(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// awaitReady waits until the server of this home says so.
func awaitReady(ctx context.Context, home string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errSlow)
	defer cancel()
	last := "it hasn't written " + reachedFile(home)
	for {
		if r, err := readReached(home); err == nil {
			if last = readiness(ctx, r.URL); last == "" {
				return nil
			}
		}
		if !waitFor(ctx, 200*time.Millisecond) {
			return fmt.Errorf("wait until PipeOps is ready: %w; last: %s; see %s", context.Cause(ctx), last, filepath.Join(home, "up.log"))
		}
	}
}

// readiness asks /readyz; "" when all is well.
func readiness(ctx context.Context, url string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", nil)
	if err != nil {
		return err.Error()
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return ""
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	return string(b)
}

// stopUp ends the `up` of a home and waits until it is gone.
func stopUp(ctx context.Context, home string) error {
	if !running(home) {
		return nil
	}
	progress("stopping PipeOps")
	grace, cancel := context.WithTimeoutCause(ctx, time.Minute, errSlow)
	defer cancel()
	asked := 0
	for running(home) {
		pid := holder(home)
		if pid != 0 && pid != asked {
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("stop process %d: %w", pid, err)
			}
			asked = pid
		}
		switch {
		case waitFor(grace, 100*time.Millisecond):
		case context.Cause(ctx) != nil:
			return fmt.Errorf("wait until process %d has ended: %w", asked, context.Cause(ctx))
		case pid == 0: // and 0 would be our own process group
			return fmt.Errorf("a process that isn't known holds %s", filepath.Join(home, "up.lock"))
		default:
			progress("it doesn't end: killing it")
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
			var again context.CancelFunc
			grace, again = context.WithTimeoutCause(ctx, time.Minute, errSlow) //nolint:fatcontext // from ctx, not from itself
			defer again()
		}
	}
	return nil
}

// holder is the process that holds a home, 0 while it isn't known. The file may
// be that of an earlier one, whose number somebody else has by now.
func holder(home string) (pid int) {
	b, err := os.ReadFile(filepath.Join(home, "up.pid"))
	if err != nil || json.Unmarshal(b, &pid) != nil || pid <= 1 {
		return 0
	}
	lock, err := os.Stat(filepath.Join(home, "up.lock"))
	if err != nil {
		return 0
	}
	open, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range open {
		if f, err := os.Stat(fd); err == nil && os.SameFile(f, lock) {
			return pid
		}
	}
	return 0
}
