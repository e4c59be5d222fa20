//nolint:thelper // the functions in this file are tests, run on two buses
package bus

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/domain"
)

// opener gives one more bus on the broker of one test.
type opener func(t *testing.T) Bus

// testRetry makes failures quick.
var testRetry = Config{MaxDeliveries: 5, FirstWait: time.Millisecond, LongestWait: 20 * time.Millisecond}

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// conformance is the contract of Bus. open starts a fresh broker for each test.
func conformance(t *testing.T, newBroker func(t *testing.T) opener) {
	for name, run := range map[string]func(*testing.T, opener){
		"every message arrives as it was sent":                               testRoundTrip,
		"what is published before a consumer comes is kept":                  testKept,
		"a claim's bytes are exact":                                          testExactBytes,
		"Acceptance19 a job that fails three times is handled four times":    testFailThrice,
		"Acceptance19 a report that fails three times is handled four times": testReportFailsThrice,
		"Acceptance19 what always fails is dead":                             testAlwaysFails,
		"a panic is a failure":                                               testPanic,
		"what comes later isn't counted":                                     testLater,
		"what cannot be read is dead":                                        testUnreadable,
		"a dead letter stays until it is handled":                            testDeadFails,
		"a partition keeps its order across failures":                        testOrder,
		"a partition has one active consumer, and another stands by":         testSingleActive,
		"a slot holds one job":                                               testSlots,
		"a heartbeat that fails is dropped":                                  testHeartbeatFails,
		"an answer to nobody is dropped":                                     testAnswerToNobody,
		"what no queue takes is an error":                                    testUnroutable,
		"a message over 1 MiB is refused":                                    testTooLarge,
		"what is in flight at the end is finished":                           testFinish,
		"what is not finished at the end is handed back":                     testHandBack,
		"a closed bus publishes nothing and says so":                         testClosed,
		"a committed event can be published":                                 testCommitted,
		"a report of no attempt and a job of no kind are refused":            testRefused,
		"a consumer learns that its bus was closed":                          testClosedUnderConsumer,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, newBroker(t))
		})
	}
}

