package bus

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/pipeops/pipeops/internal/testenv"
)

// testLog shows what a failed test logged.
func testLog(t *testing.T) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func openAMQP(t *testing.T, url string) Bus {
	t.Helper()
	b, err := NewAMQP(t.Context(), AMQPConfig{
		URL: url, Name: t.Name(), Log: testLog(t),
		MaxDeliveries: testRetry.MaxDeliveries, FirstWait: testRetry.FirstWait, LongestWait: testRetry.LongestWait,
	})
	must(t, err)
	t.Cleanup(func() { must(t, b.Close()) })
	return b
}

func TestAMQP(t *testing.T) {
	t.Parallel()
	conformance(t, func(t *testing.T) opener {
		t.Helper()
		url := testenv.AMQP(t)
		return func(t *testing.T) Bus {
			t.Helper()
			return openAMQP(t, url)
		}
	})
}

// rawChannel is a channel past the bus.
func rawChannel(t *testing.T, url string) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(url)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	must(t, err)
	return ch
}

func TestAMQPOutsidersBindCommittedEvents(t *testing.T) {
	t.Parallel()
	url := testenv.AMQP(t)
	b := openAMQP(t, url)
	ch := rawChannel(t, url)
	q, err := ch.QueueDeclare("", false, true, true, false, nil)
	must(t, err)
	must(t, ch.QueueBind(q.Name, "prj_1.BuildStarted", "pipeops.committed", false, nil))
	deliveries, err := ch.Consume(q.Name, "", true, true, false, false, nil)
	must(t, err)

	sent := committed()
	must(t, b.PublishCommitted(t.Context(), sent))
	d := receive(t, deliveries, "committed event")
	var got Committed
	must(t, json.Unmarshal(d.Body, &got))
	equal(t, got, sent)
	equal(t, d.ContentType, "application/cloudevents+json")
	equal(t, d.Headers, amqp.Table{"cursor": "1.1099511627776", "position": "1099511627776", "pipeops-version": "1"})
}

func TestAcceptance19_WhatTheBrokerGivesUpIsDead(t *testing.T) {
	t.Parallel()
	url := testenv.AMQP(t)
	b := openAMQP(t, url)
	must(t, b.PublishClaim(t.Context(), Signed{Claim: json.RawMessage(`{"n":1}`)}))
	ch := rawChannel(t, url)
	deliveries, err := ch.Consume("claims", "", false, false, false, false, nil)
	must(t, err)
	for range brokerLimit + 1 {
		d := receive(t, deliveries, "claim")
		must(t, d.Nack(false, true))
	}
	dead := make(chan Dead)
	background(t, func(ctx context.Context) error { return b.ConsumeDead(ctx, into(dead)) })
	d := receive(t, dead, "dead letter")
	if d.Queue != "claims" || d.Reason != "the broker gave up: delivery_limit" || !strings.Contains(string(d.Message.Body), `{"n":1}`) {
		t.Fatalf("got %+v", d)
	}
}

func TestAcceptance19_RedeliveryByTheBrokerIsHandled(t *testing.T) {
	t.Parallel()
	url := testenv.AMQP(t)
	b := openAMQP(t, url)
	must(t, b.PublishJob(t.Context(), job(1)))
	ch := rawChannel(t, url)
	for range 3 { // now the message has the header x-delivery-count, a number
		d, ok, err := ch.Get("jobs.build", false)
		must(t, err)
		if !ok {
			t.Fatal("no job")
		}
		must(t, d.Nack(false, true))
	}
	jobs := make(chan Job)
	background(t, func(ctx context.Context) error { return b.ConsumeJobs(ctx, KindBuild, 1, into(jobs)) })
	equal(t, receive(t, jobs, "job"), job(1))
}

