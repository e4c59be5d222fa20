package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/testenv"
)

// outsider is examples/consumer, with a place and a queue of its own.
type outsider struct {
	t     *testing.T
	bin   string
	said  string // file of what it prints
	queue string
	cmd   *exec.Cmd // while it runs
}

// newOutsiders gives one for each queue.
func newOutsiders(t *testing.T, queues ...string) (all []*outsider) {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "consumer")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".")
	build.Dir = filepath.Join("..", "..", "examples", "consumer")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the example: %v\n%s", err, out)
	}
	for _, queue := range queues {
		all = append(all, &outsider{t: t, bin: bin, said: filepath.Join(dir, queue), queue: queue})
	}
	return all
}

// start runs it where it has stopped; it asks the log that often whether something was lost at the end.
func (o *outsider) start(s *system, url, ask string) {
	o.t.Helper()
	o.startInto(o.said, s, url, ask)
}

// startInto is start with another file for what it prints.
func (o *outsider) startInto(file string, s *system, url, ask string) {
	o.t.Helper()
	out, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		o.t.Fatal(err)
	}
	defer out.Close()
	o.cmd = exec.CommandContext(o.t.Context(), o.bin, "-state", o.said+".place", "-queue", o.queue, "-ask", ask)
	o.cmd.Env = append(slices.Clone(s.env), "PIPEOPS_URL="+url, "PIPEOPS_TOKEN="+s.clients[0].token)
	o.cmd.Stdout, o.cmd.Stderr = out, os.Stderr
	if err := o.cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
}

// stopsOnAFullDisk wants it to stop at the first event, and to take none for printed.
func (o *outsider) stopsOnAFullDisk(s *system, url string) {
	o.t.Helper()
	o.startInto("/dev/full", s, url, "100ms")
	late := time.AfterFunc(20*time.Second, func() { _ = o.cmd.Process.Kill() })
	defer late.Stop()
	err := o.cmd.Wait()
	if place, _ := os.ReadFile(o.said + ".place"); o.cmd.ProcessState.ExitCode() != 1 || len(place) > 0 {
		o.t.Errorf("consumer %s on a full disk: %v, its place is %q", o.queue, err, place)
	}
}

func (o *outsider) stop() {
	o.t.Helper()
	if err := errors.Join(o.cmd.Process.Signal(syscall.SIGTERM), o.cmd.Wait()); err != nil {
		o.t.Errorf("consumer %s: %v", o.queue, err)
	}
}

// sees waits until the event at this place is the last one that counts.
func (o *outsider) sees(head domain.Cursor) {
	o.t.Helper()
	eventually(o.t, time.Minute, "consumer "+o.queue+" has seen the log", func() error {
		valid, _ := o.told()
		if n := len(valid); n == 0 || valid[n-1].Cursor.LogEpoch != head.LogEpoch || valid[n-1].Cursor.Position < head.Position {
			return fmt.Errorf("%d events count, want them up to %s", n, head)
		}
		return nil
	})
}

// told is a line of the consumer.
type told struct {
	Cursor        domain.Cursor
	Type, Project string
	From          string
	Forked        domain.Cursor
	LastGood      int64
}

// told gives the events that still count, and the forks.
func (o *outsider) told() (valid, forks []told) {
	o.t.Helper()
	text, err := os.ReadFile(o.said)
	if err != nil {
		o.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasSuffix(line, "\n") { // half written
			break
		}
		var one told
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			o.t.Fatalf("%s: %v", line, err)
		}
		if one.Forked.Position == 0 {
			valid = append(valid, one)
			continue
		}
		forks = append(forks, one)
		valid = slices.DeleteFunc(valid, func(e told) bool { return e.Cursor.Position > one.LastGood })
	}
	return valid, forks
}

// hasAll checks that what counts is the log: each event once, in order, and nothing else.
func (o *outsider) hasAll(s *system) {
	o.t.Helper()
	valid, _ := o.told()
	for i := range valid {
		valid[i].From = ""
	}
	var log []told
	if err := s.clients[0].pages(o.t.Context(), "", map[string]any{}, func(l domain.Line) error {
		log = append(log, told{Cursor: domain.Cursor{LogEpoch: l.Epoch, Position: l.Position}, Type: l.Type, Project: l.Project})
		return nil
	}); err != nil {
		o.t.Fatal(err)
	}
	if diff := cmp.Diff(log, valid); diff != "" {
		o.t.Errorf("the log - what consumer %s has +\n%s", o.queue, diff)
	}
}

// outsideConsumer loses messages of a consumer's queue while it is away, and expects every event of the log once, in
// order, all the same.
func outsideConsumer(t *testing.T, s *system) {
	o := newOutsiders(t, "example-consumer")[0]
	o.start(s, s.clients[0].url, "1s")
	o.sees(s.head(t))
	o.stop()
	a := s.newApp("outside")
	a.events(a.push("serve", map[string]string{"Dockerfile": "FROM busybox:stable\nRUN exit 1\n"}), 2*time.Minute)
	lose(t, s.amqp(), o.queue, 3)
	o.start(s, s.clients[0].url, "1s")
	o.sees(s.head(t))
	o.stop()
	o.hasAll(s)
	valid, _ := o.told()
	for _, from := range []string{"log", "broker"} {
		if !slices.ContainsFunc(valid, func(e told) bool { return e.From == from }) {
			t.Errorf("of %d events none came from the %s: the test did not test", len(valid), from)
		}
	}
}

