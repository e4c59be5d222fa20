package graph_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/graph"
	"github.com/pipeops/pipeops/internal/records"
)

func everythingOf(p domain.ProjectID) eventstore.Query { return eventstore.Query{Project: p} }

func beat(worker domain.WorkerID, incarnation string, slots int, running ...domain.AttemptID) records.Beat {
	return records.Beat{Worker: worker, Incarnation: incarnation, Class: "build", Slots: slots, Running: running}
}

const eventsQuery = `subscription($after: Cursor, $filter: EventFilter) { events(after: $after, filter: $filter) { cursor head events { position type project data } } }`

type eventsView struct {
	Events struct {
		Cursor string `json:"cursor"`
		Head   string `json:"head"`
		Events []struct {
			Position string          `json:"position"`
			Type     string          `json:"type"`
			Project  string          `json:"project"`
			Data     json.RawMessage `json:"data"`
		} `json:"events"`
	} `json:"events"`
}

type eventsAnswer struct {
	Data eventsView `json:"data"`
}

// append records plain events of many projects, one of them with bodies of that size.
func (w *world) append(n, size int, project domain.ProjectID) {
	w.t.Helper()
	var events []eventstore.NewEvent
	for i := range n {
		e := eventstore.NewEvent{
			ID: uuid.NewString(), Type: "LayerBuilt", SchemaVersion: 1, ProjectID: project, OccurredAt: w.now,
			Body: fmt.Appendf(nil, `{"digest":"","name":"%s","durationMs":1}`, strings.Repeat("x", size)),
		}
		if i%3 == 1 {
			e.ProjectID = "prj_other"
		}
		if i%3 == 2 {
			e.Type = "LayerCached"
		}
		events = append(events, e)
	}
	_, err := w.store.Append(w.t.Context(), eventstore.Append{Writes: []eventstore.Write{
		{Stream: domain.Stream("test/" + uuid.NewString()), Expected: eventstore.AnyVersion, Events: events},
	}})
	must(w.t, err)
}

func TestAcceptance21_ASubscriptionCutAHundredTimesSeesExactlyTheFilteredLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("hello")
	const seed, cuts, events = 11, 100, 10_000
	const share = events / cuts // one cut falls into each
	r := rand.New(rand.NewPCG(seed, 0))
	filter := map[string]any{"project": "hello", "types": []string{"LayerBuilt", "ProjectCreated"}}
	var got []string
	var after *string
	connect := func() *socket {
		s := w.connect()
		s.subscribe("1", eventsQuery, map[string]any{"after": after, "filter": filter})
		return s
	}
	read := func(s *socket) bool { // until it is cut
		f, err := s.next()
		if err != nil {
			return false
		}
		var answer eventsAnswer
		if f.Type != "next" || json.Unmarshal(f.Payload, &answer) != nil {
			t.Fatalf("got %s %s", f.Type, f.Payload)
		}
		for _, e := range answer.Data.Events.Events {
			got = append(got, e.Position)
		}
		after = &answer.Data.Events.Cursor
		return true
	}
	served := 0 // connections that brought something before they were cut
	for range cuts {
		s := connect()
		before := len(got)
		var group sync.WaitGroup
		group.Go(func() { w.appendWhileCut(r, s, share, project) })
		for read(s) {
		}
		group.Wait()
		if len(got) > before {
			served++
		}
	}
	s := connect()
	for after == nil || *after != w.head().String() {
		if !read(s) {
			t.Fatal("cut")
		}
	}
	var want []string
	for e, err := range w.store.Read(t.Context(), eventstore.Query{Project: project, Types: []string{"LayerBuilt", "ProjectCreated"}}) {
		must(t, err)
		want = append(want, strconv.FormatInt(e.Cursor.Position, 10))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("seed %d, %d events (-want +got):\n%s", seed, len(want), diff)
	}
	if head := w.head().Position; head < events || len(want) < events/3 || served < cuts/4 {
		t.Errorf("%d events, %d of them wanted; %d of %d connections brought any before they were cut", head, len(want), served, cuts)
	}
	t.Logf("%d of %d connections brought something before they were cut", served, cuts)
}

