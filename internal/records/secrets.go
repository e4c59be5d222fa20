package records

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/seal"
)

// Secrets keeps sealed values by project ("" = of the installation) and name. A change adds a version, from 1; events
// name versions, never values.
type Secrets struct {
	pool *pgxpool.Pool
	keys *seal.Keyring
}

// NewSecrets gives the table of secrets.
func NewSecrets(pool *pgxpool.Pool, keys *seal.Keyring) *Secrets { return &Secrets{pool, keys} }

// Put keeps a value as that version, and does nothing when the version is there: the caller numbers them, so that a
// retry is harmless.
func (s *Secrets) Put(ctx context.Context, project domain.ProjectID, name string, version int, value []byte) error {
	keyID, sealed, err := s.keys.Seal(seal.Secrets, about(project, name, version), value)
	if err != nil {
		return err
	}
	return exec(ctx, s.pool, "keep secret "+about(project, name, version), `INSERT INTO pipeops.secrets
		(project_id, name, version, key_id, sealed) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`,
		project, name, version, keyID, sealed)
}

// Set keeps a value as the next version and gives its number.
func (s *Secrets) Set(ctx context.Context, project domain.ProjectID, name string, value []byte) (version int, err error) {
	for {
		err := s.pool.QueryRow(ctx, "SELECT coalesce(max(version), 0) + 1 FROM pipeops.secrets WHERE project_id = $1 AND name = $2",
			project, name).Scan(&version)
		if err != nil {
			return 0, fmt.Errorf("number secret %s of project %s: %w", name, project, err)
		}
		keyID, sealed, err := s.keys.Seal(seal.Secrets, about(project, name, version), value)
		if err != nil {
			return 0, err
		}
		done, err := s.pool.Exec(ctx, `INSERT INTO pipeops.secrets (project_id, name, version, key_id, sealed)
			VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`, project, name, version, keyID, sealed)
		if err != nil {
			return 0, fmt.Errorf("keep secret %s: %w", about(project, name, version), err)
		}
		if done.RowsAffected() == 1 {
			return version, nil // else somebody else took the number: the next one
		}
	}
}

// Get gives a version of a secret, 0 for the newest, and its number; or a *NotFoundError.
func (s *Secrets) Get(ctx context.Context, project domain.ProjectID, name string, version int) (value []byte, number int, err error) {
	var keyID string
	var sealed []byte
	err = s.pool.QueryRow(ctx, `SELECT version, key_id, sealed FROM pipeops.secrets
		WHERE project_id = $1 AND name = $2 AND ($3 = 0 OR version = $3) ORDER BY version DESC LIMIT 1`,
		project, name, version).Scan(&number, &keyID, &sealed)
	if err := found(err, "secret "+about(project, name, version)); err != nil {
		return nil, 0, err
	}
	value, err = s.keys.Open(ctx, seal.Secrets, about(project, name, number), keyID, sealed)
	return value, number, err
}

func about(project domain.ProjectID, name string, version int) string {
	return fmt.Sprintf("%s/%s/%d", project, name, version)
}
