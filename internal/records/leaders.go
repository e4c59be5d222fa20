package records

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// Announce tells the other processes where the one that leads in name is reached. Call it while leading.
func (l *Leaders) Announce(ctx context.Context, name, address string) error {
	return exec(ctx, l.pool, "announce the leader of "+name, `INSERT INTO pipeops.leaders (name, address) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET address = excluded.address, since = clock_timestamp()`, name, address)
}

// Announced gives where the last leader in name said it is reached, "" when none ever did.
func (l *Leaders) Announced(ctx context.Context, name string) (address string, err error) {
	err = l.pool.QueryRow(ctx, "SELECT address FROM pipeops.leaders WHERE name = $1", name).Scan(&address)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	return address, found(err, "leader of "+name)
}