// appendWhileCut appends n events, a random few at a time, and cuts the connection at a random one.
func (w *world) appendWhileCut(r *rand.Rand, s *socket, n int, project domain.ProjectID) {
	w.t.Helper()
	cut := r.IntN(n)
	for done := 0; done < n; {
		size := min(1+r.IntN(20), n-done)
		w.append(size, 10, project)
		if done <= cut && cut < done+size {
			_ = s.conn.CloseNow()
		}
		done += size
	}
}

func TestEventsThatTheFilterLeavesOutMoveTheCursor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.project("hello")
	s := w.connect()
	s.subscribe("1", eventsQuery, map[string]any{"after": w.head().String(), "filter": map[string]any{"types": []string{"RolledBack"}}})
	w.append(5, 1, "prj_x")
	for {
		b := data[eventsView](s, "1").Events
		if len(b.Events) > 0 {
			t.Fatalf("got %+v", b)
		}
		if b.Cursor == w.head().String() && b.Head == b.Cursor {
			break
		}
	}
}

func TestBadCursorsEndASubscriptionWithTheirCode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.project("hello")
	_, err := w.owner.Exec(t.Context(), "SELECT pipeops.raise_log_epoch()")
	must(t, err)
	s := w.connect()
	for cursor, code := range map[string]string{"x": "CURSOR_BAD", "1.99": "CURSOR_FORKED", "2.99": "CURSOR_AHEAD"} {
		s.subscribe(cursor, eventsQuery, map[string]any{"after": cursor})
		f, err := s.next()
		must(t, err)
		if !strings.Contains(string(f.Payload), `"code":"`+code+`"`) {
			t.Errorf("%s: got %s %s, want %s", cursor, f.Type, f.Payload, code)
		}
		for f.Type != "complete" && f.Type != "error" {
			f, err = s.next()
			must(t, err)
		}
	}
}

// Not parallel: it counts the goroutines of all connections.
func TestAcceptance22_OneOfManyReadersIsStuckAndIsCutAndTheOthersGetEverything(t *testing.T) {
	const readers, batches, each = 99, 16, 6
	cut := make(chan string, readers+10) // more than there are connections
	w := newWorld(t, func(c *graph.Config) {
		c.Write, c.Ping = 20*time.Second, time.Hour // the former is far longer than the others need
		c.Log = slog.New(listener{c.Log.Handler(), "websocket was cut", cut})
	})
	project := w.project("hello")
	stuck := w.connect()
	stuck.subscribe("1", eventsQuery, nil) // and never reads again
	first := data[eventsView](stuck, "1").Events.Cursor
	start := w.head()
	last := start.Position + batches*each
	var good, all sync.WaitGroup
	var sockets []*socket
	for range readers {
		s := w.connect()
		sockets = append(sockets, s)
		s.subscribe("1", positionsQuery, map[string]any{"after": start.String()})
		good.Go(func() {
			if err := s.follow(start.Position, last); err != nil {
				t.Error(err)
			}
		})
	}
	all.Go(func() {
		for range batches {
			w.append(each, 200_000, project) // more than sockets hold
		}
	})
	good.Wait()
	all.Wait()
	if len(cut) > 0 {
		t.Error("the others had to wait until the one that is stuck was cut")
	}
	handed := position(t, <-cut)
	got := []string{first}
	for {
		f, err := stuck.next()
		if err != nil {
			break // it was cut: what the sockets held came before
		}
		var answer eventsAnswer
		must(t, json.Unmarshal(f.Payload, &answer))
		got = append(got, answer.Data.Events.Cursor)
	}
	after := position(t, got[len(got)-1])
	if after >= last {
		t.Fatalf("it was never stuck: %d messages", len(got))
	}
	if handed < after || handed > last {
		t.Errorf("the log says that it was cut at %d, but it got all up to %d of %d", handed, after, last)
	}
	again := w.connect()
	again.subscribe("1", positionsQuery, map[string]any{"after": got[len(got)-1]})
	must(t, again.follow(after, last))
	if len(cut) > 0 {
		t.Errorf("%d of the others were cut too", len(cut))
	}
	if n := len(goroutines()); n < readers {
		t.Errorf("%d goroutines while %d connections are open", n, readers)
	}
	for _, s := range append(sockets, stuck, again) {
		_ = s.conn.CloseNow()
	}
	eventually(t, "the goroutines of all connections are gone", func() bool { return len(goroutines()) == 0 })
}

