package testenv_test

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/pipeops/pipeops/internal/testenv"
)

func TestPostgresGivesEachTestAnEmptyDatabaseOfItsOwn(t *testing.T) {
	t.Parallel()
	for range 3 {
		url := testenv.Postgres(t)
		connection, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := connection.Exec(t.Context(), "CREATE TABLE only_here ()"); err != nil {
			t.Error(err)
		}
		if err := connection.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestAMQPGivesAVirtualHostThatTakesMessages(t *testing.T) {
	t.Parallel()
	connection, err := amqp.Dial(testenv.AMQP(t))
	if err != nil {
		t.Fatal(err)
	}
	publish(t, connection)
	if err := connection.Close(); err != nil {
		t.Error(err)
	}
}

func TestPrivateBrokerKeepsAddressAndDurableMessagesOverKillAndRestart(t *testing.T) {
	t.Parallel()
	broker := testenv.RabbitMQ(t)
	url := broker.URL
	connection, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, connection)
	if err := connection.Close(); err != nil {
		t.Error(err)
	}
	broker.Restart() // see Kill
	if connection, err = amqp.Dial(url); err != nil {
		t.Fatal(err)
	}
	closed := connection.NotifyClose(make(chan *amqp.Error, 1))
	broker.Kill()
	if why := <-closed; why == nil {
		t.Error("connection closed in order by a killed broker")
	}
	if _, err := amqp.Dial(url); err == nil {
		t.Error("a killed broker accepts connections")
	}
	broker.Start()
	if broker.URL != url {
		t.Errorf("address after restart %s, was %s", broker.URL, url)
	}
	if connection, err = amqp.Dial(url); err != nil {
		t.Fatal(err)
	}
	channel, err := connection.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if _, found, err := channel.Get("jobs", true); err != nil || !found {
		t.Errorf("message after restarts: found %t, %v", found, err)
	}
	if err := connection.Close(); err != nil {
		t.Error(err)
	}
}

// publish puts one persistent message into a quorum queue and waits until the broker has confirmed it.
func publish(t *testing.T, connection *amqp.Connection) {
	t.Helper()
	channel, err := connection.Channel()
	if err != nil {
		t.Fatal(err)
	}
	_, declared := channel.QueueDeclare("jobs", true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum})
	if err := errors.Join(channel.Confirm(false), declared); err != nil {
		t.Fatal(err)
	}
	confirmation, err := channel.PublishWithDeferredConfirmWithContext(t.Context(), "", "jobs", false, false,
		amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := confirmation.WaitContext(t.Context()); err != nil || !ok {
		t.Errorf("confirmed: %t, %v", ok, err)
	}
}
