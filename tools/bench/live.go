package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/internal/local"
)

// served is a `pipeops serve` of the built binary on a log, with a real broker.
type served struct {
	url, token string
	cmd        *exec.Cmd
}

// serve starts one. The binary is PIPEOPS_BIN.
func (b *bench) serve(ctx context.Context, l *log) (*served, func(), error) {
	home, err := os.MkdirTemp("", "pipeops-bench-serve-")
	if err != nil {
		return nil, nil, err
	}
	broker, err := local.StartRabbitMQ(ctx, local.Config{Home: b.home})
	if err != nil {
		return nil, nil, err
	}
	bin := os.Getenv("PIPEOPS_BIN")
	env := append(os.Environ(), "DATABASE_URL="+l.owner, "AMQP_URL="+broker.URL, "PIPEOPS_HOME="+home, "PIPEOPS_LISTEN=127.0.0.1:0", "REGISTRY=registry.test")
	create := exec.CommandContext(ctx, bin, "token", "create", "bench") //nolint:gosec // ours
	create.Env = env
	token, err := create.Output()
	if err != nil {
		return nil, nil, fmt.Errorf("make a token with PIPEOPS_BIN=%q: %w", bin, err)
	}
	s := &served{token: strings.TrimSpace(string(token)), cmd: exec.CommandContext(ctx, bin, "serve")} //nolint:gosec // ours
	s.cmd.Env = env
	said, err := s.cmd.StderrPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, nil, err
	}
	address, output, drained := make(chan string, 1), &bytes.Buffer{}, make(chan struct{})
	go func() {
		defer close(drained)
		listenTo(said, output, address)
	}()
	stop := func() {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		<-drained // then nobody reads the pipe any more
		_ = s.cmd.Wait()
		_ = os.RemoveAll(home)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("a minute is over"))
	defer cancel()
	select {
	case at, said := <-address:
		if s.url = "http://" + at; said {
			err = s.awaitReady(ctx)
		} else {
			err = errors.New("it ended")
		}
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		stop()
		return nil, nil, fmt.Errorf("serve did not get ready: %w\n%s", err, output)
	}
	return s, stop, nil
}

// listenTo keeps what serve logs, and gives the address that it says it serves at.
func listenTo(said io.Reader, output *bytes.Buffer, address chan<- string) {
	defer close(address)
	told := false
	for lines := bufio.NewScanner(said); lines.Scan(); {
		output.Write(append(lines.Bytes(), '\n'))
		if _, rest, ok := strings.Cut(lines.Text(), " address="); ok && !told {
			told = true
			address <- strings.Fields(rest)[0]
		}
	}
}

// awaitReady asks until the server is ready.
func (s *served) awaitReady(ctx context.Context) error {
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/readyz", nil)
		if err != nil {
			return err
		}
		answer := "no answer"
		if resp, err := http.DefaultClient.Do(req); err == nil {
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			answer = string(body)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", context.Cause(ctx), answer)
		case <-again.C:
		}
	}
}

// pss is the process's share of memory, in bytes.
func (s *served) pss() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); fields[0] == "Pss:" {
			kib, err := strconv.ParseFloat(fields[1], 64)
			return kib * 1024, err
		}
	}
	return 0, errors.New("no Pss")
}

// subscriber is one WebSocket with one subscription of events.
type subscriber struct {
	conn      *websocket.Conn
	port      int             // its own
	latencies []time.Duration // from before the append to here
}

// subscribe opens one that follows after a cursor. Its system takes in little more than it reads.
func (s *served) subscribe(ctx context.Context, after domain.Cursor, filter map[string]any) (*subscriber, error) {
	one := &subscriber{}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		one.port = conn.LocalAddr().(*net.TCPAddr).Port
		return conn, conn.(*net.TCPConn).SetReadBuffer(64 << 10)
	}
	conn, _, err := websocket.Dial(ctx, s.url+"/graphql", &websocket.DialOptions{ //nolint:bodyclose // the library's
		Subprotocols: []string{"graphql-transport-ws"}, HTTPHeader: http.Header{"Authorization": {"Bearer " + s.token}},
		HTTPClient: &http.Client{Transport: &http.Transport{DialContext: dial}},
	})
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(1 << 20)
	write := func(v any) error {
		text, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return conn.Write(ctx, websocket.MessageText, text)
	}
	err = errors.Join(
		write(map[string]any{"type": "connection_init", "payload": map[string]string{"Authorization": "Bearer " + s.token}}),
		write(map[string]any{"id": "1", "type": "subscribe", "payload": map[string]any{
			"query":     `subscription($a: Cursor, $f: EventFilter) { events(after: $a, filter: $f) { events { position occurredAt type data } cursor } }`,
			"variables": map[string]any{"a": after.String(), "f": filter},
		}}),
	)
	if err != nil {
		return nil, err
	}
	one.conn = conn
	return one, nil
}