// goroutines gives the stacks of those that have to do with connections, on both sides.
func goroutines() (found []string) {
	all := make([]byte, 16<<20)
	all = all[:runtime.Stack(all, true)]
	for stack := range strings.SplitSeq(string(all), "\n\n") {
		if strings.Contains(stack, "pipeops/graph.") || strings.Contains(stack, "gqlgen/") || strings.Contains(stack, "coder/websocket") {
			found = append(found, stack)
		}
	}
	return found
}

const positionsQuery = `subscription($after: Cursor) { events(after: $after) { cursor events { position } } }`

// follow wants each position after one, up to the last, once and in order.
func (s *socket) follow(after, last int64) error {
	for next := after + 1; next <= last; {
		f, err := s.next()
		if err != nil {
			return fmt.Errorf("position %d did not come: %w", next, err)
		}
		var answer eventsAnswer
		if err := json.Unmarshal(f.Payload, &answer); err != nil || f.Type != "next" {
			return fmt.Errorf("got %s %s, want position %d", f.Type, f.Payload, next)
		}
		for _, e := range answer.Data.Events.Events {
			if e.Position != strconv.FormatInt(next, 10) {
				return fmt.Errorf("after %d: got position %s, want %d", after, e.Position, next)
			}
			next++
		}
	}
	return nil
}

// eventually waits until is holds.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !is() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// listener is a log that tells the cursor of what is said with that text.
type listener struct {
	slog.Handler
	text string
	said chan<- string
}

func (l listener) Handle(ctx context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, l.text) {
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "cursor" {
				l.said <- a.Value.String()
			}
			return true
		})
	}
	return l.Handler.Handle(ctx, r)
}

func position(t *testing.T, cursor string) int64 {
	t.Helper()
	c, err := domain.ParseCursor(cursor)
	must(t, err)
	return c.Position
}

func TestTheProtocolOfWebsocketsIsKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *graph.Config) { c.Operations, c.Init = 3, 500*time.Millisecond })
	w.project("hello")
	head := w.head().String()
	auth := http.Header{"Authorization": {"Bearer " + w.token}}
	initialise := frame{Type: "connection_init"}
	for _, c := range []struct {
		name string
		run  func() *socket
		code websocket.StatusCode
	}{
		{"no token", func() *socket { s := w.dial(nil); s.send(initialise); return s }, 4403},
		{"a wrong token", func() *socket {
			s := w.dial(nil)
			s.send(frame{Type: "connection_init", Payload: payload(map[string]any{"authorization": "Bearer nonsense"})})
			return s
		}, 4403},
		{"subscribe before connection_init", func() *socket { s := w.dial(auth); s.subscribe("1", eventsQuery, nil); return s }, 4401},
		{"connection_init twice", func() *socket { s := w.connect(); s.send(initialise); return s }, 4429},
		{"silence", func() *socket { return w.dial(auth) }, 4408},
		{"no JSON", func() *socket {
			s := w.connect()
			must(t, s.conn.Write(t.Context(), websocket.MessageText, []byte("{")))
			return s
		}, 4400},
		{"an unknown message", func() *socket { s := w.connect(); s.send(frame{Type: "hello"}); return s }, 4400},
		{"the same id twice", func() *socket {
			s := w.connect()
			s.subscribe("1", eventsQuery, map[string]any{"after": head})
			s.subscribe("1", eventsQuery, map[string]any{"after": head})
			return s
		}, 4409},
	} {
		if code, reason := c.run().closed(); code != c.code {
			t.Errorf("%s: closed with %d %q, want %d", c.name, code, reason, c.code)
		}
	}
	_, resp, err := websocket.Dial(t.Context(), w.server.URL+"/graphql", &websocket.DialOptions{Subprotocols: []string{"graphql-ws"}, HTTPHeader: auth})
	if err == nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("the older protocol: got %v", err)
	}
	_, resp, err = websocket.Dial(t.Context(), w.server.URL+"/graphql", &websocket.DialOptions{
		Subprotocols: []string{"graphql-transport-ws"}, HTTPHeader: http.Header{"Origin": {"https://evil.test"}},
	})
	if err == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("another site's page: got %v", err)
	}
}

