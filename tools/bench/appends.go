package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/migrations"
)

// measureAppends compares appends with each peer, in rounds. What is appended in groups stands also beside a bare INSERT of
// as many rows at once, into the same indexes: faster than that no store can be that keeps these and an order.
func measureAppends(ctx context.Context, b *bench) error {
	peers, err := b.openPeers(ctx)
	if err != nil {
		return err
	}
	defer peers.close()
	for _, m := range []struct {
		name    string
		order   order
		of      []string
		targets map[string]float64 // by peer; "fastest" is the best of them
		limit   int                // rows of the bare INSERT; 0: none
	}{
		{"append, 1 writer, single events", order{1, 1, b.seconds}, []string{"insert"}, map[string]float64{"insert": 0.85}, 0},
		{"append, 8 writers", order{8, 1, b.seconds}, []string{"watermill", "message-db", "emmett"}, map[string]float64{"watermill": 0.9, "message-db": 2, "emmett": 2}, 0},
		{"append, 64 in flight", order{64, 1, b.seconds}, []string{"watermill", "message-db", "emmett"}, map[string]float64{"fastest": 2.5}, 64},
		{"append, 512 in flight", order{512, 1, b.seconds}, []string{"watermill", "message-db", "emmett"}, map[string]float64{"fastest": 3.5}, 512},
		{"batches of 10, 8 writers", order{8, 10, b.seconds}, []string{"watermill", "message-db", "emmett"}, map[string]float64{"watermill": 0.9, "message-db": 3, "emmett": 3}, 80},
	} {
		names := append([]string{"pipeops"}, m.of...)
		if m.limit > 0 {
			names = append(names, "insert")
		}
		rounds := b.rounds
		if m.order.Writers == 1 { // the time of its flushes wanders: more pairs, closer together
			rounds, m.order.Seconds = 4*rounds, m.order.Seconds/4
		}
		rates, err := peers.rounds(rounds, names, func(name string) order {
			if name == "insert" && m.limit > 0 {
				return order{1, m.limit, b.seconds}
			}
			return m.order
		})
		if err != nil {
			return err
		}
		rates["fastest"] = rates[slices.MaxFunc(m.of, func(x, y string) int {
			return int(median(rates[x]) - median(rates[y]))
		})]
		for _, peer := range append(m.of, "fastest") {
			if target := m.targets[peer]; target > 0 {
				b.compare(m.name+", against "+peer, rates["pipeops"], rates[peer], "events/s", peer, target)
			}
		}
		if m.limit > 0 {
			b.beside(m.name, rates["pipeops"], rates["insert"], "events/s", fmt.Sprintf("INSERT of %d rows", m.limit))
		}
	}
	return b.measureProcesses(ctx, peers)
}

// measureProcesses compares three processes that append to one log, and follow it as serve does, with one of them, the same
// appends in flight. What else serve does with events (read models, policies) one process does for all. The limit is what
// the bare INSERTs of three processes lose, of as many rows, of which one begins when the one before is committed: faster
// than that no log can be whose order is that of the commits.
func (b *bench) measureProcesses(ctx context.Context, p *peers) error {
	ours, err := startThree(ctx, "pipeops that follows", p.ours)
	defer ours.stop()
	if err != nil {
		return err
	}
	bare, err := startThree(ctx, "insert in order", p.bare)
	defer bare.stop()
	if err != nil {
		return err
	}
	for _, inFlight := range []int{63, 510} {
		var rates, limits [2][]float64 // of one, of three
		for range b.rounds {
			for _, m := range []struct {
				of          three
				alone, each order
				rates       *[2][]float64
			}{
				{ours, order{inFlight, 1, b.seconds}, order{inFlight / 3, 1, b.seconds}, &rates},
				{bare, order{1, inFlight, b.seconds}, order{1, inFlight / 3, b.seconds}, &limits},
			} {
				rate, err := m.of[0].rate(m.alone)
				if err != nil {
					return err
				}
				m.rates[0] = append(m.rates[0], rate)
				if rate, err = m.of.rate(m.each); err != nil {
					return err
				}
				m.rates[1] = append(m.rates[1], rate)
			}
		}
		b.compare(fmt.Sprintf("append by three processes, %d in flight", inFlight), rates[1], rates[0], "events/s", "one process", 0.8)
		b.beside(fmt.Sprintf("INSERT of %d rows by three processes in turn", inFlight/3), limits[1], limits[0], "events/s", fmt.Sprintf("one, %d rows", inFlight))
	}
	return nil
}

// three are drivers that do orders at the same time.
type three []*driver

