package records

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/seal"
)

// Deliveries keeps what came in from outside, byte for byte, each sealed under a key of its own. They are written by
// eventstore.Append as attachments of the events that they led to.
type Deliveries struct {
	pool *pgxpool.Pool
	keys *seal.Keyring
}

// NewDeliveries gives the table of deliveries.
func NewDeliveries(pool *pgxpool.Pool, keys *seal.Keyring) *Deliveries {
	return &Deliveries{pool, keys}
}

// Delivery is one of them, opened.
type Delivery struct {
	ID          string
	EventID     string // of the event that it led to
	Project     domain.ProjectID
	ContentType string
	Raw         []byte
	ReceivedAt  time.Time
}

// Seal prepares raw to be attached under id: it gives KeyID and Sealed of an eventstore.Attachment.
func (d *Deliveries) Seal(id string, raw []byte) (keyID string, sealed []byte, err error) {
	return d.keys.Seal(seal.Deliveries, id, raw)
}

// Get opens the delivery of that id, or gives a *NotFoundError.
func (d *Deliveries) Get(ctx context.Context, id string) (Delivery, error) {
	got := Delivery{ID: id}
	var keyID string
	var sealed []byte
	err := d.pool.QueryRow(ctx, `SELECT event_id::text, project_id, content_type, key_id, sealed, received_at
		FROM pipeops.deliveries WHERE id = $1`, id).
		Scan(&got.EventID, &got.Project, &got.ContentType, &keyID, &sealed, &got.ReceivedAt)
	if err := found(err, "delivery "+id); err != nil {
		return Delivery{}, err
	}
	got.Raw, err = d.keys.Open(ctx, seal.Deliveries, id, keyID, sealed)
	return got, err
}

// erase removes the deliveries that a person sent, or whose events name them: they tell what the events keep sealed
// under the person's key, but are sealed under another.
func (d *Deliveries) erase(ctx context.Context, subject string) (int, error) {
	tag, err := d.pool.Exec(ctx, `DELETE FROM pipeops.deliveries d USING pipeops.events e
		WHERE e.id = d.event_id
		  AND (e.actor = $1 OR position(convert_to('"sub":' || to_json($1::text), 'UTF8') IN e.body) > 0)`, subject)
	return int(tag.RowsAffected()), err
}
