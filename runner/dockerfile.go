package runner

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/runner/args"
	"github.com/pipeops/pipeops/runner/diagnose"
	"github.com/pipeops/pipeops/runner/source"
	"github.com/pipeops/pipeops/runner/workspace"
)

// opened is what the builder gets: the folder that COPY sees, and a copy of the Dockerfile, so that what was checked is
// what is built.
type opened struct {
	context    *os.Root
	folder     *os.Root
	filename   string
	dockerfile *args.Dockerfile
}

// Close lets go of the folders.
func (o *opened) Close() { _ = errors.Join(o.context.Close(), o.folder.Close()) } // they were read only

const maxDockerfile = 1 << 20 // bytes

// dockerfileError is what is wrong with where the Dockerfile is or what it says.
type dockerfileError struct {
	code    string
	line    int
	message string
}

func (e *dockerfileError) Error() string { return e.message }

// open reads the Dockerfile. Nothing outside the commit is read, whatever links say.
func open(f source.Fetched, w *workspace.Workspace, plan domain.BuildPlan) (*opened, error) {
	repository, err := os.OpenRoot(f.Folder)
	if err != nil {
		return nil, fmt.Errorf("open source: %w", err)
	}
	defer repository.Close() //nolint:errcheck // only read
	name := path.Join(plan.RootDir, plan.Dockerfile)
	text, err := read(repository, name)
	if err != nil {
		return nil, err
	}
	dockerfile, err := check(text)
	if err != nil {
		return nil, err
	}
	folder, err := w.Folder("dockerfile")
	if err != nil {
		return nil, err
	}
	o := &opened{filename: path.Base(name), dockerfile: dockerfile}
	files := map[string][]byte{o.filename: text}
	if ignore, err := read(repository, name+".dockerignore"); err == nil {
		files[o.filename+".dockerignore"] = ignore
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(folder, name), text, 0o600); err != nil {
			return nil, fmt.Errorf("copy Dockerfile: %w", err)
		}
	}
	if o.context, err = repository.OpenRoot(path.Clean(plan.RootDir)); err != nil {
		return nil, unreadable(diagnose.RootDirMissing, plan.RootDir, err)
	}
	if o.folder, err = os.OpenRoot(folder); err != nil {
		return nil, errors.Join(fmt.Errorf("open Dockerfile: %w", err), o.context.Close())
	}
	return o, nil
}

func read(repository *os.Root, name string) ([]byte, error) {
	file, err := repository.Open(name)
	if err != nil {
		return nil, unreadable(diagnose.DockerfileMissing, name, err)
	}
	defer file.Close() //nolint:errcheck // only read
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, &dockerfileError{code: diagnose.DockerfileMissing, message: name + " isn't a file"}
	case info.Size() > maxDockerfile:
		return nil, &dockerfileError{code: diagnose.DockerfileLarge, message: fmt.Sprintf("%s has %d bytes", name, info.Size())}
	}
	text, err := io.ReadAll(file)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return text, nil
}

// unreadable tells a file that isn't there from one that lies elsewhere. Other errors are this machine's.
func unreadable(missing, name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &dockerfileError{code: missing, message: "open " + name + ": no such file or directory"}
	case strings.Contains(err.Error(), "path escapes"):
		return &dockerfileError{code: diagnose.DockerfileOutside, message: "open " + name + ": it is a link that leaves the repository"}
	case strings.Contains(err.Error(), "not a directory"):
		return &dockerfileError{code: missing, message: "open " + name + ": a part of it isn't a folder"}
	}
	return fmt.Errorf("open %s: %w", name, err)
}

// check refuses what the builder couldn't read, or what would have it run another program.
func check(text []byte) (*args.Dockerfile, error) {
	d, err := args.Read(text)
	if syntax, ok := errors.AsType[*args.SyntaxError](err); ok {
		return nil, &dockerfileError{code: diagnose.DockerfileSyntax, line: syntax.Line, message: syntax.Error()}
	}
	if err != nil {
		return nil, err
	}
	if !d.BuiltIn() {
		return nil, &dockerfileError{code: diagnose.SyntaxNotAllowed, line: d.FrontendLine, message: "the syntax line names the frontend " + d.Frontend}
	}
	return d, nil
}
