package bus

import (
	"errors"
	"fmt"
	"maps"
	"strconv"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"
)

// Headers that are fields of Message, and marks for the marshaler that aren't
// sent as headers.
const (
	versionKey     = "pipeops-version"
	deliveriesKey  = "pipeops-deliveries" // absent: 1
	contentTypeKey = "content-type"       // becomes the property; absent: application/json
	fleetingKey    = "pipeops-fleeting"   // becomes the delivery mode
)

// toWatermill gives Watermill's form of m.
func toWatermill(m Message, survives bool) *message.Message {
	w := message.NewMessage(m.ID, m.Body)
	maps.Copy(w.Metadata, m.Headers)
	w.Metadata[versionKey] = m.Version
	if m.Deliveries > 1 {
		w.Metadata[deliveriesKey] = strconv.Itoa(m.Deliveries)
	}
	if !survives {
		w.Metadata[fleetingKey] = "true"
	}
	return w
}

// fromWatermill reads what marshaler.Unmarshal made.
func fromWatermill(w *message.Message) Message {
	m := Message{ID: w.UUID, Body: w.Payload, Headers: maps.Clone(w.Metadata), Version: w.Metadata[versionKey], Deliveries: 1}
	if n, err := strconv.Atoi(w.Metadata[deliveriesKey]); err == nil && n > 1 {
		m.Deliveries = n
	}
	delete(m.Headers, versionKey)
	delete(m.Headers, deliveriesKey)
	return m
}

// marshaler is Watermill's bridge to AMQP. Its own one refuses each header that
// is no string, and with it every message that a quorum queue redelivers
// (x-delivery-count is a number): refused again and again, the broker drops it.
type marshaler struct{}

func (marshaler) Marshal(w *message.Message) (amqp.Publishing, error) {
	p := amqp.Publishing{
		MessageId: w.UUID, ContentType: "application/json", DeliveryMode: amqp.Persistent,
		Headers: amqp.Table{}, Body: w.Payload,
	}
	for key, value := range w.Metadata {
		switch key {
		case contentTypeKey:
			p.ContentType = value
		case fleetingKey:
			p.DeliveryMode = amqp.Transient
		default:
			p.Headers[key] = value
		}
	}
	return p, nil
}

// errNoDelivery makes Watermill give up a channel that was closed under it: it
// takes the zero value that a closed Go channel gives for a delivery.
var errNoDelivery = errors.New("the channel was closed")

func (marshaler) Unmarshal(d amqp.Delivery) (*message.Message, error) {
	if d.Acknowledger == nil {
		return nil, errNoDelivery
	}
	w := message.NewMessage(d.MessageId, d.Body)
	for key, value := range d.Headers {
		if text, ok := flat(value); ok {
			w.Metadata[key] = text
		}
	}
	return w, nil
}

// flat gives the text of a simple value. Tables and arrays, as in x-death, are dropped.
func flat(value any) (string, bool) {
	switch v := value.(type) {
	case string:
		return v, true
	case []byte:
		return string(v), true
	case nil, amqp.Table, []any:
		return "", false
	default:
		return fmt.Sprint(v), true
	}
}
