// Package args receives a Dockerfile and the build args that a user set, and hands back those that go to the builder:
// pure. It reads the Dockerfile with BuildKit's own parser, so that here-documents, continuations, escape directives and
// quoting mean what they mean to the builder.
//
//	d, err := args.Read(dockerfile)          // *SyntaxError tells the line
//	f := d.Filter(plan.Args, args.Own(commit))
//	f.Passed, f.Names, f.Dropped
package args

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// Names of the build args that PipeOps gives to each build whose Dockerfile declares them. Both hold the full hash of
// the commit.
const (
	BuildSHA  = "PIPEOPS_BUILD_SHA"
	GitCommit = "PIPEOPS_GIT_COMMIT"
)

// Own gives PipeOps' own build args.
func Own(commit string) map[string]string {
	return map[string]string{BuildSHA: commit, GitCommit: commit}
}

// reserved prefixes: the builder itself reads BUILDKIT_…, and PIPEOPS_… are ours.
var reserved = []string{"BUILDKIT_", "PIPEOPS_"}

// steering args are set by the builder; a value from a user would override what platform is built.
var steering = []string{
	"BUILDPLATFORM", "BUILDOS", "BUILDOSVERSION", "BUILDARCH", "BUILDVARIANT",
	"TARGETPLATFORM", "TARGETOS", "TARGETOSVERSION", "TARGETARCH", "TARGETVARIANT", "TARGETSTAGE",
}

// predeclared args can be used without ARG, in upper and lower case.
var predeclared = []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"}

// Dockerfile is what counts here of a Dockerfile.
type Dockerfile struct {
	declared map[string]bool
	// Frontend is the image that a syntax line names, empty without one, and FrontendLine where.
	Frontend     string
	FrontendLine int
}

// SyntaxError is a Dockerfile that the builder's parser refuses.
type SyntaxError struct {
	Line int // from 1; 0: not known
	Err  error
}

func (e *SyntaxError) Error() string { return e.Err.Error() }
func (e *SyntaxError) Unwrap() error { return e.Err }

// Read reads a Dockerfile.
func Read(text []byte) (*Dockerfile, error) {
	d := &Dockerfile{declared: map[string]bool{}}
	if ref, _, at, ok := parser.DetectSyntax(text); ok {
		d.Frontend, d.FrontendLine = ref, line(at)
	}
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, syntaxError(err)
	}
	stages, global, err := instructions.Parse(parsed.AST, linter.New(&linter.Config{}))
	if err != nil {
		return nil, syntaxError(err)
	}
	lex := shell.NewLex(parsed.EscapeToken)
	for i := range global {
		d.declare(&global[i], lex)
	}
	for _, stage := range stages {
		for _, c := range stage.Commands {
			if arg, ok := c.(*instructions.ArgCommand); ok {
				d.declare(arg, lex)
			}
		}
	}
	return d, nil
}

func (d *Dockerfile) declare(c *instructions.ArgCommand, lex *shell.Lex) {
	for _, arg := range c.Args {
		name, _, err := lex.ProcessWord(arg.Key, shell.EnvsFromSlice(nil))
		if err != nil {
			name = arg.Key
		}
		d.declared[name] = true
	}
}

func syntaxError(err error) error {
	var at *parser.LocationError
	if errors.As(err, &at) && len(at.Locations) > 0 {
		return &SyntaxError{Line: line(at.Locations[0]), Err: err}
	}
	return &SyntaxError{Err: err}
}

func line(at []parser.Range) int {
	if len(at) == 0 {
		return 0
	}
	return at[0].Start.Line
}

// BuiltIn says whether the Dockerfile is one for the builder's own frontend: it names none, or docker/dockerfile in any
// version. Any other is a program of somebody's that would see all that the builder is told.
func (d *Dockerfile) BuiltIn() bool {
	name := strings.TrimPrefix(d.Frontend, "docker.io/")
	name, _, _ = strings.Cut(name, "@")
	name, _, _ = strings.Cut(name, ":")
	return name == "" || name == "docker/dockerfile"
}

// Filtered is what becomes of build args.
type Filtered struct {
	Passed  map[string]string
	Names   []string // of Passed, sorted
	Dropped []string // of the user's, sorted: not declared by an ARG, or not theirs to set
}

// Filter gives the build args of the user that the Dockerfile declares, and our own ones that it declares.
func (d *Dockerfile) Filter(user, own map[string]string) Filtered {
	f := Filtered{Passed: map[string]string{}, Names: []string{}, Dropped: []string{}}
	for name, value := range user {
		if d.takes(name) {
			f.Passed[name] = value
		} else {
			f.Dropped = append(f.Dropped, name)
		}
	}
	for name, value := range own {
		if d.declared[name] {
			f.Passed[name] = value
		}
	}
	f.Names = append(f.Names, slices.Sorted(maps.Keys(f.Passed))...)
	slices.Sort(f.Dropped)
	return f
}

func (d *Dockerfile) takes(name string) bool {
	for _, prefix := range reserved {
		if strings.HasPrefix(strings.ToUpper(name), prefix) {
			return false
		}
	}
	if slices.Contains(steering, name) {
		return false
	}
	return d.declared[name] || slices.Contains(predeclared, strings.ToUpper(name)) && (name == strings.ToUpper(name) || name == strings.ToLower(name))
}
