// Package migrations receives the address of a database from cmd/pipeops and from tests, brings its schema up to
// what this binary needs, and hands back the address that the application shall use; effects.
//
// Migrations go forward only and are never edited once they have landed. A newer schema than this binary knows is
// fine: each release works on the schema of the next.
//
//	appURL, err := migrations.Up(ctx, os.Getenv("PIPEOPS_MIGRATE_URL"), log)
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

//go:embed *.sql
var files embed.FS

const (
	versionTable = "pipeops.schema_versions"
	lockKey      = 7021798406534587740 // of one migration at a time in a database; any number
)

// BehindError says that the schema is older than this binary needs, and that the login may not change it.
type BehindError struct {
	Login      string
	Have, Need int64 // versions of the schema; Have is 0 where there is none
}

func (e *BehindError) Error() string {
	return fmt.Sprintf("schema pipeops is at version %d, this binary needs %d, and the login %s does not own it: "+
		"run `pipeops migrate` with PIPEOPS_MIGRATE_URL set to the owner's address, for example "+
		"postgres://owner:password@host/pipeops", e.Have, e.Need, e.Login)
}

// Up brings the schema up to date and returns the address for `serve`.
//
// Where the login of url owns the schema, or may make it, Up applies what is missing and makes the login that the
// application uses (AppLogin), with a password that follows from the owner's: its address is returned. Any other login
// only gets the schema checked, and its own address back; a schema too old for it is a *BehindError. Any number of
// processes may call Up at the same time.
func Up(ctx context.Context, url string, log *slog.Logger) (appURL string, err error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return "", fmt.Errorf("address of the database to migrate: %w", err)
	}
	app := login{name: AppLogin(config.Database), ours: true}
	app.password = appPassword(config.Password, app.name)
	owns, err := up(ctx, config, app, log)
	if err != nil || !owns {
		return url, err
	}
	return withUser(url, app)
}

// UpFor is Up where the application's address is given: its login is made if it is missing, and gets its rights, but
// keeps its password. Without the right to make logins the owner of the schema needs this, and a login made by hand.
func UpFor(ctx context.Context, url, appURL string, log *slog.Logger) error {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return fmt.Errorf("address of the database to migrate: %w", err)
	}
	app, err := pgx.ParseConfig(appURL)
	if err != nil {
		return fmt.Errorf("address of the database for the application: %w", err)
	}
	_, err = up(ctx, config, login{name: app.User, password: app.Password}, log)
	return err
}

// up does both; owns says whether the login of config may migrate.
func up(ctx context.Context, config *pgx.ConnConfig, app login, log *slog.Logger) (owns bool, err error) {
	config.RuntimeParams["application_name"] = "pipeops migrate"
	db := stdlib.OpenDB(*config)
	defer func() { err = errors.Join(err, db.Close()) }()
	lock, err := db.Conn(ctx) // the lock ends with this connection
	if err != nil {
		return false, fmt.Errorf("connect to %s as %s to migrate: %w", config.Database, config.User, err)
	}
	defer lock.Close() //nolint:errcheck // db.Close tells
	provider, err := newProvider(db)
	if err != nil {
		return false, err
	}
	owns, err = mayMigrate(ctx, lock)
	if err != nil {
		return false, fmt.Errorf("look at schema pipeops as %s: %w", config.User, err)
	}
	if !owns {
		return false, check(ctx, lock, provider, config.User)
	}
	if _, err := lock.ExecContext(ctx, "SELECT pg_advisory_lock($1)", int64(lockKey)); err != nil {
		return false, fmt.Errorf("wait for another migration of %s: %w", config.Database, err)
	}
	if err := apply(ctx, lock, provider, log); err != nil {
		return false, fmt.Errorf("migrate %s as %s: %w", config.Database, config.User, err)
	}
	return true, ensureLogin(ctx, lock, config, app)
}

func newProvider(db *sql.DB) (*goose.Provider, error) {
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(versionTable), goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return nil, fmt.Errorf("read the embedded migrations: %w", err)
	}
	return provider, nil
}

// mayMigrate says whether the login owns schema pipeops or, where there is none yet, may make it.
func mayMigrate(ctx context.Context, conn *sql.Conn) (owns bool, err error) {
	err = conn.QueryRowContext(ctx, `
		SELECT coalesce((SELECT pg_has_role(nspowner, 'MEMBER') FROM pg_namespace WHERE nspname = 'pipeops'),
		                has_database_privilege(current_database(), 'CREATE'))`).Scan(&owns)
	return owns, err
}

func apply(ctx context.Context, conn *sql.Conn, provider *goose.Provider, log *slog.Logger) error {
	// Not CREATE SCHEMA IF NOT EXISTS: that asks for the right to create even where nothing is to be created.
	var exists bool
	if err := conn.QueryRowContext(ctx, "SELECT to_regnamespace('pipeops') IS NOT NULL").Scan(&exists); err != nil {
		return err
	}
	if !exists {
		if _, err := conn.ExecContext(ctx, "CREATE SCHEMA pipeops"); err != nil {
			return err
		}
	}
	applied, err := provider.Up(ctx)
	if err != nil {
		return err
	}
	for _, migration := range applied {
		log.InfoContext(ctx, "migration applied", "version", migration.Source.Version, "duration", migration.Duration)
	}
	return nil
}

func check(ctx context.Context, conn *sql.Conn, provider *goose.Provider, login string) error {
	sources := provider.ListSources()
	need := sources[len(sources)-1].Version
	var have int64
	var exists bool
	err := conn.QueryRowContext(ctx, "SELECT to_regclass($1) IS NOT NULL", versionTable).Scan(&exists)
	if err == nil && exists {
		err = conn.QueryRowContext(ctx, "SELECT max(version_id) FROM "+versionTable).Scan(&have)
	}
	if err != nil {
		return fmt.Errorf("look up the version of schema pipeops as %s: %w", login, err)
	}
	if have < need {
		return &BehindError{Login: login, Have: have, Need: need}
	}
	return nil
}
