package records

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/seal"
)

// Revision is one version of a secret.
type Revision struct {
	Number     int // from 1
	Value      []byte
	ReplacedAt time.Time // when the next version came; zero for the current one
}

// Revisions gives the newest versions of a secret, at most n, newest first; none when there is no such secret.
func (s *Secrets) Revisions(ctx context.Context, project domain.ProjectID, name string, n int) ([]Revision, error) {
	type row struct {
		Version    int
		KeyID      string
		Sealed     []byte
		ReplacedAt *time.Time
	}
	tried := fmt.Sprintf("load the secret %s of %s", name, project)
	rows, err := list(ctx, s.pool, tried, pgx.RowToStructByPos[row], `SELECT version, key_id, sealed,
			lead(created_at) OVER (ORDER BY version) AS replaced_at
		FROM pipeops.secrets WHERE project_id = $1 AND name = $2 ORDER BY version DESC LIMIT $3`, project, name, n)
	if err != nil {
		return nil, err
	}
	out := make([]Revision, 0, len(rows))
	for _, r := range rows {
		value, err := s.keys.Open(ctx, seal.Secrets, about(project, name, r.Version), r.KeyID, r.Sealed)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", tried, err)
		}
		v := Revision{Number: r.Version, Value: value}
		if r.ReplacedAt != nil {
			v.ReplacedAt = *r.ReplacedAt
		}
		out = append(out, v)
	}
	return out, nil
}
