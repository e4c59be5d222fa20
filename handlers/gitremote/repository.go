package gitremote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// repository is one project's bare repository.
type repository struct {
	project domain.ProjectID
	dir     string

	making sync.Mutex // held while it is made

	mu    sync.Mutex       // held while entries are recorded: they keep their order
	read  map[string]*mark // by ref: how much of its reflog is recorded
	grown bool             // since it was tidied up last
}

// repository gives the project's, which needs not be on disk yet.
func (r *Remote) repository(project domain.ProjectID) *repository {
	r.mu.Lock()
	defer r.mu.Unlock()
	repo := r.repositories[project]
	if repo == nil {
		repo = &repository{project: project, dir: filepath.Join(r.cfg.Root, string(project)+suffix), read: map[string]*mark{}}
		r.repositories[project] = repo
	}
	return repo
}

const (
	suffix       = ".git"
	settingsFile = "pipeops.gitconfig"
	hooksFolder  = "hooks"
)

// settings of every repository, included by each, so that a new version of
// PipeOps changes them all. fsck looks for what can hurt, but lets through the
// harmless oddities that old histories are full of.
const settings = `# Written by pipeops at each start.
[core]
	logAllRefUpdates = always
	hooksPath = %s
	fsync = committed,loose-object
[http]
	receivepack = true
	uploadpack = true
	getanyfile = false
[receive]
	fsckObjects = true
	maxInputSize = %d
	autogc = false
	denyDeleteCurrent = refuse
[receive "fsck"]
	zeroPaddedFilemode = warn
	missingSpaceBeforeDate = warn
	badTimezone = warn
	badDateOverflow = warn
	missingEmail = warn
[uploadpack]
	allowReachableSHA1InWant = true
	allowAnySHA1InWant = true
	allowFilter = true
[pack]
	threads = 1
	windowMemory = 64m
[gc]
	reflogExpire = never
	reflogExpireUnreachable = never
	autoDetach = false
`

// hook hands on to the serving process. A push around it, into the folder
// itself, is found in the reflog.
const hook = `#!/bin/sh
# Written by pipeops at each start.
if [ -z "$PIPEOPS_HOOK_PROGRAM" ]; then
	cat >/dev/null
	echo "pipeops: this push is recorded within a minute"
	exit 0
fi
exec "$PIPEOPS_HOOK_PROGRAM" hook %s
`

// prepare writes what all repositories share.
func (r *Remote) prepare() error {
	hooks := filepath.Join(r.cfg.Root, hooksFolder)
	if err := os.MkdirAll(hooks, 0o700); err != nil {
		return fmt.Errorf("git remote: make folder %s: %w", hooks, err)
	}
	err := replaceFile(filepath.Join(r.cfg.Root, settingsFile), fmt.Sprintf(settings, strconv.Quote(hooks), r.cfg.MaxPush), 0o600)
	for _, name := range []string{preReceive, postReceive} {
		err = errors.Join(err, replaceFile(filepath.Join(hooks, name), fmt.Sprintf(hook, name), 0o700))
	}
	if err != nil {
		return fmt.Errorf("git remote: write git's settings and hooks: %w", err)
	}
	return nil
}

// anew is a file that says that the repositories are lost, and may begin empty.
const anew = "begin-anew"

// present refuses to serve a folder without repositories when the log has
// pushes to them: it is another one, or lost, and pushes into it would be
// taken for histories that begin again.
func (r *Remote) present(ctx context.Context) error {
	here, err := os.ReadDir(r.cfg.Root)
	if err != nil {
		return fmt.Errorf("git remote: list repositories: %w", err)
	}
	if slices.ContainsFunc(here, func(e fs.DirEntry) bool { return strings.HasSuffix(e.Name(), suffix) || e.Name() == anew }) {
		return nil
	}
	recorded, err := r.recorded(ctx)
	if err != nil {
		return fmt.Errorf("git remote: look for pushes in the log: %w", err)
	}
	if recorded {
		return fmt.Errorf("git remote: %s holds no repository, but the log has pushes to this remote: mount the volume that holds them"+
			" (all copies of serve share it), restore them from the backup, or, where they are lost, make an empty file %s there", r.cfg.Root, anew)
	}
	return nil
}

// recorded says whether the log has a push to this remote.
func (r *Remote) recorded(ctx context.Context) (bool, error) {
	for e, err := range r.cfg.Store.Read(ctx, eventstore.Query{Types: []string{"PushReceived"}}) {
		if err != nil {
			return false, err
		}
		if strings.HasPrefix(string(e.Stream), string(domain.PushStream(e.ProjectID, Source, ""))) {
			return true, nil
		}
	}
	return false, nil
}

// replaceFile changes a file at once: git may be reading it.
func replaceFile(path, text string, mode os.FileMode) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, []byte(text), mode); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// ensure makes the repository when it isn't there, and lets its HEAD follow the project's branch.
func (r *Remote) ensure(ctx context.Context, p Project) (*repository, error) {
	repo := r.repository(p.ID)
	repo.making.Lock()
	defer repo.making.Unlock()
	if p.Branch == "" {
		p.Branch = "main"
	}
	head, err := os.ReadFile(filepath.Join(repo.dir, "HEAD"))
	if errors.Is(err, fs.ErrNotExist) {
		return repo, r.create(ctx, repo, p.Branch)
	}
	if err != nil {
		return nil, fmt.Errorf("read repository of project %s: %w", p.ID, err)
	}
	if want := "ref: refs/heads/" + p.Branch; strings.TrimSpace(string(head)) != want {
		_, err = repo.git(ctx, "symbolic-ref", "HEAD", "refs/heads/"+p.Branch)
	}
	return repo, err
}

// create makes it beside its place and moves it there, so that a crash leaves no half of one.
func (r *Remote) create(ctx context.Context, repo *repository, branch string) error {
	temporary, err := os.MkdirTemp(r.cfg.Root, "new-")
	if err != nil {
		return fmt.Errorf("make repository of project %s: %w", repo.project, err)
	}
	defer os.RemoveAll(temporary) //nolint:errcheck // after the rename nothing is there
	for _, args := range [][]string{
		{"init", "--quiet", "--bare", "--template=", "--initial-branch=" + branch, temporary},
		{"--git-dir=" + temporary, "config", "include.path", "../" + settingsFile},
	} {
		if _, err := runGit(ctx, args...); err != nil {
			return fmt.Errorf("make repository of project %s: %w", repo.project, err)
		}
	}
	if err := os.Rename(temporary, repo.dir); err != nil {
		return fmt.Errorf("make repository of project %s: %w", repo.project, err)
	}
	return nil
}

// git runs a git command on the repository and gives its output.
func (repo *repository) git(ctx context.Context, args ...string) ([]byte, error) {
	return runGit(ctx, append([]string{"--git-dir=" + repo.dir}, args...)...)
}

func runGit(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "git", args...) //nolint:gosec // the arguments are ours; hashes come from git, branches are checked
	cmd.Env = gitEnv()
	cmd.WaitDelay = 5 * time.Second
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(problem.Bytes()))
	}
	return out, nil
}

// gitEnv keeps git from the settings of whoever runs the server, and the server's own environment from git.
func gitEnv() []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_TERMINAL_PROMPT=0",
		"GIT_DEFAULT_REF_FORMAT=files", "GIT_DEFAULT_HASH=sha1",
	}
}
