package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pipeops/pipeops/domain"
)

// pushSample creates a project named like the folder, pushes the folder to it
// through the built-in git remote, and waits until the app answers with the
// pushed commit. What is there already stays. It gives the app's address on
// this machine and the project's name.
func pushSample(ctx context.Context, c *client, home, folder string) (address, name string, err error) {
	if folder, err = filepath.Abs(folder); err != nil {
		return "", "", err
	}
	name = filepath.Base(folder)
	if err := createSample(ctx, c, name); err != nil {
		return "", "", fmt.Errorf("create project %s: %w", name, err)
	}
	work := filepath.Join(home, "samples", name)
	commit, isNew, err := commitSample(ctx, folder, work)
	if err != nil {
		return "", "", fmt.Errorf("commit the sample: %w", err)
	}
	if address, err = c.release(ctx, home, work, name, commit); err == nil || isNew || exitCode(err) != exitVerdict {
		return address, name, err
	}
	// The commit failed in an earlier run. What was wrong then may be mended; the same commit is no new push.
	if _, err := git(ctx, work, nil, "commit", "--quiet", "--allow-empty", "--message", "The sample app, again"); err != nil {
		return "", "", fmt.Errorf("commit the sample: %w", err)
	}
	if commit, err = git(ctx, work, nil, "rev-parse", "HEAD"); err != nil {
		return "", "", err
	}
	address, err = c.release(ctx, home, work, name, commit)
	return address, name, err
}

// release pushes a commit and waits until it serves.
func (c *client) release(ctx context.Context, home, work, name, commit string) (address string, err error) {
	sampleProgress("pushing %s, commit %s", name, short(commit))
	if err := c.gitPush(ctx, work, name); err != nil {
		return "", fmt.Errorf("push the sample: %w", err)
	}
	return awaitApp(ctx, c, home, name, commit)
}

func sampleProgress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "       "+format+"\n", args...)
}

// createSample makes the project with quick probes, unless it is there.
func createSample(ctx context.Context, c *client, name string) error {
	var have struct{ Project *struct{ ID string } }
	if err := c.do(ctx, `query($n: String!) { project(name: $n) { id } }`, map[string]any{"n": name}, &have); err != nil || have.Project != nil {
		return err
	}
	service := map[string]any{
		"name": name, "minReady": 1,
		"startup": map[string]any{"period": 1, "failures": 120}, "readiness": map[string]any{"period": 1},
	}
	var out json.RawMessage
	return c.do(ctx, `mutation($in: CreateProjectInput!) { createProject(input: $in) { cursor } }`,
		map[string]any{"in": map[string]any{"name": name, "services": []any{service}}}, &out)
}

// commitSample copies the folder into a repository of its own and commits what
// changed; isNew says that something had.
func commitSample(ctx context.Context, folder, work string) (commit string, isNew bool, err error) {
	if err := copySample(ctx, folder, work); err != nil {
		return "", false, err
	}
	if _, err := git(ctx, work, nil, "add", "--all"); err != nil {
		return "", false, err
	}
	if _, err := git(ctx, work, nil, "diff", "--cached", "--quiet", "HEAD"); err != nil {
		isNew = true
		if _, err := git(ctx, work, nil, "commit", "--quiet", "--message", "The sample app"); err != nil {
			return "", false, err
		}
	}
	commit, err = git(ctx, work, nil, "rev-parse", "HEAD")
	return commit, isNew, err
}