// A restore loses a tail which one consumer saw before it was stopped, one saw and runs on, and one has not seen: all
// of it, or what came last, waits in their queues, which nobody has restored.
func TestAnOutsideConsumerKeepsNothingThatAForkHasLost(t *testing.T) {
	origin := newSite(t, testenv.NewServer(t), t.TempDir(), "")
	var serving atomic.Pointer[httputil.ReverseProxy]
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { serving.Load().ServeHTTP(w, r) }))
	defer front.Close()
	leadTo := func(s *site) {
		to, err := url.Parse(s.clients[0].url)
		s.must(err)
		serving.Store(httputil.NewSingleHostReverseProxy(to))
	}
	leadTo(origin)
	grow := func(s *site, names ...string) domain.Cursor {
		for _, name := range names {
			s.run("project", "create", name)
		}
		return s.head()
	}
	outsiders := newOutsiders(t, "away", "stopped", "running")
	away, stopped, running := outsiders[0], outsiders[1], outsiders[2]
	kept := grow(origin, "kept-1", "kept-2")
	running.stopsOnAFullDisk(origin.system, front.URL)
	for _, o := range outsiders {
		o.start(origin.system, front.URL, "1h")
		o.sees(kept)
	}
	away.stop()
	backup := origin.server.Copy(t, "--wal-method=stream")
	seen := grow(origin, "seen")
	stopped.sees(seen)
	stopped.stop()
	lost := grow(origin, "unseen")
	running.sees(lost)
	waits(t, origin.amqp(), away.queue, lost.Position-kept.Position)
	waits(t, origin.amqp(), stopped.queue, lost.Position-seen.Position)
	origin.stop()

	bare := &site{system: &system{t: t, env: append(os.Environ(), "DATABASE_URL="+backup.URL, "PIPEOPS_MIGRATE_URL=", "PIPEOPS_HOME="+origin.home)}}
	bare.run("audit", "fork", "--yes")
	restored := newSite(t, backup, origin.home, origin.clients[0].token, "AMQP_URL="+origin.amqp())
	leadTo(restored)
	away.start(origin.system, front.URL, "1h") // what is lost looks like what comes next
	eventually(t, time.Minute, "the consumer knows of the fork", func() error {
		place, err := os.ReadFile(away.said + ".place")
		if want := (domain.Cursor{LogEpoch: 2, Position: kept.Position}).String(); err == nil && string(place) != want {
			err = fmt.Errorf("its place is %s, want %s", place, want)
		}
		return err
	})
	head := grow(restored, "new-1", "new-2", "new-3", "new-4")
	if head.Position <= lost.Position {
		t.Fatalf("the log has come to %s, and was at %s: the test does not test", head, lost)
	}
	stopped.start(origin.system, front.URL, "1h")
	for _, o := range outsiders {
		o.sees(head)
	}
	head = grow(restored, "last") // it stands behind all that waited
	for o, saw := range map[*outsider]domain.Cursor{away: {}, stopped: seen, running: lost} {
		o.sees(head)
		o.stop()
		o.hasAll(restored.system)
		valid, forks := o.told()
		if last := valid[len(valid)-1]; last.From != "broker" {
			t.Errorf("consumer %s: the last event came from the %s: the test did not test what waited", o.queue, last.From)
		}
		var want []told
		if saw.Position > 0 {
			want = []told{{Forked: saw, LastGood: kept.Position}}
		}
		if diff := cmp.Diff(want, forks); diff != "" {
			t.Errorf("consumer %s: wanted forks - told +\n%s", o.queue, diff)
		}
	}
}

// head is that of the newest event of the log.
func (s *system) head(t *testing.T) (head domain.Cursor) {
	t.Helper()
	if err := s.clients[0].pages(t.Context(), "", map[string]any{}, func(l domain.Line) error {
		head = domain.Cursor{LogEpoch: l.Epoch, Position: l.Position}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return head
}

func (s *system) amqp() (url string) {
	for _, variable := range s.env {
		if value, found := strings.CutPrefix(variable, "AMQP_URL="); found {
			url = value
		}
	}
	return url
}

// channel gives one of a connection of its own: once that is closed, the broker has heard all.
func channel(t *testing.T, url string) (*amqp.Connection, *amqp.Channel) {
	t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(errors.Join(err, conn.Close()))
	}
	return conn, ch
}

// lose takes messages from a queue after the first one, and forgets them.
func lose(t *testing.T, url, queue string, messages int) {
	t.Helper()
	conn, ch := channel(t, url)
	defer conn.Close()
	taken := func() (d amqp.Delivery) {
		eventually(t, 30*time.Second, "a message waits", func() error {
			var found bool
			var err error
			if d, found, err = ch.Get(queue, false); err != nil || !found {
				return errors.Join(err, errors.New("the queue is empty"))
			}
			return nil
		})
		return d
	}
	first := taken()
	for range messages {
		if err := taken().Ack(false); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Nack(false, true); err != nil {
		t.Fatal(err)
	}
}

// waits waits until so many messages stand in a queue that nobody takes from.
func waits(t *testing.T, url, queue string, messages int64) {
	t.Helper()
	conn, ch := channel(t, url)
	defer conn.Close()
	eventually(t, 30*time.Second, "the messages wait", func() error {
		q, err := ch.QueueDeclarePassive(queue, true, false, false, false, amqp.Table{"x-queue-type": "quorum"})
		if err == nil && int64(q.Messages) != messages {
			err = fmt.Errorf("%d wait in %s, want %d", q.Messages, queue, messages)
		}
		return err
	})
}