func startThree(ctx context.Context, kind, url string) (t three, err error) {
	for range 3 {
		d, err := startGoDriver(ctx, kind, url)
		if err != nil {
			return t, err
		}
		t = append(t, d)
	}
	return t, nil
}

func (t three) stop() {
	for _, d := range t {
		_ = d.stop() // nothing more is wanted of it
	}
}

// rate gives events a second of all.
func (t three) rate(each order) (sum float64, err error) {
	results := make(chan rated, len(t))
	for _, d := range t {
		go func() {
			r, err := d.rate(each)
			results <- rated{r, err}
		}()
	}
	for range t {
		r := <-results
		sum, err = sum+r.rate, errors.Join(err, r.err)
	}
	return sum, err
}

type rated struct {
	rate float64
	err  error
}

// peers are the drivers of all stores, each with a database of its own.
type peers struct {
	drivers map[string]*driver
	ours    string // URL of our application's login
	bare    string // and of the bare INSERT's database
	drops   []func()
}

func (p *peers) close() {
	for name, d := range p.drivers {
		if err := d.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", name, err)
		}
	}
	for _, drop := range p.drops {
		drop()
	}
}

// rounds lets the named ones do their order in turn, each round in the other direction.
func (p *peers) rounds(n int, names []string, of func(name string) order) (map[string][]float64, error) {
	rates := map[string][]float64{}
	for round := -1; round < n; round++ { // the first one only warms up
		for _, name := range names {
			r, err := p.drivers[name].rate(of(name))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if round >= 0 {
				rates[name] = append(rates[name], r)
			}
		}
		slices.Reverse(names)
	}
	return rates, nil
}

func startGoDriver(ctx context.Context, kind, url string) (*driver, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return startDriver(ctx, url, self, "drive", kind)
}

func (b *bench) openPeers(ctx context.Context) (*peers, error) {
	p := &peers{drivers: map[string]*driver{}}
	if err := b.installPeers(ctx); err != nil {
		return nil, err
	}
	for _, name := range []string{"pipeops", "insert", "watermill", "message-db", "emmett"} {
		if err := p.open(ctx, b, name); err != nil {
			p.close()
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return p, nil
}

func (p *peers) open(ctx context.Context, b *bench, name string) error {
	address, drop, err := b.database(ctx, strings.ReplaceAll(name, "-", ""))
	if err != nil {
		return err
	}
	p.drops = append(p.drops, drop)
	var d *driver
	switch name {
	case "pipeops":
		if p.ours, err = migrations.Up(ctx, address, slog.New(slog.DiscardHandler)); err == nil {
			d, err = startGoDriver(ctx, name, p.ours)
		}
	case "insert":
		if err = makeBare(ctx, address); err == nil {
			p.bare = address
			d, err = startGoDriver(ctx, name, address)
		}
	case "message-db":
		if err = b.installMessageDB(ctx, address); err == nil {
			d, err = startGoDriver(ctx, name, address)
		}
	case "emmett":
		d, err = startDriver(ctx, address, "node", filepath.Join(b.work, "emmett.mjs"))
	default:
		d, err = startGoDriver(ctx, name, address)
	}
	if err == nil {
		p.drivers[name] = d
	}
	return err
}

// makeBare gives a table of the log's form and indexes without triggers.
func makeBare(ctx context.Context, address string) error {
	if _, err := migrations.Up(ctx, address, slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is in flight
	_, err = conn.Exec(ctx, `CREATE SCHEMA bare; CREATE SEQUENCE bare.position; CREATE TABLE bare.events (LIKE pipeops.events INCLUDING ALL)`)
	return err
}

// installPeers fetches the peers that are npm packages.
func (b *bench) installPeers(ctx context.Context) error {
	for _, name := range []string{"package.json", "package-lock.json", "emmett.mjs"} {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(b.work, name), text, 0o644); err != nil { //nolint:gosec // no secret
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "npm", "ci", "--no-audit", "--no-fund", "--silent")
	cmd.Dir, cmd.Stderr = b.work, os.Stderr
	return cmd.Run()
}

func (b *bench) installMessageDB(ctx context.Context, address string) error {
	at, err := url.Parse(address)
	if err != nil {
		return err
	}
	password, _ := at.User.Password()
	cmd := exec.CommandContext(ctx, "bash", "install.sh")
	cmd.Dir = filepath.Join(b.work, "node_modules", "@eventide", "message-db", "database")
	cmd.Env = append(os.Environ(), "CREATE_DATABASE=off", "DATABASE_NAME="+strings.TrimPrefix(at.Path, "/"), "PGHOST="+at.Hostname(),
		"PGPORT="+at.Port(), "PGUSER="+at.User.Username(), "PGPASSWORD="+password)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("install: %w\n%s", err, out)
	}
	return nil
}
