package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/internal/local"
)

// settings are those of a server that is there for a database, as PostgreSQL's manual advises (a quarter of 16 GB); what
// pipeops up starts is as small as can be. The same for all peers.
var settings = []string{"shared_buffers=4GB", "max_wal_size=8GB", "min_wal_size=4GB"}

// recycle has the server write so much WAL, and keep its files: one that has run for a while writes over old files, where a
// fresh one fills each new one with zeros first, in the time of whoever commits.
func recycle(ctx context.Context, address string) error {
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is in flight
	for _, statement := range []string{
		"SELECT pg_logical_emit_message(false, 'bench', repeat(md5(i::text), 1 << 15)) FROM generate_series(1, 4 << 10) i", // of 1 MB
		"CHECKPOINT",
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// startServer runs a private PostgreSQL with fsync on in a folder of its own, which stop removes.
func startServer(ctx context.Context) (address, home string, stop func(), err error) {
	home, err = os.MkdirTemp("/var/tmp", "pipeops-bench-")
	if err != nil {
		return "", "", nil, err
	}
	if err := os.Chmod(home, 0o711); err != nil { //nolint:gosec // the unprivileged PostgreSQL enters
		return "", "", nil, err
	}
	config := local.Config{Home: home, Postgres: settings}
	stop = func() {
		if err := local.Down(context.WithoutCancel(ctx), config); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		if err := os.RemoveAll(home); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}
	if address, err = local.StartPostgres(ctx, config); err == nil {
		err = recycle(ctx, address)
	}
	if err != nil {
		stop()
		return "", "", nil, err
	}
	return address, home, stop, nil
}

// database makes a fresh one on the server and gives its URL and how to drop it.
func (b *bench) database(ctx context.Context, name string) (address string, drop func(), err error) {
	name = name + "_" + strings.ReplaceAll(uuid.NewString()[:13], "-", "")
	at, err := url.Parse(b.server)
	if err != nil {
		return "", nil, err
	}
	execute := func(ctx context.Context, statement string) error {
		conn, err := pgx.Connect(ctx, b.server)
		if err != nil {
			return err
		}
		defer conn.Close(ctx) //nolint:errcheck // nothing is in flight
		_, err = conn.Exec(ctx, statement)
		return err
	}
	if err := execute(ctx, "CREATE DATABASE "+name); err != nil {
		return "", nil, err
	}
	at.Path = "/" + name
	return at.String(), func() {
		if err := execute(context.WithoutCancel(ctx), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}, nil
}
