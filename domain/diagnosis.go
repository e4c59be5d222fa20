package domain

import (
	"fmt"
	"strconv"
	"strings"
)

// Diagnosis is how anything that failed speaks, everywhere.
type Diagnosis struct {
	Code   string   `json:"code"`           // stable, upper case: "IMAGE_PULL_AUTH"
	Title  string   `json:"title"`          // one line: "Deployment failed: ImagePullBackOff"
	Step   string   `json:"step,omitempty"` // where it happened: "[build 3/5] RUN go build", "rollout"
	Error  string   `json:"error"`          // the tool's own message
	Reason string   `json:"reason"`         // in plain words
	Fixes  []string `json:"fixes"`          // what to do, in order
	Run    string   `json:"run,omitempty"`  // the command to type next
	Docs   string   `json:"docs,omitempty"` // where to read on
	Log    []string `json:"log,omitempty"`  // last lines of output, at most 20, secrets masked

	// the image or its configuration is the cause, so that the release would fail again: it is barred; not set for
	// trouble of cluster, registry or workers, nor when the cause isn't known
	ReleaseAtFault bool `json:"releaseAtFault,omitempty"`
}

// String renders it for a terminal.
func (d Diagnosis) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "❌ %s\n\n", d.Title)
	if d.Step != "" {
		fmt.Fprintf(&b, "Step: %s\n", d.Step)
	}
	fmt.Fprintf(&b, "Error: %s\nReason: %s\n", d.Error, d.Reason)
	if len(d.Log) > 0 {
		b.WriteString("\nLog:\n")
		for _, l := range d.Log {
			b.WriteString("  " + l + "\n")
		}
	}
	b.WriteString("\nFix:\n")
	for i, f := range d.Fixes {
		fmt.Fprintf(&b, "%d. %s\n", i+1, f)
	}
	if d.Run != "" {
		fmt.Fprintf(&b, "\nRun: %s\n", d.Run)
	}
	if d.Docs != "" {
		fmt.Fprintf(&b, "Docs: %s\n", d.Docs)
	}
	return b.String()
}

// PushAgain is the advice to have a commit built again: builds are asked for by pushes alone.
const PushAgain = `push again, an empty commit will do: git commit --allow-empty -m "build again" && git push`

// MaxAttempts is how often a build, a deployment or its roll-back is tried
// when workers are lost. What fails by itself isn't tried again, and a worker
// that was asked to end counts for nothing.
const MaxAttempts = 3

func exhausted(what, lastReason, again string) Diagnosis {
	return Diagnosis{
		Code: "ATTEMPTS_EXHAUSTED", Title: what + " failed: its workers were lost", Step: "attempt " + strconv.Itoa(MaxAttempts),
		Error:  lastReason,
		Reason: fmt.Sprintf("%d attempts in a row lost their worker before the end", MaxAttempts),
		Fixes: []string{
			"Look at the logs of the workers: out of memory and lost connections are the usual causes",
			"Check that RabbitMQ and BuildKit or the cluster can be reached from the workers",
			again,
		},
		Run: "pipeops doctor",
	}
}
