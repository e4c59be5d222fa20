package records

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pipeops/pipeops/internal/seal"
)

// Keys keeps the wrapped data keys; it is seal.KeyStore.
type Keys struct{ pool *pgxpool.Pool }

// NewKeys gives the table of data keys.
func NewKeys(pool *pgxpool.Pool) *Keys { return &Keys{pool} }

var _ seal.KeyStore = (*Keys)(nil)

// Keys gives all of them.
func (k *Keys) Keys(ctx context.Context) ([]seal.WrappedKey, error) {
	return list(ctx, k.pool, "load the data keys", pgx.RowToStructByPos[seal.WrappedKey],
		"SELECT purpose, number, master_id, wrapped FROM pipeops.keys")
}

// AddKey keeps a key, or the one that is there already under its purpose and number.
func (k *Keys) AddKey(ctx context.Context, key seal.WrappedKey) error {
	return exec(ctx, k.pool, fmt.Sprintf("keep data key %s/%d", key.Purpose, key.Number),
		"INSERT INTO pipeops.keys (purpose, number, master_id, wrapped) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
		key.Purpose, key.Number, key.MasterID, key.Wrapped)
}
