package build

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
)

// told folds statuses and gives what the watch was told.
func told(statuses ...*client.SolveStatus) []string {
	var out []string
	say := func(format string, values ...any) { out = append(out, fmt.Sprintf(format, values...)) }
	p := newProgress(Watch{
		Step:   func(s Step) { say("step %s cached=%v", s.Name, s.Cached) },
		Made:   func(m Made) { say("made %d of which cached %d", m.Steps, m.Cached) },
		Output: func(b []byte) { say("%s", strings.TrimSuffix(string(b), "\n")) },
	}, func(s string) string { return strings.ReplaceAll(s, "secret", "***") }, time.Now)
	for _, s := range statuses {
		p.take(s)
	}
	p.end()
	return out
}

var (
	t0 = time.Unix(100, 0)
	t1 = time.Unix(102, 0)
)

func vertexOf(id, name string, started, completed *time.Time, change func(*client.Vertex)) *client.SolveStatus {
	v := &client.Vertex{Digest: digest.Digest("sha256:" + id), Name: name, Started: started, Completed: completed}
	if change != nil {
		change(v)
	}
	return &client.SolveStatus{Vertexes: []*client.Vertex{v}}
}

func output(id, text string) *client.SolveStatus {
	return &client.SolveStatus{Logs: []*client.VertexLog{{Vertex: digest.Digest("sha256:" + id), Data: []byte(text)}}}
}

func cached(v *client.Vertex) { v.Cached = true }

func TestEachStepIsToldOnceWhenItIsOver(t *testing.T) {
	t.Parallel()
	got := told(
		vertexOf("a", "[internal] load build definition", &t0, &t1, nil),
		vertexOf("b", "[1/3] FROM busybox", nil, nil, nil),
		vertexOf("c", "[2/3] COPY . .", nil, nil, nil),
		vertexOf("b", "[1/3] FROM busybox", &t0, &t1, nil),
		vertexOf("c", "[2/3] COPY . .", &t0, &t1, cached),
		vertexOf("c", "[2/3] COPY . .", &t0, &t1, nil), // pulled lazily: cached all the same
		vertexOf("d", "[3/3] RUN make", &t0, nil, nil),
		output("d", "half a li"), output("d", "ne\nbar 1%\rbar 100%\r\nwith a sec"), output("d", "ret"),
		vertexOf("d", "[3/3] RUN make", &t0, &t1, nil),
		vertexOf("d", "[3/3] RUN make", &t0, &t1, nil),
		vertexOf("e", "exporting to image", &t0, &t1, nil),
		vertexOf("e", "exporting to image", &t0, &t1, nil),
	)
	want := []string{
		"#1 [internal] load build definition", "#1 DONE 2.0s",
		"#2 [1/3] FROM busybox", "#2 CACHED", "step [1/3] FROM busybox cached=true",
		"#3 [2/3] COPY . .", "#3 CACHED", "step [2/3] COPY . . cached=true",
		"#4 [3/3] RUN make", "#4 half a line", "#4 bar 100%", "#4 with a ***", "#4 DONE 2.0s", "step [3/3] RUN make cached=false",
		"made 3 of which cached 2", "#5 exporting to image", "#5 DONE 2.0s",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestBaseImageThatWasPulledIsNoCacheHit(t *testing.T) {
	t.Parallel()
	got := told(
		vertexOf("b", "[1/1] FROM busybox", &t0, nil, nil),
		&client.SolveStatus{Statuses: []*client.VertexStatus{{ID: "sha256:1", Vertex: "sha256:b", Total: 10}}},
		vertexOf("b", "[1/1] FROM busybox", &t0, &t1, nil),
	)
	if last := got[len(got)-1]; last != "step [1/1] FROM busybox cached=false" {
		t.Error(got)
	}
}

func TestStepThatWasOnlyCanceledIsNotAtFault(t *testing.T) {
	t.Parallel()
	p := newProgress(Watch{}, func(s string) string { return s }, time.Now)
	p.take(vertexOf("a", "[a 1/1] RUN sleep", &t0, &t1, func(v *client.Vertex) { v.Error = "process did not complete: context canceled" }))
	p.take(vertexOf("b", "[b 1/1] RUN false", &t0, &t1, func(v *client.Vertex) { v.Error = "exit code: 1" }))
	if v := p.failed(""); v == nil || v.name != "[b 1/1] RUN false" {
		t.Errorf("%+v", v)
	}
}

func TestRegistryRefusalsThatMayMend(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]bool{
		"unexpected status: 429 Too Many Requests":                      true,
		"toomanyrequests: Rate exceeded":                                true,
		"unexpected status from PUT request: 503 Service Unavailable":   true,
		"read tcp: connection reset by peer":                            true,
		"net/http: TLS handshake timeout":                               true,
		"unexpected EOF":                                                true,
		"denied: requested access to the resource is denied":            false,
		"unexpected status from HEAD request: 403 Forbidden":            false,
		"tag invalid: The image tag 'x' is immutable":                   false,
		"name unknown: The repository does not exist":                   false,
		"failed to authorize: 401 Unauthorized: connection unavailable": false,
		"something else": false,
	} {
		if got := mayMend(message); got != want {
			t.Errorf("%s: %v", message, got)
		}
	}
}