func TestOperationsOfAConnectionAreCappedAndTheirIdsCanBeUsedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *graph.Config) { c.Operations = 3 })
	w.project("hello")
	s := w.connect()
	head := map[string]any{"after": w.head().String()}
	for _, id := range []string{"a", "b", "c", "d"} {
		s.subscribe(id, eventsQuery, head)
	}
	f, err := s.next()
	if err != nil || f.Type != "error" || f.ID != "d" || !strings.Contains(string(f.Payload), "TOO_MANY_OPERATIONS") {
		t.Fatalf("got %+v %s, %v", f, f.Payload, err)
	}
	for range 50 { // end and begin again under the same id, at once
		s.send(frame{ID: "c", Type: "complete"})
		s.subscribe("q", `{ head }`, nil)
		for ended := false; !ended; {
			f, err := s.next()
			must(t, err)
			if f.Type == "error" {
				t.Fatalf("one that was ended still counts: got %s %s", f.ID, f.Payload)
			}
			ended = f.ID == "q" && f.Type == "complete"
		}
		s.subscribe("c", eventsQuery, head)
	}
	w.append(1, 1, "prj_x")
	seen := map[string]int{}
	for len(seen) < 3 {
		f, err := s.next()
		must(t, err)
		if f.Type != "next" {
			t.Fatalf("got %s %s %s", f.Type, f.ID, f.Payload)
		}
		if seen[f.ID]++; seen[f.ID] > 1 {
			t.Fatalf("%s got the same event twice: an operation that was ended goes on", f.ID)
		}
	}
}

func TestAcceptance23_ARevokedTokenEndsItsSubscriptions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *graph.Config) { c.Recheck = 50 * time.Millisecond })
	w.project("hello")
	s := w.connect()
	s.subscribe("1", eventsQuery, nil)
	data[eventsView](s, "1")
	second := w.connect()
	second.subscribe("1", eventsQuery, nil)
	data[eventsView](second, "1")
	lines, closed := w.stream(eventsQuery, nil)
	<-lines
	gone := w.connect() // one that ends before takes the look at the token with it for nobody
	_ = gone.conn.CloseNow()
	must(t, w.records.tokens.Revoke(t.Context(), w.id))
	for _, s := range []*socket{s, second} {
		if code, reason := s.closed(); code != 4403 {
			t.Errorf("closed with %d %q, want 4403", code, reason)
		}
	}
	select {
	case <-closed:
	case <-time.After(30 * time.Second):
		t.Error("server-sent events go on")
	}
}

func TestAcceptance23_EveryEventIsAuthorised(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var hidden domain.ProjectID
	w := newWorld(t, func(c *graph.Config) {
		c.MayRead = func(_ context.Context, actor string, p domain.ProjectID) bool {
			mu.Lock()
			defer mu.Unlock()
			return strings.HasPrefix(actor, "token:") && p != hidden
		}
	})
	hello, secret := w.project("hello"), w.project("secret")
	s := w.connect()
	s.subscribe("1", eventsQuery, map[string]any{"after": w.head().String()})
	w.append(1, 1, secret)
	if b := data[eventsView](s, "1"); len(b.Events.Events) != 1 {
		t.Fatalf("got %+v", b)
	}
	mu.Lock()
	hidden = secret
	mu.Unlock()
	w.append(1, 1, secret)
	w.append(1, 1, hello)
	for {
		b := data[eventsView](s, "1").Events
		if len(b.Events) == 0 {
			continue // its cursor has moved
		}
		if len(b.Events) != 1 || b.Events[0].Project != string(hello) {
			t.Errorf("got %+v, want only the event of %s", b.Events, hello)
		}
		break
	}
	names := ask[struct{ Projects []struct{ Name string } }](w, `{ projects { name } }`, nil).Projects
	if len(names) != 1 || names[0].Name != "hello" {
		t.Errorf("got %v", names)
	}
	w.refused("NOT_FOUND", `{ builds(project: "secret") { id } }`, nil)
	w.refused("NOT_FOUND", `mutation { configureProject(input: {project: "secret", branch: "x"}) { cursor } }`, nil)
	page := ask[struct {
		Events struct{ Events []struct{ Project string } }
	}](w, `{ events { events { project } } }`, nil).Events.Events
	if slices.ContainsFunc(page, func(e struct{ Project string }) bool { return e.Project == string(secret) }) {
		t.Errorf("got %v", page)
	}
}

