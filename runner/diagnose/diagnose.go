// Package diagnose receives what is known of a failed build, and hands back a domain.Diagnosis: what happened in the
// tool's own words, why in plain ones, and what to do, in order: pure. The knowledge stands in rules.go.
package diagnose

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pipeops/pipeops/domain"
)

// Stages of a build.
const (
	Source     = "source"
	Dockerfile = "dockerfile"
	Build      = "build"
	Push       = "push"
)

// Failure is what is known. Texts hold no secrets.
type Failure struct {
	Stage    string
	Code     string   // when the cause is known already; else it is found by the rules
	Step     string   // "[2/3] RUN make"
	Message  string   // of the tool
	ExitCode int      // of a step's program; 0: none failed
	Line     int      // of the Dockerfile, from 1; 0: not known
	Log      []string // last lines of the step

	Build      domain.BuildID
	Project    string // name
	Dockerfile string // path within the repository
	Image      string // repository of images
	Commit     string
	Ref        string
}

const (
	maxLog   = 20      // lines in a diagnosis
	maxLine  = 500     // bytes of one
	maxError = 2 << 10 // bytes
)

// Explain finds the first rule that fits.
func Explain(f Failure) domain.Diagnosis {
	text := strings.ToLower(f.Message + "\n" + strings.Join(f.Log, "\n"))
	for _, r := range rules {
		if r.fits(f, text) {
			return r.diagnosis(f)
		}
	}
	return unknown.diagnosis(f)
}

// rule is one known cause.
type rule struct {
	code   string
	stage  string // where it counts; empty: anywhere
	exits  []int  // exit codes of the step; nil: any, also none; empty: any that tells a failure
	said   []string
	title  string
	reason string
	fixes  []string
}

// fits: a known code decides alone. Else the stage must be right, and one of the texts or one of the exit codes must be
// there; both, where the rule names both.
func (r rule) fits(f Failure, text string) bool {
	if f.Code != "" {
		return f.Code == r.code
	}
	if r.stage != "" && r.stage != f.Stage || r.said == nil && r.exits == nil {
		return false
	}
	return (r.said == nil || mentions(text, r.said)) && (r.exits == nil || has(r.exits, f.ExitCode))
}

// mentions wants one of the texts; within one, " … " stands for anything between.
func mentions(output string, texts []string) bool {
	for _, text := range texts {
		rest, all := output, true
		for part := range strings.SplitSeq(text, " … ") {
			_, after, ok := strings.Cut(rest, part)
			rest, all = after, all && ok
		}
		if all {
			return true
		}
	}
	return false
}

// has: an empty list means any but 0.
func has(codes []int, code int) bool {
	return len(codes) == 0 && code != 0 || slices.Contains(codes, code)
}

func (r rule) diagnosis(f Failure) domain.Diagnosis {
	fill := strings.NewReplacer(append(noLine(f.Line),
		"{dockerfile}", f.Dockerfile, "{image}", f.Image, "{commit}", f.Commit, "{ref}", f.Ref, "{project}", f.Project,
		"{exit}", strconv.Itoa(f.ExitCode), "{line}", strconv.Itoa(f.Line), "{registry}", registry(f.Image), "{message}", firstLine(f.Message),
	)...)
	d := domain.Diagnosis{
		Code: r.code, Title: "Build failed: " + fill.Replace(r.title), Step: f.Step, Error: clip(f.Message, maxError),
		Reason: fill.Replace(r.reason), Run: "pipeops logs " + string(f.Build),
	}
	if f.Step == "" {
		d.Step = f.Stage
	}
	if f.Line > 0 {
		d.Error = fmt.Sprintf("%s:%d: %s", f.Dockerfile, f.Line, d.Error)
	}
	for _, fix := range r.fixes {
		d.Fixes = append(d.Fixes, fill.Replace(fix))
	}
	for _, line := range f.Log[max(0, len(f.Log)-maxLog):] {
		d.Log = append(d.Log, clip(line, maxLine))
	}
	return d
}

// noLine drops what rules say of a line that isn't known.
func noLine(line int) []string {
	if line > 0 {
		return nil
	}
	return []string{" on line {line} of {dockerfile}", "", " on line {line}", "", " of line {line}", " of a step"}
}

func registry(image string) string {
	host, _, _ := strings.Cut(image, "/")
	return host
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return clip(line, 200)
}

func clip(text string, limit int) string {
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "…"
	}
	return text
}
