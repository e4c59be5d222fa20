package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/internal/config"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/internal/seal"
	"github.com/pipeops/pipeops/migrations"
)

// core is what every process with a database has.
type core struct {
	home       string
	store      *eventstore.Store
	keys       *seal.Keyring
	subjects   *seal.Subjects
	commands   *commands.Handler
	claims     *records.Claims
	deliveries *records.Deliveries
	logs       *records.LogChunks
	secrets    *records.Secrets
	tokens     *records.Tokens
	leaders    *records.Leaders
	signer     *eventstore.Signer
	witness    *witness
}

// openCore migrates where it may, opens the log and the keys. Whoever has a core may append, so there is none over a log
// that lost what the home has seen of it: an event would take a lost position, in the log epoch of the one that is lost.
func openCore(ctx context.Context, cfg config.Config, log *slog.Logger) (*core, error) {
	appURL, err := migrate(ctx, cfg, log)
	if err != nil {
		return nil, fmt.Errorf("migrate the database: %w", err)
	}
	store, err := eventstore.Open(ctx, eventstore.Config{URL: appURL, Log: log})
	if err != nil {
		return nil, fmt.Errorf("open the event store: %w", err)
	}
	c, err := assemble(ctx, store, cfg.Home, log)
	if err == nil {
		err = c.witness.check(ctx)
	}
	if err != nil {
		store.Close()
		return nil, err
	}
	return c, nil
}

// withCore opens the core for a command of the operator's, and closes it.
func withCore(ctx context.Context, do func(*core) error) error {
	cfg, err := loadConfig()
	if err != nil {
		return err
	}
	if err := ownPostgres(ctx, &cfg); err != nil {
		return err
	}
	if err := cfg.Need("DATABASE_URL"); err != nil {
		return &coded{exitUsage, err}
	}
	c, err := openCore(ctx, cfg, logger())
	if err != nil {
		return err
	}
	defer c.store.Close()
	return do(c)
}

// migrate brings the schema up to date and gives the address of the application's login: the one that DATABASE_URL
// names, where the owner's is given beside it, else one of its own.
func migrate(ctx context.Context, cfg config.Config, log *slog.Logger) (appURL string, err error) {
	if cfg.MigrateURL != cfg.DatabaseURL {
		return cfg.DatabaseURL, migrations.UpFor(ctx, cfg.MigrateURL, cfg.DatabaseURL, log)
	}
	return migrations.Up(ctx, cfg.DatabaseURL, log)
}

func assemble(ctx context.Context, store *eventstore.Store, home string, log *slog.Logger) (*core, error) {
	master, err := seal.LoadMaster(filepath.Join(home, "master.key"))
	if err != nil {
		return nil, fmt.Errorf("load the master key: %w", err)
	}
	pool := store.Pool()
	keys, err := seal.Open(ctx, master, records.NewKeys(pool))
	if err != nil {
		return nil, fmt.Errorf("open the keys: %w", err)
	}
	subjects := seal.NewSubjects(keys, records.NewSubjects(pool))
	handler, err := commands.New(commands.Config{Store: store, Sealer: subjects, Log: log})
	if err != nil {
		return nil, err
	}
	leaders := records.NewLeaders(pool, log)
	signer, err := eventstore.NewSigner(eventstore.SignerConfig{Store: store, Keys: keys, Leader: leaders, Log: log})
	if err != nil {
		return nil, err
	}
	return &core{
		home: home, signer: signer, witness: newWitness(store, home, log), store: store, keys: keys, subjects: subjects, commands: handler,
		claims: records.NewClaims(pool), deliveries: records.NewDeliveries(pool, keys), logs: records.NewLogChunks(pool),
		secrets: records.NewSecrets(pool, keys), tokens: records.NewTokens(pool, keys), leaders: leaders,
	}, nil
}

// verify says who shows a bearer token, "" and false for nobody.
func (c *core) verify(ctx context.Context, token string) (actor string, ok bool, err error) {
	t, err := c.tokens.Verify(ctx, token)
	if errors.Is(err, records.ErrBadToken) {
		return "", false, nil
	}
	return "token:" + t.ID, err == nil, err
}

// projectByName finds a project's id by its name, "" for none.
func (c *core) projectByName(ctx context.Context, name string) (domain.ProjectID, error) {
	state, _, err := c.commands.Load(ctx, domain.CreateProject{Name: name})
	if err != nil {
		return "", err
	}
	return domain.Of[domain.ProjectName](state, domain.ProjectNameStream(name)).Project, nil
}

func migrateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "migrate", Short: "Bring the database's schema up to this version, and make the application's login", Args: cobra.NoArgs,
		Long: "Uses PIPEOPS_MIGRATE_URL (default DATABASE_URL), a login that owns the schema or may create it.\nPrints nothing but progress; `serve` finds its login by itself.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig("DATABASE_URL")
			if err != nil {
				return err
			}
			if _, err := migrate(cmd.Context(), cfg, logger()); err != nil {
				return err
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "the schema is up to date")
			return nil
		},
	}
}
