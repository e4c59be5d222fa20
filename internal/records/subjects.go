package records

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pipeops/pipeops/internal/seal"
)

// Subjects keeps persons' keys, sealed; it is seal.SubjectStore.
type Subjects struct{ pool *pgxpool.Pool }

// NewSubjects gives the table of persons' keys.
func NewSubjects(pool *pgxpool.Pool) *Subjects { return &Subjects{pool} }

var _ seal.SubjectStore = (*Subjects)(nil)

// SubjectKeys gives all keys of a person by number, erased ones too.
func (s *Subjects) SubjectKeys(ctx context.Context, subject string) ([]seal.SubjectKey, error) {
	return list(ctx, s.pool, "load the keys of subject "+subject, pgx.RowToStructByPos[seal.SubjectKey],
		"SELECT subject, number, key_id, sealed, created_at FROM pipeops.subject_keys WHERE subject = $1 ORDER BY number", subject)
}

// AddSubjectKey keeps a key, or the one that is there already under its number.
func (s *Subjects) AddSubjectKey(ctx context.Context, key seal.SubjectKey) error {
	return exec(ctx, s.pool, fmt.Sprintf("keep key %d of subject %s", key.Number, key.Subject),
		"INSERT INTO pipeops.subject_keys (subject, number, key_id, sealed) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
		key.Subject, key.Number, key.KeyID, key.Sealed)
}

// EraseSubject makes all keys of a person unreadable for ever. The rows stay, so that no number is used twice.
func (s *Subjects) EraseSubject(ctx context.Context, subject string) error {
	return exec(ctx, s.pool, "erase the keys of subject "+subject,
		"UPDATE pipeops.subject_keys SET sealed = NULL, erased_at = clock_timestamp() WHERE subject = $1 AND sealed IS NOT NULL", subject)
}