func TestSubscriptionsOfReadModelsTickWhenTheyChange(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("hello")
	s := w.connect()
	s.subscribe("timeline", `subscription { timelineChanged(project: "hello") { push { status builds { phase step } deployments { phase } } entries { text } } }`, nil)
	s.subscribe("status", `subscription { statusChanged(project: "hello") { phase address latest { id } } }`, nil)
	s.subscribe("projects", `subscription { projectsChanged { name lastPush { status } status { phase } } }`, nil)
	// wait reads on until a subscription says something.
	said := map[string]string{}
	wait := func(id, text string) {
		t.Helper()
		for !strings.Contains(said[id], text) {
			f, err := s.next()
			must(t, err)
			if f.Type != "next" || strings.Contains(string(f.Payload), `"errors"`) {
				t.Fatalf("got %s %s %s", f.Type, f.ID, f.Payload)
			}
			said[f.ID] = string(f.Payload)
		}
	}
	wait("status", `"phase":null`)
	wait("projects", `"name":"hello"`)
	_, build := w.push(project)
	wait("timeline", `"builds":[{"phase":"WAITING","step":""}]`)
	w.do(project, domain.ClaimBuild{Build: build, Worker: "wrk_1", Incarnation: "i1"})
	w.report(domain.NewAttemptID(string(build), 1), domain.LayerBuilt{Name: "[1/2] RUN make", Duration: 10})
	wait("timeline", `"builds":[{"phase":"RUNNING","step":"[1/2] RUN make"}]`)
	digest := "sha256:1"
	w.report(domain.NewAttemptID(string(build), 1), domain.ImagePushed{Reference: "registry.test/hello@" + digest, Digest: digest},
		domain.ImageTagged{Reference: "r:1", Digest: digest}, domain.BuildSucceeded{Digest: digest})
	w.deployment(project, domain.DeploymentSucceeded{Digest: digest, Available: 1, Address: "hello.svc:80"})
	wait("timeline", `"status":"LIVE"`)
	wait("status", `"address":"hello.svc:80"`)
	wait("projects", `"lastPush":{"status":"LIVE"}`)
	s.subscribe("none", `subscription { statusChanged(project: "nobody") { phase } }`, nil)
	for f := (frame{}); f.ID != "none"; {
		var err error
		f, err = s.next()
		must(t, err)
		if f.ID == "none" && !strings.Contains(string(f.Payload), "NOT_FOUND") {
			t.Errorf("got %s %s", f.Type, f.Payload)
		}
	}
}

// stream subscribes over server-sent events; closed is closed when the server has ended it.
func (w *world) stream(query string, variables map[string]any) (lines <-chan string, closed <-chan struct{}) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.server.URL+"/graphql", strings.NewReader(string(payload(map[string]any{"query": query, "variables": variables}))))
	must(w.t, err)
	r.Header.Set("Authorization", "Bearer "+w.token)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(r)
	must(w.t, err)
	out, end := make(chan string, 100), make(chan struct{}) // 100: more than a test reads late
	go func() {
		defer close(end)
		defer func() { _ = resp.Body.Close() }()
		for s := bufio.NewScanner(resp.Body); s.Scan(); {
			if text, ok := strings.CutPrefix(s.Text(), "data: "); ok {
				out <- text
			}
		}
	}()
	return out, end
}

func TestServerSentEventsReplayAndFollowToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.project("hello")
	lines, _ := w.stream(eventsQuery, nil)
	w.append(2, 1, "prj_x")
	next := int64(1)
	for next <= w.head().Position {
		var answer eventsAnswer
		must(t, json.Unmarshal([]byte(<-lines), &answer))
		for _, e := range answer.Data.Events.Events {
			if e.Position != strconv.FormatInt(next, 10) {
				t.Fatalf("got position %s, want %d", e.Position, next)
			}
			next++
		}
	}
}
