// Package records receives from handlers, graph and seal what is not an event (rows that change, expire or must be
// forgotten) and hands it back on request; effects (PostgreSQL).
//
// One file per table. Each type has plain methods over a pool that it borrows (eventstore.Store.Pool); all methods may
// be called at the same time. Values that must stay secret are sealed before they get here or by seal.Keyring here.
// The backup covers these tables together with the log.
//
//	tokens := records.NewTokens(pool, keys)
//	secret, err := tokens.Create(ctx, "laptop")
package records

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// NotFoundError says that there is no such row.
type NotFoundError struct {
	What string // "delivery 123"
}

func (e *NotFoundError) Error() string { return "there is no " + e.What }

// exec runs a statement; the error says what was tried.
func exec(ctx context.Context, pool *pgxpool.Pool, tried, statement string, args ...any) error {
	if _, err := pool.Exec(ctx, statement, args...); err != nil {
		return fmt.Errorf("%s: %w", tried, err)
	}
	return nil
}

// list gives the rows of a query, each by scan.
func list[T any](ctx context.Context, pool *pgxpool.Pool, tried string, scan pgx.RowToFunc[T], query string, args ...any) ([]T, error) {
	rows, err := pool.Query(ctx, query, args...)
	if err == nil {
		var all []T
		if all, err = pgx.CollectRows(rows, scan); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", tried, err)
}

// found turns "no rows" into a NotFoundError.
func found(err error, what string) error {
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return &NotFoundError{What: what}
	case err != nil:
		return fmt.Errorf("load %s: %w", what, err)
	}
	return nil
}