func TestAcceptance20_WhatFindsNoQueueIsAnErrorAndTheNextTryArrives(t *testing.T) {
	t.Parallel()
	url := testenv.AMQP(t)
	b := openAMQP(t, url)
	ch := rawChannel(t, url)
	heartbeat := SignedHeartbeat{Heartbeat: json.RawMessage(`{}`)}
	for name, publish := range map[string]func() error{
		"jobs.build":  func() error { return b.PublishJob(t.Context(), job(1)) },
		"claims":      func() error { return b.PublishClaim(t.Context(), Signed{Claim: json.RawMessage(`{}`)}) },
		"heartbeats":  func() error { return b.PublishHeartbeat(t.Context(), heartbeat) },
		"logs":        func() error { return b.PublishLogChunk(t.Context(), LogChunk{Attempt: "bld_1.1"}) },
		partition(3):  func() error { return b.(*client).publish(t.Context(), returnRoute(partition(3)), anything()) },
		deadQueue:     func() error { return b.(*client).publish(t.Context(), deadRoute, anything()) },
		"jobs.deploy": func() error { return b.PublishJob(t.Context(), Job{Kind: KindDeploy, Subject: "dep_1"}) },
	} {
		for range 2 {
			_, err := ch.QueueDelete(name, false, false, false)
			must(t, err)
			if err := publish(); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no queue is bound") {
				t.Errorf("%s is gone: got %v", name, err)
			}
			must(t, publish())
			deliveries, err := ch.Consume(name, "", true, false, false, false, nil)
			must(t, err)
			receive(t, deliveries, "message in "+name)
		}
	}
	must(t, b.PublishCommitted(t.Context(), committed())) // nobody needs to listen
	must(t, b.PublishAnswer(t.Context(), "gone", Answer{Refusal: &Refusal{Reason: "old"}}))
}

func TestAMQPForeignMessageWithoutAnIDIsDead(t *testing.T) {
	t.Parallel()
	url := testenv.AMQP(t)
	b := openAMQP(t, url)
	must(t, rawChannel(t, url).PublishWithContext(t.Context(), "pipeops.jobs", "build", false, false,
		amqp.Publishing{Body: []byte("hello"), Headers: amqp.Table{"n": int32(7), "list": []any{"a"}}}))
	background(t, func(ctx context.Context) error { return b.ConsumeJobs(ctx, KindBuild, 1, into(make(chan Job))) })
	dead := make(chan Dead)
	background(t, func(ctx context.Context) error { return b.ConsumeDead(ctx, into(dead)) })
	d := receive(t, dead, "dead letter")
	equal(t, d.Reason, "message without an id")
	equal(t, string(d.Message.Body), "hello")
	equal(t, d.Message.Headers, map[string]string{"n": "7"})
}

func TestAMQPRefusesAtOnceWhatWaitingDoesNotMend(t *testing.T) {
	t.Parallel()
	url := testenv.AMQP(t)
	parsed, err := amqp.ParseURI(url)
	must(t, err)
	parsed.Password = "wrong-secret"
	wrongPassword := parsed.String()
	parsed, _ = amqp.ParseURI(url)
	parsed.Vhost = "nobody-made-this"
	for _, bad := range []string{wrongPassword, parsed.String(), "http://user:wrong-secret@host", "amqp://user:wrong-secret@host:port:port"} {
		_, err := NewAMQP(t.Context(), AMQPConfig{URL: bad})
		if err == nil || errors.Is(err, ErrUnavailable) || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v", err)
		}
	}
}

func TestAMQPWaitsForTheBroker(t *testing.T) {
	t.Parallel()
	_, err := NewAMQP(t.Context(), AMQPConfig{URL: "amqp://127.0.0.1:1/", ConnectTimeout: 50 * time.Millisecond})
	if !errors.Is(err, ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
}

func TestAMQPZeroDeliveryIsRejected(t *testing.T) {
	t.Parallel()
	if _, err := (marshaler{}).Unmarshal(amqp.Delivery{}); !errors.Is(err, errNoDelivery) {
		t.Fatalf("got %v", err)
	}
}
