package records

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pipeops/pipeops/internal/seal"
)

// tokenPrefix makes a token that leaked somewhere easy to find.
const tokenPrefix = "pipeops_"

// ErrBadToken is what a token gets that is unknown or revoked.
var ErrBadToken = errors.New("token is unknown or revoked")

// Tokens keeps the bearer tokens of the API: not themselves, only their keyed hash.
type Tokens struct {
	pool *pgxpool.Pool
	keys *seal.Keyring
}

// NewTokens gives the table of tokens.
func NewTokens(pool *pgxpool.Pool, keys *seal.Keyring) *Tokens { return &Tokens{pool, keys} }

// Token is what is known of one.
type Token struct {
	ID        string     `json:"id"`   // UUID
	Name      string     `json:"name"` // for people
	CreatedAt time.Time  `json:"createdAt"`
	LastUsed  *time.Time `json:"lastUsed"` // nil: never; written at most once a minute
	RevokedAt *time.Time `json:"-"`        // nil: it is valid
}

// NewToken gives the text of a new token, not yet valid: Register makes it so.
func NewToken() string { return tokenPrefix + rand.Text() }

// IsToken says whether a text looks like a token, which must not be printed.
func IsToken(text string) bool { return strings.HasPrefix(text, tokenPrefix) }

// Create makes a token and gives its text, which nobody can get again.
func (t *Tokens) Create(ctx context.Context, name string) (secret string, token Token, err error) {
	secret = NewToken()
	token, err = t.Register(ctx, name, secret)
	return secret, token, err
}

// Register makes a text valid as a token; again does nothing. So whoever keeps it in a file writes the file first.
func (t *Tokens) Register(ctx context.Context, name, secret string) (Token, error) {
	if len(secret) < len(tokenPrefix)+20 {
		return Token{}, errors.New("a token this short can be guessed: use records.NewToken")
	}
	hashes := t.hashes(secret)
	err := exec(ctx, t.pool, "register token "+name, `INSERT INTO pipeops.tokens (id, name, hash) SELECT $1, $2, $3
		WHERE NOT EXISTS (SELECT FROM pipeops.tokens WHERE hash = ANY ($4)) ON CONFLICT DO NOTHING`,
		uuid.NewString(), name, hashes[0], hashes)
	if err != nil {
		return Token{}, err
	}
	return t.find(ctx, secret)
}

// Verify gives the token of that text, or ErrBadToken, and notes that it was used.
func (t *Tokens) Verify(ctx context.Context, secret string) (Token, error) {
	token, err := t.find(ctx, secret)
	if err != nil {
		return Token{}, err
	}
	return token, exec(ctx, t.pool, "note the use of token "+token.Name, `UPDATE pipeops.tokens SET last_used = clock_timestamp()
		WHERE id = $1 AND coalesce(last_used, '-infinity') < clock_timestamp() - interval '1 minute'`, token.ID)
}

func (t *Tokens) find(ctx context.Context, secret string) (token Token, err error) {
	err = t.pool.QueryRow(ctx, selectTokens+" WHERE hash = ANY ($1) AND revoked_at IS NULL", t.hashes(secret)).
		Scan(&token.ID, &token.Name, &token.CreatedAt, &token.LastUsed, &token.RevokedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return Token{}, ErrBadToken
	}
	if err != nil {
		return Token{}, fmt.Errorf("verify a token: %w", err)
	}
	return token, nil
}

// Revoke ends a token for ever. One that is unknown or revoked already is no error.
func (t *Tokens) Revoke(ctx context.Context, id string) error {
	return exec(ctx, t.pool, "revoke token "+id,
		"UPDATE pipeops.tokens SET revoked_at = clock_timestamp() WHERE id::text = $1 AND revoked_at IS NULL", id)
}

// List gives the tokens that are valid, the oldest first.
func (t *Tokens) List(ctx context.Context) ([]Token, error) {
	return list(ctx, t.pool, "list tokens", pgx.RowToStructByPos[Token],
		selectTokens+" WHERE revoked_at IS NULL ORDER BY created_at, id")
}

// Revoked gives the tokens that were revoked, the oldest first.
func (t *Tokens) Revoked(ctx context.Context) ([]Token, error) {
	return list(ctx, t.pool, "list revoked tokens", pgx.RowToStructByPos[Token],
		selectTokens+" WHERE revoked_at IS NOT NULL ORDER BY created_at, id")
}

// Names gives the names of all tokens by id, revoked ones too.
func (t *Tokens) Names(ctx context.Context) (map[string]string, error) {
	type named struct{ ID, Name string }
	all, err := list(ctx, t.pool, "list the names of tokens", pgx.RowToStructByPos[named], "SELECT id::text, name FROM pipeops.tokens")
	names := make(map[string]string, len(all))
	for _, n := range all {
		names[n.ID] = n.Name
	}
	return names, err
}

const selectTokens = "SELECT id::text, name, created_at, last_used, revoked_at FROM pipeops.tokens" //nolint:gosec // holds none

// hashes gives what may stand in the table for a token, under each key that there has been; the newest first.
func (t *Tokens) hashes(secret string) (all [][]byte) {
	for _, text := range t.keys.MACs(seal.APITokens, secret) {
		hash, _ := hex.DecodeString(text) // MACs gives hex
		all = append(all, hash)
	}
	return all
}
