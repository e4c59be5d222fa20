package migrations

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Fork begins a new log epoch: after a restore or failover that may have lost the log's tail. It is at least atLeast,
// and above that of every tree head that the database has. url is that of the login that owns the schema. It answers
// with the epoch and its first position.
func Fork(ctx context.Context, url string, atLeast int64) (epoch, first int64, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0, 0, fmt.Errorf("connect as the owner of the log: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	err = conn.QueryRow(ctx, `SELECT pipeops.raise_log_epoch(greatest($1, (SELECT max(log_epoch) + 1 FROM pipeops.tree_heads)))`, atLeast).Scan(&epoch)
	if err == nil {
		err = conn.QueryRow(ctx, "SELECT first_position FROM pipeops.log_epochs WHERE epoch = $1", epoch).Scan(&first)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("raise the log epoch: %w", err)
	}
	return epoch, first, nil
}