// copySample makes the work tree of a repository the same as the folder.
func copySample(ctx context.Context, folder, work string) error {
	if err := os.MkdirAll(filepath.Dir(work), 0o755); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(work, ".git")); errors.Is(err, os.ErrNotExist) {
		if _, err := git(ctx, "", nil, "init", "--quiet", "--initial-branch=main", work); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(work)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != ".git" {
			if err := os.RemoveAll(filepath.Join(work, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.CopyFS(work, os.DirFS(folder))
}

// gitPush pushes the work tree's main to a project. The token goes by the
// environment, never by the command line.
func (c *client) gitPush(ctx context.Context, work, name string) error {
	basic := base64.StdEncoding.EncodeToString([]byte("pipeops:" + c.token))
	_, err := git(ctx, work, []string{
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=http.extraHeader", "GIT_CONFIG_VALUE_0=Authorization: Basic " + basic,
	}, "push", "--quiet", c.url+"/git/"+name, "HEAD:refs/heads/main")
	return err
}

func git(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), append(env, "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=PipeOps", "GIT_AUTHOR_EMAIL=pipeops@localhost", "GIT_COMMITTER_NAME=PipeOps", "GIT_COMMITTER_EMAIL=pipeops@localhost")...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("git %s: %w\n%s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// awaitApp waits until the commit is deployed and the app answers with it, or its release has failed.
func awaitApp(ctx context.Context, c *client, home, name, commit string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errSlow)
	defer cancel()
	watch, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	verdict := make(chan error, 1)
	go func() { verdict <- c.watchCommit(watch, name, commit) }()
	var silent error // why the app, though deployed, doesn't count as served
	for {
		for _, a := range readApps(home) {
			if verdict != nil || a.Service != name {
				continue
			}
			if silent = answers(ctx, a.Address, commit); silent != nil {
				continue
			}
			if done, err := c.succeeded(ctx, name, commit); done || err != nil {
				return a.Address, err
			}
		}
		select {
		case err := <-verdict:
			if err != nil {
				return "", err
			}
			verdict = nil
		case <-ctx.Done():
			err := fmt.Errorf("wait until %s serves %s: %w; see: pipeops events", name, short(commit), context.Cause(ctx))
			return "", errors.Join(err, silent)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// succeeded says whether the read model has the commit's deployment as done, so that a status right behind says the same.
func (c *client) succeeded(ctx context.Context, name, commit string) (bool, error) {
	var out struct{ Status []statusRow }
	if err := c.do(ctx, statusQuery, map[string]any{"project": name}, &out); err != nil {
		return false, err
	}
	return slices.ContainsFunc(out.Status, func(r statusRow) bool { return r.Commit == commit && r.Phase == "SUCCEEDED" }), nil
}

// answers gives nil when the app tells the commit, else what it does instead.
func answers(ctx context.Context, address, commit string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Second, errSlow)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return err
	}
	req.Close = true // the next one goes to who is ready then
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("the app doesn't answer: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return fmt.Errorf("the app's answer: %w", err)
	}
	if !strings.Contains(string(b), commit) {
		return fmt.Errorf("the app at http://%s/ answers %s without commit %s: %.200q", address, resp.Status, short(commit), b)
	}
	return nil
}

// watchCommit shows what happens to a commit until its release serves (nil) or has failed.
func (c *client) watchCommit(ctx context.Context, name, commit string) error {
	filter := map[string]any{"project": name}
	var failure error
	mine := map[string]bool{}
	err := c.follow(ctx, "", filter, func(l domain.Line) error {
		var d struct {
			Commit  string `json:"commit"`
			Release struct {
				Commit string `json:"commit"`
			} `json:"release"`
			Diagnosis *diagnosis `json:"diagnosis"`
		}
		if err := json.Unmarshal(l.Data, &d); err != nil {
			return nil //nolint:nilerr // a body of another shape isn't about the commit
		}
		if d.Commit == commit || d.Release.Commit == commit {
			mine[l.CorrelationID] = true
		}
		if !mine[l.CorrelationID] {
			return nil
		}
		sampleProgress("%s%s", l.Type, gist(l.Data))
		failure = nil
		switch l.Type {
		case "BuildFailed", "DeploymentFailed":
			failure = &coded{exitVerdict, errors.New("\n" + d.Diagnosis.String())}
		case "PushIgnored":
			if d.Diagnosis != nil {
				failure = &coded{exitVerdict, errors.New("\n" + d.Diagnosis.String())}
			}
		case "ReleaseActivated":
			return errEnough
		}
		if failure != nil {
			return errEnough
		}
		return nil
	})
	if failure != nil {
		return failure
	}
	return err
}