// heldBack is how many bytes the server's system holds that the subscriber's doesn't take. A connection that was cut
// counts as well, until all of it is given up.
func (s *subscriber) heldBack() (total int64, err error) {
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) { // sl local_address rem_address st tx_queue:rx_queue …
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.HasSuffix(fields[2], fmt.Sprintf(":%04X", s.port)) {
			continue
		}
		sending, _, _ := strings.Cut(fields[4], ":")
		queued, err := strconv.ParseInt(sending, 16, 64)
		if err != nil {
			return 0, err
		}
		total += queued
	}
	return total, nil
}

// follow reads until so many events have come, and notes how old each one is then.
func (s *subscriber) follow(ctx context.Context, events int) error {
	for len(s.latencies) < events {
		_, text, err := s.conn.Read(ctx)
		if err != nil {
			return fmt.Errorf("after %d of %d events: %w", len(s.latencies), events, err)
		}
		at := time.Now()
		var frame struct {
			Type    string
			Payload json.RawMessage
		}
		if err := json.Unmarshal(text, &frame); err != nil {
			return fmt.Errorf("%s: %w", text, err)
		}
		switch frame.Type {
		case "ping":
			err = s.conn.Write(ctx, websocket.MessageText, []byte(`{"type":"pong"}`))
		case "error":
			err = errors.New(string(text))
		case "next":
			err = s.note(at, frame.Payload)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *subscriber) note(at time.Time, payload []byte) error {
	var p struct {
		Data struct {
			Events struct {
				Events []struct{ OccurredAt domain.Time }
			}
		}
	}
	if err := json.Unmarshal(payload, &p); err != nil {
		return fmt.Errorf("%s: %w", payload, err)
	}
	for _, e := range p.Data.Events.Events {
		s.latencies = append(s.latencies, at.Sub(e.OccurredAt.Time))
	}
	return nil
}

// liveProject is a project with a build that layers can be reported of.
type liveProject struct {
	id    domain.ProjectID
	name  string
	build domain.Stream
}

// liveProjects appends so many, each with a build.
func (l *log) liveProjects(ctx context.Context, n int) ([]*liveProject, error) {
	s := newSimulator(99)
	var all []*liveProject
	for i := range n {
		p, created := s.project(fmt.Sprintf("live-%d", i))
		pushed := s.push(p, 1)
		for _, a := range append([]eventstore.Append{created}, pushed[:2]...) { // up to BuildRequested
			if _, err := l.store.Append(ctx, a); err != nil {
				return nil, err
			}
		}
		all = append(all, &liveProject{id: p.id, name: p.name, build: pushed[1].Writes[0].Stream})
	}
	return all, nil
}

// layer appends one event to a project's build, whatever serve itself has decided about that meanwhile.
func (l *log) layer(ctx context.Context, p *liveProject) error {
	e := newEvent()
	e.ProjectID, e.Body = p.id, []byte(`{"digest":"sha256:0","name":"[build 1/9] RUN make"}`)
	_, err := l.store.Append(ctx, eventstore.Append{Writes: []eventstore.Write{{Stream: p.build, Expected: eventstore.AnyVersion, Events: []eventstore.NewEvent{e}}}})
	return err
}

// pace appends so many events a second in all, to each project in turn, until each has had n.
func (l *log) pace(ctx context.Context, projects []*liveProject, perSecond, n int) error {
	began := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for i, p := range projects {
		group.Go(func() error {
			for turn := range n {
				due := began.Add(time.Duration(turn*len(projects)+i) * time.Second / time.Duration(perSecond))
				timer := time.NewTimer(time.Until(due))
				select {
				case <-ctx.Done():
					timer.Stop()
					return context.Cause(ctx)
				case <-timer.C:
				}
				if err := l.layer(ctx, p); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// crowd lets each subscriber read until it has so many events while they are appended, and gives all latencies, sorted.
func crowd(ctx context.Context, subscribers []*subscriber, events int, appending func(context.Context) error) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("events came too late"))
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range subscribers {
		s.latencies = nil
		group.Go(func() error { return s.follow(ctx, events) })
	}
	group.Go(func() error { return appending(ctx) })
	err := group.Wait()
	var all []time.Duration
	for _, s := range subscribers {
		all = append(all, s.latencies...)
	}
	slices.Sort(all)
	return all, err
}

func percentile(sorted []time.Duration, p int) time.Duration { return sorted[(len(sorted)-1)*p/100] }

// measureLive measures subscriptions through a whole `pipeops serve`.
func measureLive(ctx context.Context, b *bench) error {
	l, err := b.openLog(ctx, "live")
	if err != nil {
		return err
	}
	defer l.close()
	projects, err := l.liveProjects(ctx, 500)
	if err != nil {
		return err
	}
	s, stop, err := b.serve(ctx, l)
	if err != nil {
		return err
	}
	defer stop()
	if err := b.measureFanOut(ctx, l, s, projects); err != nil { // first: memory that other subscribers have left would be used again
		return err
	}
	return b.measureDelay(ctx, l, s, projects[:10])
}

// measureDelay has 100 subscribers of everything and 50 events a second.
func (b *bench) measureDelay(ctx context.Context, l *log, s *served, projects []*liveProject) error {
	subscribers, err := s.subscribers(ctx, l, 100, func(int) map[string]any { return map[string]any{"types": []string{"LayerCached"}} })
	if err != nil {
		return err
	}
	defer hangUp(subscribers)
	const each = 50
	all, err := crowd(ctx, subscribers, each*len(projects), func(ctx context.Context) error { return l.pace(ctx, projects, 50, each) })
	if err != nil {
		return err
	}
	b.under("append → GraphQL subscriber, 50 events/s, 100 subscribers: p50", ms(percentile(all, 50)), "ms", 10)
	b.under("append → GraphQL subscriber, 50 events/s, 100 subscribers: p99", ms(percentile(all, 99)), "ms", 50)
	return nil
}

// measureFanOut has 500 subscribers, each of its own project, and 2,000 frames a second; first all read, then one more
// is subscribed to everything and doesn't.
func (b *bench) measureFanOut(ctx context.Context, l *log, s *served, projects []*liveProject) error {
	const each = 40
	appending := func(ctx context.Context) error { return l.pace(ctx, projects, 2000, each) }
	if err := appending(ctx); err != nil { // what the events themselves take is there with and without subscribers
		return err
	}
	before, err := s.pss()
	if err != nil {
		return err
	}
	subscribers, err := s.subscribers(ctx, l, len(projects), func(i int) map[string]any {
		return map[string]any{"project": projects[i].name, "types": []string{"LayerCached"}}
	})
	if err != nil {
		return err
	}
	defer hangUp(subscribers)
	var delivered []float64
	run := func() (time.Duration, error) {
		began := time.Now()
		all, err := crowd(ctx, subscribers, each, appending)
		if err != nil {
			return 0, err
		}
		delivered = append(delivered, float64(len(all))/time.Since(began).Seconds())
		return percentile(all, 99), nil
	}
	if _, err := run(); err != nil { // warms up
		return err
	}
	after, err := s.pss()
	if err != nil {
		return err
	}
	var alone, beside []float64
	for range b.rounds {
		without, err := run()
		if err != nil {
			return err
		}
		stuck, err := s.subscribers(ctx, l, 1, func(int) map[string]any { return nil })
		if err != nil {
			return err
		}
		with, err := run()
		held, heldErr := stuck[0].heldBack()
		hangUp(stuck)
		if err := errors.Join(err, heldErr); err != nil {
			return err
		}
		if held == 0 {
			return errors.New("the reader that should be stuck has taken everything")
		}
		alone, beside = append(alone, ms(without)), append(beside, ms(with))
	}
	b.noMoreThan("fan-out to 500 WebSockets, 2,000 frames/s: p99 of the others, one stuck", beside, alone, "ms", "none stuck", 2)
	b.atLeast("fan-out to 500 WebSockets: delivered", delivered, "events/s", 1950) // 2,000 but for the start and the end
	b.under("fan-out to 500 WebSockets: memory of a subscriber", (after-before)/float64(len(projects))/1000, "KB", 100)
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// subscribers opens n that begin at the head.
func (s *served) subscribers(ctx context.Context, l *log, n int, filter func(int) map[string]any) ([]*subscriber, error) {
	head, err := l.store.Head(ctx)
	if err != nil {
		return nil, err
	}
	var all []*subscriber
	for i := range n {
		one, err := s.subscribe(ctx, head, filter(i))
		if err != nil {
			hangUp(all)
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

func hangUp(subscribers []*subscriber) {
	for _, s := range subscribers {
		_ = s.conn.CloseNow()
	}
}
