// Package diagnose receives what the cluster shows of a rollout (objects, cluster events, refusals of the API server)
// from deploy, and hands back what is wrong in plain words, what to do about it, and whether waiting can still help;
// pure.
//
// The signatures are data (rules.go): conditions and the states of containers decide, cluster events only explain,
// because they come late or never. A release is judged by its own pods alone: those of the new ReplicaSet.
//
//	x := diagnose.NewExaminer(request)
//	v := x.Examine(evidence)             // again and again
//	if v.Final { … v.Diagnosis … }       // no use in waiting for the deadline
package diagnose

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/pipeops/pipeops/domain"
)

// Step is the step that a failing rollout names.
const Step = "rollout"

// Evidence is what the cluster shows of one rollout at one moment.
type Evidence struct {
	ReplicaSet *appsv1.ReplicaSet // of the new template; nil while there is none
	Pods       []*corev1.Pod      // of that ReplicaSet
	Events     []*corev1.Event    // of them, as far as they are known
	Now        time.Time
}

// Verdict is what an examination found. The zero value: nothing is wrong.
type Verdict struct {
	Final     bool             // waiting can't help
	Message   string           // one line; empty when nothing is wrong
	Diagnosis domain.Diagnosis // without log; its code is empty when nothing is wrong
	Log       *Log             // whose output explains it; nil = nobody's
}

// Log names the output of a container.
type Log struct {
	Pod, Container string
	Previous       bool   // of the run before the current one
	Kept           string // what the cluster kept of it, in case that nothing can be read
}

// Examiner examines one rollout repeatedly, and remembers since when it has seen each sign. Not for concurrent use.
type Examiner struct {
	request domain.DeploymentRequested
	since   map[string]sighting // by uid
}

type sighting struct {
	code  string
	since time.Time
}

// NewExaminer begins the examination of the rollout of r.
func NewExaminer(r domain.DeploymentRequested) *Examiner {
	return &Examiner{request: r, since: map[string]sighting{}}
}

// finding is one object with its first matching row.
type finding struct {
	fact  fact
	row   *row
	final bool
}

// Examine judges what the cluster shows. It is final when one cause, each time final by its own rule, has stopped two
// pods, or all that aren't ready.
func (x *Examiner) Examine(e Evidence) Verdict {
	if e.ReplicaSet != nil {
		if f, ok := x.find(string(e.ReplicaSet.UID), createFacts(e.ReplicaSet), e.Now); ok {
			return x.verdict(f, f.final)
		}
	}
	var found []finding
	waiting := 0
	for _, p := range e.Pods {
		if p.DeletionTimestamp != nil || ready(p) {
			delete(x.since, string(p.UID))
			continue
		}
		f, ok := x.find(string(p.UID), podFacts(p, eventsOf(e.Events, string(p.UID))), e.Now)
		if ok && f.row.advice == &nodeProblem { // not the release's fault, whatever else the pod shows
			found = append(found, f)
			continue
		}
		waiting++
		if ok {
			found = append(found, f)
		}
	}
	return x.judge(found, waiting)
}

// Overdue is the verdict when the time is over: the best explanation that there is, else that it took too long.
func (x *Examiner) Overdue(e Evidence, shown string) Verdict {
	v := x.Examine(e)
	if v.Diagnosis.Code == "" {
		v = x.verdict(finding{fact: fact{message: shown}, row: &row{advice: &overdue}}, true)
	}
	v.Final = true
	return v
}

func (x *Examiner) judge(found []finding, waiting int) Verdict {
	if len(found) == 0 {
		return Verdict{}
	}
	finals := map[*advice]int{}
	for _, f := range found {
		if f.final {
			finals[f.row.advice]++
		}
	}
	// The most advanced cause first; among equals the one that stands first in the table.
	worst := slices.MinFunc(found, func(a, b finding) int {
		return cmp.Or(cmp.Compare(finals[b.row.advice], finals[a.row.advice]), cmp.Compare(a.row.place, b.row.place))
	})
	n := finals[worst.row.advice]
	return x.verdict(worst, n >= 2 || n > 0 && n == waiting)
}

