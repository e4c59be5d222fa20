// Package workspace receives the folder of a runner and ids of attempts, and hands out folders that are gone again when
// the attempt is over, or at the next start of any runner of that folder when the process was killed; effects.
//
//	root, swept, err := workspace.Open("/var/lib/pipeops/workspaces")
//	w, err := root.Make("bld_01.1")   // <root>/<incarnation>/bld_01.1, mode 0700
//	defer w.Remove()
//
// Whose process still lives is told by a lock on a file beside the incarnation's folder: the kernel lets go of it however
// the process ends.
package workspace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/google/uuid"
)

// Root is the part of a runner's folder that belongs to this process.
type Root struct {
	dir  string
	lock *os.File
}

const lockSuffix = ".lock"

// Open takes a part of the folder, made if need be, and removes what dead processes left in it; it names the attempts
// whose workspaces those were.
func Open(folder string) (*Root, []string, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make folder of workspaces: %w", err)
	}
	swept, err := sweep(folder)
	if err != nil {
		return nil, nil, fmt.Errorf("sweep workspaces in %s: %w", folder, err)
	}
	for {
		dir := filepath.Join(folder, uuid.Must(uuid.NewV7()).String())
		lock, ok, err := acquire(dir + lockSuffix)
		if err != nil {
			return nil, nil, fmt.Errorf("lock workspaces %s: %w", dir, err)
		}
		if !ok {
			continue // another start swept it in between
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("make folder of workspaces: %w", err), lock.Close())
		}
		return &Root{dir: dir, lock: lock}, swept, nil
	}
}

// acquire makes and locks a file; false when somebody else has it, or had it and removed it.
func acquire(path string) (*os.File, bool, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, false, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, false, f.Close()
	}
	if err != nil {
		return nil, false, errors.Join(err, f.Close())
	}
	locked, err1 := f.Stat()
	there, err2 := os.Stat(path)
	if err1 != nil || err2 != nil || !os.SameFile(locked, there) {
		return nil, false, f.Close()
	}
	return f, true, nil
}

// sweep removes what belongs to nobody alive.
func sweep(folder string) (attempts []string, err error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		incarnation, ok := strings.CutSuffix(e.Name(), lockSuffix)
		if !ok {
			continue
		}
		path := filepath.Join(folder, e.Name())
		lock, ok, err := acquire(path)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		dir := filepath.Join(folder, incarnation)
		left, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, errors.Join(err, lock.Close())
		}
		for _, w := range left {
			attempts = append(attempts, w.Name())
		}
		if err := errors.Join(os.RemoveAll(dir), os.Remove(path), lock.Close()); err != nil {
			return nil, err
		}
	}
	return attempts, nil
}

// Close gives the part back; workspaces that are still there go too.
func (r *Root) Close() error {
	return errors.Join(os.RemoveAll(r.dir), os.Remove(r.dir+lockSuffix), r.lock.Close())
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// Workspace is the folder of one attempt.
type Workspace struct{ path string }

// Make makes the workspace of an attempt. That it exists already is an error: ids of attempts are used once.
func (r *Root) Make(attempt string) (*Workspace, error) {
	if !nameForm.MatchString(attempt) {
		return nil, fmt.Errorf("make workspace: %q can't be a folder's name", attempt)
	}
	w := &Workspace{path: filepath.Join(r.dir, attempt)}
	if err := os.Mkdir(w.path, 0o700); err != nil {
		return nil, fmt.Errorf("make workspace: %w", err)
	}
	return w, nil
}

// Path is where the workspace lies.
func (w *Workspace) Path() string { return w.path }

// Folder makes a folder in the workspace and gives its path.
func (w *Workspace) Folder(name string) (string, error) {
	path := filepath.Join(w.path, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", fmt.Errorf("make folder in workspace: %w", err)
	}
	return path, nil
}

// Remove removes the workspace with all that is in it; once it is gone, it does nothing.
func (w *Workspace) Remove() error {
	if err := os.RemoveAll(w.path); err != nil {
		return fmt.Errorf("remove workspace: %w", err)
	}
	return nil
}