// background runs a consumer until the test ends or stop is called, which waits for it.
func background(t *testing.T, consume func(ctx context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() { done <- consume(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel(errors.New("the test has seen enough"))
		if err := <-done; err != nil {
			t.Errorf("consumer: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func receive[T any](t *testing.T, from <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s within %v", what, patience)
		panic("unreachable")
	}
}

// into hands what is handled to the test.
func into[T any](to chan<- T) func(context.Context, T) error {
	return func(ctx context.Context, v T) error {
		select {
		case to <- v:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T any](t *testing.T, got, want T) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("got -, want +, reversed:\n%s", d)
	}
}

func job(n int) Job {
	return Job{
		Kind: KindBuild, Subject: fmt.Sprintf("bld_%d", n), Project: "prj_1",
		Context:   json.RawMessage(`{"commit":"abc","message":"a < b && c > d"}`),
		Published: domain.At(time.Date(2026, 11, 23, 1, 2, 3, 4000, time.UTC)),
	}
}

func report(subject string, first int64) Report {
	return Report{
		Attempt: domain.NewAttemptID(subject, 1), Incarnation: "i1", Token: "t", First: first,
		Items: []Item{{Type: "SourceFetched", At: domain.At(time.Unix(1, 0)), Data: json.RawMessage(`{"commit":"abc"}`)}},
	}
}

func testRoundTrip(t *testing.T, open opener) {
	b := open(t)
	ctx := t.Context()

	builds, deploys := make(chan Job), make(chan Job)
	background(t, func(ctx context.Context) error { return b.ConsumeJobs(ctx, KindBuild, 1, into(builds)) })
	background(t, func(ctx context.Context) error { return b.ConsumeJobs(ctx, KindDeploy, 1, into(deploys)) })
	must(t, b.PublishJob(ctx, job(1)))
	equal(t, receive(t, builds, "build"), job(1))
	deployment := job(2)
	deployment.Kind = KindDeploy
	must(t, b.PublishJob(ctx, deployment))
	equal(t, receive(t, deploys, "deployment"), deployment)

	claims := make(chan Signed)
	background(t, func(ctx context.Context) error { return b.ConsumeClaims(ctx, into(claims)) })
	claim := Signed{Claim: json.RawMessage(`{"claimId":"c1"}`), Signature: []byte{1, 2, 3}}
	must(t, b.PublishClaim(ctx, claim))
	equal(t, receive(t, claims, "claim"), claim)

	beats := make(chan SignedHeartbeat)
	background(t, func(ctx context.Context) error { return b.ConsumeHeartbeats(ctx, into(beats)) })
	_, key, err := ed25519.GenerateKey(nil)
	must(t, err)
	beat, err := SignHeartbeat(Heartbeat{Worker: "wrk<1>", Incarnation: "i1", Class: KindBuild, Slots: 2, Running: []Running{{"bld_1.1", "t", 7}}}, key)
	must(t, err)
	must(t, b.PublishHeartbeat(ctx, beat))
	got := receive(t, beats, "heartbeat")
	equal(t, got, beat)
	equal(t, got.SignedBy(key.Public().(ed25519.PublicKey)), true)
	equal(t, got.SignedBy(nil), false)

	answers := make(chan Answer, 1000)
	background(t, func(ctx context.Context) error { return b.ConsumeAnswers(ctx, "i1", into(answers)) })
	answer := Answer{Grant: &Grant{ClaimID: "c1", Attempt: "bld_1.1", Token: "t", Context: json.RawMessage(`{}`), Sealed: []byte{9}, Sequence: 3}}
	equal(t, answered(t, b, "i1", answer, answers), answer)

	reports := make(chan Report)
	background(t, func(ctx context.Context) error { return b.ConsumeReports(ctx, into(reports)) })
	must(t, b.PublishReport(ctx, report("bld_1", 1)))
	equal(t, receive(t, reports, "report"), report("bld_1", 1))

	chunks := make(chan LogChunk)
	background(t, func(ctx context.Context) error { return b.ConsumeLogChunks(ctx, into(chunks)) })
	chunk := LogChunk{Attempt: "bld_1.1", Incarnation: "i1", Token: "t", Stream: "build", Offset: 42, Bytes: []byte("hello\x00\xff")}
	must(t, b.PublishLogChunk(ctx, chunk))
	equal(t, receive(t, chunks, "log chunk"), chunk)
}

// answered publishes until the reply queue, which lives as long as its consumer, is there.
func answered(t *testing.T, b Bus, incarnation string, a Answer, from <-chan Answer) Answer {
	t.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	deadline := time.After(patience)
	for {
		must(t, b.PublishAnswer(t.Context(), incarnation, a))
		select {
		case got := <-from:
			return got
		case <-again.C:
		case <-deadline:
			t.Fatalf("no answer within %v", patience)
		}
	}
}

func testKept(t *testing.T, open opener) {
	publisher, consumer := open(t), open(t)
	ctx := t.Context()
	must(t, publisher.PublishJob(ctx, job(1)))
	must(t, publisher.PublishClaim(ctx, Signed{Claim: json.RawMessage(`{}`)}))
	must(t, publisher.PublishReport(ctx, report("bld_1", 1)))
	must(t, publisher.PublishLogChunk(ctx, LogChunk{Attempt: "bld_1.1"}))
	seen := make(chan string, 4)
	background(t, func(ctx context.Context) error {
		return consumer.ConsumeJobs(ctx, KindBuild, 1, func(context.Context, Job) error { seen <- "job"; return nil })
	})
	background(t, func(ctx context.Context) error {
		return consumer.ConsumeClaims(ctx, func(context.Context, Signed) error { seen <- "claim"; return nil })
	})
	background(t, func(ctx context.Context) error {
		return consumer.ConsumeReports(ctx, func(context.Context, Report) error { seen <- "report"; return nil })
	})
	background(t, func(ctx context.Context) error {
		return consumer.ConsumeLogChunks(ctx, func(context.Context, LogChunk) error { seen <- "chunk"; return nil })
	})
	var got []string
	for range 4 {
		got = append(got, receive(t, seen, "message"))
	}
	slices.Sort(got)
	equal(t, got, []string{"chunk", "claim", "job", "report"})
}

func testExactBytes(t *testing.T, open opener) {
	b := open(t)
	written, err := json.Marshal(map[string]string{"ref": "a<b>&c", "line": "x\u2028y"})
	must(t, err)
	raw := json.RawMessage(`{"ref":"a<b>&c` + "\u2028" + `"}`)
	claims := make(chan Signed, 2)
	background(t, func(ctx context.Context) error { return b.ConsumeClaims(ctx, into(claims)) })
	for _, bytes := range []json.RawMessage{written, raw} {
		must(t, b.PublishClaim(t.Context(), Signed{Claim: bytes}))
		equal(t, string(receive(t, claims, "claim").Claim), string(bytes))
	}
}

// failing returns a handler that fails n times, and which deliveries it saw.
func failing[T any](n int, done chan<- []int) func(context.Context, T) error {
	var mu sync.Mutex
	var seen []int
	return func(ctx context.Context, _ T) error {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, deliveries(ctx))
		if len(seen) <= n {
			return fmt.Errorf("failure %d", len(seen))
		}
		done <- slices.Clone(seen)
		return nil
	}
}

func testFailThrice(t *testing.T, open opener) {
	b := open(t)
	done := make(chan []int, 10)
	background(t, func(ctx context.Context) error { return b.ConsumeJobs(ctx, KindBuild, 1, failing[Job](3, done)) })
	must(t, b.PublishJob(t.Context(), job(1)))
	equal(t, receive(t, done, "success"), []int{1, 2, 3, 4})
}

func testReportFailsThrice(t *testing.T, open opener) {
	b := open(t)
	done := make(chan []int, 10)
	background(t, func(ctx context.Context) error { return b.ConsumeReports(ctx, failing[Report](3, done)) })
	must(t, b.PublishReport(t.Context(), report("bld_1", 1)))
	equal(t, receive(t, done, "success"), []int{1, 2, 3, 4})
}

func testAlwaysFails(t *testing.T, open opener) {
	b := open(t)
	var calls atomic.Int64
	background(t, func(ctx context.Context) error {
		return b.ConsumeJobs(ctx, KindBuild, 1, func(context.Context, Job) error {
			calls.Add(1)
			return errors.New("no such job")
		})
	})
	background(t, func(ctx context.Context) error {
		return b.ConsumeReports(ctx, func(context.Context, Report) error { return errors.New("no such attempt") })
	})
	dead := make(chan Dead)
	background(t, func(ctx context.Context) error { return b.ConsumeDead(ctx, into(dead)) })

	must(t, b.PublishJob(t.Context(), job(1)))
	d := receive(t, dead, "dead letter")
	var j Job
	must(t, json.Unmarshal(d.Message.Body, &j))
	equal(t, j, job(1))
	equal(t, d.Queue, "jobs.build")
	equal(t, d.Reason, "no such job")
	equal(t, d.Message.Deliveries, testRetry.MaxDeliveries)
	equal(t, calls.Load(), int64(testRetry.MaxDeliveries))

	must(t, b.PublishReport(t.Context(), report("bld_1", 1)))
	d = receive(t, dead, "dead letter")
	if !strings.HasPrefix(d.Queue, "ingest.") || d.Reason != "no such attempt" || d.Message.Deliveries != testRetry.MaxDeliveries {
		t.Fatalf("got %+v", d)
	}
}

func testPanic(t *testing.T, open opener) {
	b := open(t)
	background(t, func(ctx context.Context) error {
		return b.ConsumeClaims(ctx, func(context.Context, Signed) error { panic("a bug") })
	})
	dead := make(chan Dead)
	background(t, func(ctx context.Context) error { return b.ConsumeDead(ctx, into(dead)) })
	must(t, b.PublishClaim(t.Context(), Signed{Claim: json.RawMessage(`{}`)}))
	equal(t, receive(t, dead, "dead letter").Reason, "handler panicked: a bug")
}

func testLater(t *testing.T, open opener) {
	b := open(t)
	done := make(chan []int, 10)
	again := testRetry.MaxDeliveries + 3
	handle := failing[Job](again, done)
	background(t, func(ctx context.Context) error {
		return b.ConsumeJobs(ctx, KindBuild, 1, func(ctx context.Context, j Job) error {
			return Later(handle(ctx, j))
		})
	})
	must(t, b.PublishJob(t.Context(), job(1)))
	equal(t, receive(t, done, "success"), slices.Repeat([]int{1}, again+1))
}

func testUnreadable(t *testing.T, open opener) {
	b := open(t)
	never := func(context.Context, Report) error { return errors.New("was handled") }
	background(t, func(ctx context.Context) error { return b.ConsumeReports(ctx, never) })
	dead := make(chan Dead)
	background(t, func(ctx context.Context) error { return b.ConsumeDead(ctx, into(dead)) })
	id := newID()
	for _, broken := range []struct {
		m      Message
		reason string
	}{
		{Message{ID: id, Version: WireVersion, Body: []byte(`{"attempt":`), Deliveries: 1}, "unexpected end of JSON input"},
		{Message{ID: id, Version: WireVersion, Deliveries: 1}, "unexpected end of JSON input"},
		{Message{ID: id, Version: "77", Body: []byte(`{}`), Deliveries: 1}, `version "77" is unknown`},
		{Message{ID: id, Body: []byte(`{}`), Deliveries: 1}, `version "" is unknown`},
		{Message{Version: WireVersion, Body: []byte(`{}`), Deliveries: 1}, "without an id"},
	} {
		must(t, b.(*client).publish(t.Context(), returnRoute(partition(3)), broken.m))
		d := receive(t, dead, "dead letter")
		if d.Queue != partition(3) || !strings.Contains(d.Reason, broken.reason) || string(d.Message.Body) != string(broken.m.Body) {
			t.Errorf("got %+v, want reason %q", d, broken.reason)
		}
		if d.Message.Version != broken.m.Version || d.Message.ID == "" || d.Message.Deliveries != 1 {
			t.Errorf("got %+v, want %+v", d.Message, broken.m)
		}
	}
}

func testDeadFails(t *testing.T, open opener) {
	b := open(t)
	must(t, b.(*client).publish(t.Context(), returnRoute("claims"), Message{ID: newID(), Version: "77", Body: []byte(`{}`), Deliveries: 1}))
	background(t, func(ctx context.Context) error {
		return b.ConsumeClaims(ctx, func(context.Context, Signed) error { return nil })
	})
	done := make(chan []int, 10)
	again := testRetry.MaxDeliveries + 3
	background(t, func(ctx context.Context) error { return b.ConsumeDead(ctx, failing[Dead](again, done)) })
	if got := receive(t, done, "success"); len(got) != again+1 || got[again] != again+1 {
		t.Fatalf("got deliveries %v", got)
	}
}

func testOrder(t *testing.T, open opener) {
	b := open(t)
	const n = 60
	for i := range n {
		must(t, b.PublishReport(t.Context(), report("bld_1", int64(i+1))))
	}
	var calls atomic.Int64
	handled := make(chan int64, n)
	background(t, func(ctx context.Context) error {
		return b.ConsumeReports(ctx, func(ctx context.Context, r Report) error {
			calls.Add(1)
			if r.First%3 == 0 && deliveries(ctx) < 3 {
				return errors.New("not yet")
			}
			handled <- r.First
			return nil
		})
	})
	for i := range n {
		if got := receive(t, handled, "report"); got != int64(i+1) {
			t.Fatalf("got report %d, want %d", got, i+1)
		}
	}
	equal(t, calls.Load(), int64(n+2*n/3))
}

func testSingleActive(t *testing.T, open opener) {
	type from struct {
		consumer  int
		partition string
	}
	seen := make(chan from, 1000)
	var stops []func()
	for i := range 2 {
		b := open(t)
		stops = append(stops, background(t, func(ctx context.Context) error {
			return b.ConsumeReports(ctx, func(_ context.Context, r Report) error {
				to, err := reportRoute(r.Attempt)
				seen <- from{i, to.key}
				return err
			})
		}))
	}
	b := open(t)
	active := map[string]int{}
	const n = 100
	publish := func(round int) {
		for i := range n {
			must(t, b.PublishReport(t.Context(), report(fmt.Sprintf("bld_%d_%d", round, i), 1)))
		}
	}
	publish(0)
	for range n {
		f := receive(t, seen, "report")
		if first, known := active[f.partition]; known && first != f.consumer {
			t.Fatalf("partition %s was consumed by both", f.partition)
		}
		active[f.partition] = f.consumer
	}
	equal(t, len(active), Partitions)
	stops[active[partition(0)]]()
	publish(1)
	for range n {
		if f := receive(t, seen, "report"); f.consumer == active[partition(0)] {
			t.Fatalf("consumer %d has ended, yet got a report of %s", f.consumer, f.partition)
		}
	}
}

func testSlots(t *testing.T, open opener) {
	busy, idle := open(t), open(t)
	started, finish := make(chan string, 10), make(chan struct{})
	background(t, func(ctx context.Context) error {
		return busy.ConsumeJobs(ctx, KindBuild, 2, func(ctx context.Context, j Job) error {
			started <- j.Subject
			select {
			case <-finish:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	must(t, busy.PublishJob(t.Context(), job(1)))
	must(t, busy.PublishJob(t.Context(), job(2)))
	got := []string{receive(t, started, "job"), receive(t, started, "job")}
	slices.Sort(got)
	equal(t, got, []string{"bld_1", "bld_2"})

	must(t, busy.PublishJob(t.Context(), job(3)))
	other := make(chan Job)
	background(t, func(ctx context.Context) error { return idle.ConsumeJobs(ctx, KindBuild, 1, into(other)) })
	equal(t, receive(t, other, "job that the busy worker must not hold").Subject, "bld_3")
	close(finish)
}

func testHeartbeatFails(t *testing.T, open opener) {
	b := open(t)
	seen := make(chan int, 10)
	background(t, func(ctx context.Context) error {
		return b.ConsumeHeartbeats(ctx, func(_ context.Context, h SignedHeartbeat) error {
			seen <- int(h.Signature[0])
			return errors.New("database away")
		})
	})
	for i := range 3 {
		must(t, b.PublishHeartbeat(t.Context(), SignedHeartbeat{Heartbeat: json.RawMessage(`{}`), Signature: []byte{byte(i)}}))
	}
	for i := range 3 {
		equal(t, receive(t, seen, "heartbeat"), i)
	}
}

func testAnswerToNobody(t *testing.T, open opener) {
	b := open(t)
	must(t, b.PublishAnswer(t.Context(), "gone", Answer{Refusal: &Refusal{Reason: "old"}}))
	answers := make(chan Answer, 1000)
	background(t, func(ctx context.Context) error { return b.ConsumeAnswers(ctx, "gone", into(answers)) })
	equal(t, answered(t, b, "gone", Answer{Refusal: &Refusal{Reason: "new"}}, answers).Refusal.Reason, "new")
}

func anything() Message {
	return Message{ID: newID(), Version: WireVersion, Body: []byte(`{}`), Deliveries: 1}
}

func testUnroutable(t *testing.T, open opener) {
	b := open(t)
	for range 3 { // and the channel serves on
		for _, to := range []route{{exchange: "pipeops.jobs", key: "test"}, returnRoute("nobody"), {exchange: "pipeops.logs", key: "x"}} {
			err := b.(*client).publish(t.Context(), to, anything())
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no queue is bound to exchange "+to.exchange+" with key "+to.key) {
				t.Errorf("got %v", err)
			}
			must(t, b.PublishJob(t.Context(), job(1)))
		}
	}
}

func testTooLarge(t *testing.T, open opener) {
	b := open(t)
	chunks := make(chan LogChunk)
	background(t, func(ctx context.Context) error { return b.ConsumeLogChunks(ctx, into(chunks)) })
	chunk := LogChunk{Attempt: "bld_1.1"}
	for body := []byte(nil); len(body) < MaxBody; body, _ = encode(chunk) {
		chunk.Token += strings.Repeat("x", MaxBody-len(body))
		if body == nil {
			chunk.Token = ""
		}
	}
	must(t, b.PublishLogChunk(t.Context(), chunk))
	equal(t, len(receive(t, chunks, "log chunk").Token), len(chunk.Token))

	chunk.Token += "x"
	err := b.PublishLogChunk(t.Context(), chunk)
	var tooLarge *TooLargeError
	if !errors.As(err, &tooLarge) || tooLarge.Size != MaxBody+1 || errors.Is(err, ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
}

func testFinish(t *testing.T, open opener) {
	b := open(t)
	started := make(chan struct{}, 10)
	stop := background(t, func(ctx context.Context) error {
		return b.ConsumeJobs(ctx, KindBuild, 1, func(ctx context.Context, _ Job) error {
			started <- struct{}{}
			<-ctx.Done()
			return nil // the effect was durable all the same
		})
	})
	must(t, b.PublishJob(t.Context(), job(1)))
	receive(t, started, "job")
	stop()
	must(t, b.PublishJob(t.Context(), job(2)))
	jobs := make(chan Job)
	background(t, func(ctx context.Context) error { return b.ConsumeJobs(ctx, KindBuild, 1, into(jobs)) })
	equal(t, receive(t, jobs, "job").Subject, "bld_2")
}

func testHandBack(t *testing.T, open opener) {
	b := open(t)
	started := make(chan struct{}, 10)
	stop := background(t, func(ctx context.Context) error {
		return b.ConsumeReports(ctx, func(ctx context.Context, _ Report) error {
			started <- struct{}{}
			<-ctx.Done()
			return context.Cause(ctx)
		})
	})
	for i := range 3 {
		must(t, b.PublishReport(t.Context(), report("bld_1", int64(i+1))))
	}
	receive(t, started, "report")
	stop()
	type delivery struct {
		First int64
		Count int
	}
	reports := make(chan delivery)
	background(t, func(ctx context.Context) error {
		return b.ConsumeReports(ctx, func(ctx context.Context, r Report) error {
			return into(reports)(ctx, delivery{r.First, deliveries(ctx)})
		})
	})
	for i := range 3 {
		equal(t, receive(t, reports, "report"), delivery{int64(i + 1), 1})
	}
}

func testClosed(t *testing.T, open opener) {
	b := open(t)
	if since, ok := b.ConnectedSince(); !b.Connected() || !ok || since.IsZero() || time.Since(since) < 0 {
		t.Fatalf("connected %v since %v (%v)", b.Connected(), since, ok)
	}
	must(t, b.Close())
	must(t, b.Close())
	if _, ok := b.ConnectedSince(); b.Connected() || ok {
		t.Fatal("a closed bus is connected")
	}
	if err := b.PublishJob(t.Context(), job(1)); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("publish: got %v", err)
	}
	if err := b.ConsumeClaims(t.Context(), nil); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("consume: got %v", err)
	}
}

func testClosedUnderConsumer(t *testing.T, open opener) {
	b := open(t)
	claims, ended := make(chan Signed), make(chan error, 1)
	go func() { ended <- b.ConsumeClaims(context.WithoutCancel(t.Context()), into(claims)) }()
	must(t, b.PublishClaim(t.Context(), Signed{Claim: json.RawMessage(`{}`)}))
	receive(t, claims, "claim")
	must(t, b.Close())
	if err := receive(t, ended, "end of the consumer"); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
}

func committed() Committed {
	return NewCommitted(domain.Recorded{
		Cursor: domain.Cursor{LogEpoch: 1, Position: 1 << 40}, ID: newID(), Stream: "build/bld_1", Version: 2,
		ProjectID: "prj_1", Type: "BuildStarted", SchemaVersion: 1, Body: []byte(`{"attempt":"bld_1.1"}`),
		OccurredAt: time.Unix(1, 0), RecordedAt: time.Unix(2, 0), Actor: "wrk_1", CorrelationID: "psh_1",
		Attempt: "bld_1.1", AttemptSeq: 3,
	})
}

func testCommitted(t *testing.T, open opener) {
	must(t, open(t).PublishCommitted(t.Context(), committed()))
}

func testRefused(t *testing.T, open opener) {
	b := open(t)
	if b.PublishReport(t.Context(), Report{Attempt: "bld_1"}) == nil || b.PublishJob(t.Context(), Job{Kind: "x"}) == nil {
		t.Fatal("want errors")
	}
	if b.ConsumeJobs(t.Context(), "x", 1, nil) == nil || b.ConsumeJobs(t.Context(), KindBuild, 0, nil) == nil {
		t.Fatal("want errors")
	}
}