// find takes the first row that matches any of the facts.
func (x *Examiner) find(uid string, facts []fact, now time.Time) (finding, bool) {
	for i := range rows {
		for _, f := range facts {
			if !rows[i].matches(f, x.request.Release.Image) {
				continue
			}
			code := rows[i].code
			if x.since[uid].code != code {
				x.since[uid] = sighting{code, now}
			}
			lasted := now.Sub(x.since[uid].since)
			return finding{fact: f, row: &rows[i], final: rows[i].final(f, lasted)}, true
		}
	}
	return finding{}, false
}

func (x *Examiner) verdict(f finding, final bool) Verdict {
	d := f.row.diagnosis(x.request, f.fact)
	return Verdict{
		Final: final, Diagnosis: d, Log: f.fact.log,
		Message: strings.TrimPrefix(d.Title, titlePrefix) + ": " + oneLine(f.fact.text()),
	}
}

const titlePrefix = "Deployment failed: "

// diagnosis fills the advice's blanks.
func (a *advice) diagnosis(r domain.DeploymentRequested, f fact) domain.Diagnosis {
	fill := strings.NewReplacer(
		"{image}", r.Release.Image,
		"{port}", strconv.Itoa(r.Spec.Port),
		"{path}", r.Spec.Health.Path,
		"{memory}", cmp.Or(r.Spec.MemoryLimit, "none"),
		"{asked}", asked(r.Spec),
		"{command}", cmp.Or(strings.Join(r.Spec.Command, " "), "the image's own"),
		"{exit}", strconv.Itoa(int(f.exit)),
		"{project}", r.ProjectName, "{service}", r.ServiceName, "{namespace}", r.Namespace,
	)
	d := domain.Diagnosis{
		Code: a.code, Title: titlePrefix + fill.Replace(a.title), Step: Step,
		Error: f.text(), Reason: fill.Replace(a.reason), Run: fill.Replace(a.run),
		ReleaseAtFault: a.blames,
	}
	if f.init {
		d.Step += ", init container " + f.container
	}
	if f.where == waits && strings.Contains(f.reason, "Image") && !strings.Contains(d.Error, r.Release.Image) {
		d.Error = fmt.Sprintf("image %q: %s", r.Release.Image, d.Error)
	}
	for _, fix := range a.fixes {
		d.Fixes = append(d.Fixes, fill.Replace(fix))
	}
	return d
}

func asked(s domain.ServiceSpec) string {
	var parts []string
	for _, p := range [][2]string{{s.CPURequest, " CPU"}, {s.MemoryRequest, " memory"}} {
		if p[0] != "" {
			parts = append(parts, p[0]+p[1])
		}
	}
	return cmp.Or(strings.Join(parts, " and "), "nothing")
}

// maxLogLines and maxLogBytes bound what of a log goes into a diagnosis.
const (
	maxLogLines = 20
	maxLogBytes = 4 << 10
)

// Tail gives the last lines of output, at most 20 and 4 KiB, without control characters.
func Tail(output string) []string {
	output = strings.TrimRight(output, "\n")
	if output == "" {
		return nil
	}
	if len(output) > maxLogBytes {
		output = output[len(output)-maxLogBytes:]
		if _, rest, whole := strings.Cut(output, "\n"); whole {
			output = rest
		}
	}
	lines := strings.Split(output, "\n")
	lines = lines[max(0, len(lines)-maxLogLines):]
	for i, l := range lines {
		lines[i] = printable(l)
	}
	return lines
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "�"))
}

// maxLine bounds the one-line message of a progress event, in bytes.
const maxLine = 300

func oneLine(s string) string {
	s = printable(strings.Join(strings.Fields(s), " "))
	if len(s) > maxLine {
		s = strings.ToValidUTF8(s[:maxLine], "") + "…"
	}
	return s
}
