package build

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
)

// Step is one step of the Dockerfile that is over.
type Step struct {
	Digest   string // of the vertex
	Name     string // "[build 2/5] COPY go.mod ."
	Cached   bool   // it was there already
	Duration time.Duration
}

// Made says what the image took.
type Made struct {
	Steps    int
	Cached   int // of Steps
	Duration time.Duration
}

// Watch is told what happens, in order, from one goroutine at a time. All fields may be nil.
type Watch struct {
	Step    func(Step)                                     // each step once
	Made    func(Made)                                     // once, before the push
	Retried func(try int, reason string, in time.Duration) // the push failed for now
	Output  func([]byte)                                   // whole lines for people, "#4 [2/3] RUN make"; masked
	// Effect is asked before each solve and each push again; its error ends the build.
	Effect func() error
}

// progress is a fold of what the daemon says. Its messages repeat, and vertices start and complete again: each is told
// when it completes for the first time, and what was cached once stays so.
type progress struct {
	watch    Watch
	mask     func(string) string
	began    time.Time
	now      func() time.Time
	vertices map[digest.Digest]*vertex
	told     map[string]bool // steps, by name: another solve gives them other digests
	made     Made
	export   *vertex // "exporting to image", once it was seen to start
	exported bool    // Made was told
}

type vertex struct {
	number    int
	name      string
	started   bool
	completed bool
	pulled    bool   // of a base image: layers were transferred
	cut       bool   // completed only because the solve ended
	failure   string // its last error
	partial   []byte // line that isn't over
	tail      []string
}

const (
	// tailLines of each vertex are kept to find out why it failed.
	tailLines = 200
	// longestLine is how much is held back to wait for the end of a line.
	longestLine = 16 << 10
)

// stepName is the name of a step of a Dockerfile: "[2/3] RUN make", "[linux/arm64 build 1/4] FROM golang".
var stepName = regexp.MustCompile(`^\[([^\]]* )?\d+/\d+\] `)

func newProgress(w Watch, mask func(string) string, now func() time.Time) *progress {
	return &progress{watch: w, mask: mask, began: now(), now: now, vertices: map[digest.Digest]*vertex{}, told: map[string]bool{}}
}

func (p *progress) take(s *client.SolveStatus) {
	for _, v := range s.Vertexes {
		p.vertex(v)
	}
	for _, status := range s.Statuses {
		if v := p.vertices[status.Vertex]; v != nil && strings.HasPrefix(status.ID, "sha256:") {
			v.pulled = true
		}
	}
	for _, w := range s.Warnings {
		if v := p.vertices[w.Vertex]; v != nil {
			p.line(v, "WARN: "+string(w.Short))
		}
	}
	for _, l := range s.Logs {
		if v := p.vertices[l.Vertex]; v != nil {
			p.log(v, l.Data)
		}
	}
}

func (p *progress) vertex(now *client.Vertex) {
	v := p.vertices[now.Digest]
	if v == nil {
		v = &vertex{number: len(p.vertices) + 1, name: p.mask(now.Name)}
		p.vertices[now.Digest] = v
	}
	if now.Started != nil && !v.started {
		v.started = true
		if v.name == "exporting to image" {
			p.export = v
			p.tellMade()
		}
		p.line(v, v.name)
	}
	if now.Error != "" {
		v.failure = p.mask(now.Error)
	}
	if now.Completed != nil && !v.completed {
		p.complete(v, now)
	}
}

func (p *progress) complete(v *vertex, now *client.Vertex) {
	v.completed = true
	p.flush(v)
	cached := now.Cached || isBase(v.name) && !v.pulled
	var took time.Duration
	if now.Started != nil {
		took = now.Completed.Sub(*now.Started)
	}
	switch {
	case canceled(now.Error):
		v.cut = true
		p.line(v, "CANCELED")
		return
	case now.Error != "":
		p.line(v, "ERROR: "+v.failure)
		return
	case cached:
		p.line(v, "CACHED")
	default:
		p.line(v, fmt.Sprintf("DONE %.1fs", took.Seconds()))
	}
	if !stepName.MatchString(v.name) || p.told[v.name] {
		return
	}
	p.told[v.name] = true
	p.made.Steps++
	if cached {
		p.made.Cached++
	}
	if p.watch.Step != nil {
		p.watch.Step(Step{Digest: now.Digest.String(), Name: v.name, Cached: cached, Duration: took})
	}
}

// isBase says whether a step only names an image: BuildKit calls it cached only when something below it was.
func isBase(step string) bool {
	_, instruction, _ := strings.Cut(step, "] ")
	return strings.HasPrefix(instruction, "FROM ")
}

// canceled says whether a vertex failed only because another one did.
func canceled(failure string) bool { return strings.HasSuffix(failure, "context canceled") }

// tellMade tells once that the image is made.
func (p *progress) tellMade() {
	if p.exported {
		return
	}
	p.exported = true
	p.made.Duration = p.now().Sub(p.began)
	if p.watch.Made != nil {
		p.watch.Made(p.made)
	}
}

// log takes output, which comes in pieces that end anywhere; only whole lines can be masked.
func (p *progress) log(v *vertex, data []byte) {
	v.partial = append(v.partial, data...)
	for {
		line, rest, ok := bytes.Cut(v.partial, []byte("\n"))
		if !ok {
			break
		}
		v.partial = rest
		p.output(v, line)
	}
	if len(v.partial) > longestLine {
		p.flush(v)
	}
}

// flush tells a line that has no end.
func (p *progress) flush(v *vertex) {
	if len(v.partial) > 0 {
		p.output(v, v.partial)
		v.partial = nil
	}
}

func (p *progress) output(v *vertex, line []byte) {
	// What stands before a carriage return was overwritten on a terminal.
	line = bytes.TrimSuffix(line, []byte("\r"))
	line = line[bytes.LastIndexByte(line, '\r')+1:]
	text := p.mask(strings.ToValidUTF8(string(line), "?"))
	if v.tail = append(v.tail, text); len(v.tail) > tailLines {
		v.tail = v.tail[1:]
	}
	p.line(v, text)
}

func (p *progress) line(v *vertex, text string) {
	if p.watch.Output != nil {
		p.watch.Output(fmt.Appendf(nil, "#%d %s\n", v.number, text))
	}
}

// end tells lines that have no end, of vertices that never completed.
func (p *progress) end() {
	for _, v := range p.vertices {
		p.flush(v)
	}
}

// again gets ready for another solve, in which vertices complete a second time.
func (p *progress) again() {
	if p.export != nil {
		p.export.started, p.export.completed, p.export.failure = false, false, ""
		p.export = nil
	}
}

// pushFailed says whether it was the export, which includes the push, that failed.
func (p *progress) pushFailed() bool {
	return p.export != nil && p.export.failure != "" && !canceled(p.export.failure)
}

// failed gives the vertex that is at fault: the named one, else one that has an error of its own.
func (p *progress) failed(named digest.Digest) *vertex {
	if v := p.vertices[named]; v != nil {
		return v
	}
	var found *vertex
	for _, v := range p.vertices {
		if v.failure != "" && !canceled(v.failure) && (found == nil || v.number < found.number) {
			found = v
		}
	}
	return found
}
