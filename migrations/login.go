package migrations

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// maxName is what PostgreSQL keeps of a name, in bytes.
const maxName = 63

// AppLogin is the name of the application's login for a database: pipeops_app for the database pipeops, else
// pipeops_app_<database>. Logins belong to the whole server, so that several installations on one server each need
// one of their own: none of them can enter another's log.
func AppLogin(database string) string {
	if database == "pipeops" {
		return "pipeops_app"
	}
	name := "pipeops_app_" + database
	if len(name) > maxName {
		sum := sha256.Sum256([]byte(database))
		name = strings.ToValidUTF8(name[:maxName-9], "") + "_" + hex.EncodeToString(sum[:4])
	}
	return name
}

// appPassword follows from the owner's, so that every process that has the owner's address finds the same one and
// nothing is stored; a new password of the owner's gives a new one. Without a password of the owner's (trust, peer
// or certificate logins) there is none: a derived one could be guessed.
func appPassword(ownerPassword, login string) string {
	if ownerPassword == "" {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(mac([]byte(ownerPassword), "pipeops/app-login/1/"+login))
}

// login is one of the application's.
type login struct {
	name, password string // no password: PostgreSQL lets it in by other means, or not at all
	ours           bool   // the password is ours to change
}

// ensureLogin makes the application's login if it is missing, and gives it its rights.
// The caller holds the migration lock.
func ensureLogin(ctx context.Context, conn *sql.Conn, owner *pgx.ConnConfig, app login) error {
	var exists bool
	err := conn.QueryRowContext(ctx, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", app.name).Scan(&exists)
	if err == nil && !exists {
		err = app.set(ctx, conn, "CREATE")
	}
	if err != nil {
		return fmt.Errorf("make the login %s as %s (it needs the right CREATEROLE; or make that login by hand, give its "+
			"address as DATABASE_URL and the owner's as PIPEOPS_MIGRATE_URL): %w", app.name, owner.User, err)
	}
	if _, err := conn.ExecContext(ctx, rights(app.name, owner.Database)); err != nil {
		return fmt.Errorf("give the login %s its rights as %s: %w", app.name, owner.User, err)
	}
	if exists && app.ours {
		return keepPassword(ctx, conn, owner, app)
	}
	return nil
}

// keepPassword sets the password only when the login can't get in with it: a change for nothing would make
// everybody who starts wait for everybody else.
func keepPassword(ctx context.Context, conn *sql.Conn, owner *pgx.ConnConfig, app login) error {
	as := owner.Copy()
	as.User, as.Password = app.name, app.password
	trial, err := pgx.ConnectConfig(ctx, as)
	if err == nil {
		return trial.Close(ctx)
	}
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != "28P01" {
		return fmt.Errorf("log in as %s: %w", app.name, err)
	}
	if err := app.set(ctx, conn, "ALTER"); err != nil {
		return fmt.Errorf("set the password of the login %s as %s: %w", app.name, owner.User, err)
	}
	return nil
}

// set makes the login or changes its password.
func (l login) set(ctx context.Context, conn *sql.Conn, verb string) error {
	password, err := l.passwordClause()
	if err == nil {
		_, err = conn.ExecContext(ctx, verb+" ROLE "+quote(l.name)+" LOGIN "+password)
	}
	return err
}

// passwordClause sends the password as PostgreSQL keeps it, a SCRAM-SHA-256 verifier: statements may be logged there.
func (l login) passwordClause() (string, error) {
	if l.password == "" {
		return "PASSWORD NULL", nil
	}
	if strings.ContainsFunc(l.password, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", errors.New("its password is not printable ASCII: make the login by hand")
	}
	const iterations = 4096 // PostgreSQL's own
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails: it ends the program instead
	salted, err := pbkdf2.Key(sha256.New, l.password, salt, iterations, sha256.Size)
	if err != nil {
		return "", err
	}
	stored := sha256.Sum256(mac(salted, "Client Key"))
	text := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("PASSWORD 'SCRAM-SHA-256$%d:%s$%s:%s'", iterations, text(salt), text(stored[:]), text(mac(salted, "Server Key"))), nil
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// withUser puts the login into the address: a URL, or words of the form key=value.
func withUser(address string, app login) (string, error) {
	if !strings.HasPrefix(address, "postgres://") && !strings.HasPrefix(address, "postgresql://") {
		words := address + " user=" + keyword(app.name)
		if app.password != "" {
			words += " password=" + keyword(app.password)
		}
		return words, nil // the last of two words with the same key counts
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", errors.New("address of the database to migrate is no URL") // the parser's message holds the password
	}
	u.User = url.User(app.name)
	if app.password != "" {
		u.User = url.UserPassword(app.name, app.password)
	}
	query := u.Query()
	query.Del("user")
	query.Del("password")
	u.RawQuery = query.Encode()
	return u.String(), nil
}

func keyword(value string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// rights says all that the application may do. Safe to repeat, and repeated at each Up, so that a restore under
// another name gets them too. Nothing is revoked here: an older binary must not take from a newer one.
func rights(login, database string) string {
	return strings.NewReplacer("$app", quote(login), "$database", quote(database)).Replace(`
		GRANT CONNECT ON DATABASE $database TO $app;
		GRANT USAGE ON SCHEMA pipeops TO $app;
		-- The log: call append, read, nothing else.
		GRANT EXECUTE ON FUNCTION pipeops.append, pipeops.append_one, pipeops.append_next, pipeops.append_next_one,
		                          pipeops.append_known, pipeops.append_known_one, pipeops.body_json, pipeops.index_blocks TO $app;
		GRANT SELECT ON pipeops.events, pipeops.events_json, pipeops.log_epochs, pipeops.cursors,
		                pipeops.event_blocks, pipeops.event_blocks_head, pipeops.schema_versions TO $app;
		GRANT SELECT, DELETE ON pipeops.deliveries TO $app;
		-- What proves it: add to it through functions, read.
		GRANT EXECUTE ON FUNCTION pipeops.add_tiles, pipeops.add_head TO $app;
		GRANT SELECT ON pipeops.log_identity, pipeops.tree_tiles, pipeops.valid_tiles, pipeops.tree_heads TO $app;
		-- Records.
		GRANT SELECT, INSERT, UPDATE ON pipeops.keys, pipeops.subject_keys, pipeops.tokens TO $app;
		GRANT SELECT, INSERT, DELETE ON pipeops.secrets, pipeops.build_log_chunks TO $app;
		GRANT SELECT, INSERT, UPDATE, DELETE ON pipeops.claims, pipeops.claim_attempts, pipeops.leaders,
		                                        pipeops.projection_uses TO $app;
		-- Read models are made at run time, by version, and can be dropped and rebuilt.
		GRANT USAGE, CREATE ON SCHEMA projections TO $app;
		GRANT ALL ON ALL TABLES IN SCHEMA projections TO $app;`)
}
