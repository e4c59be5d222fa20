// Command bench receives nothing but a PostgreSQL server of its own, measures the event store beside its peers and its
// limits in the same run, and prints each figure as a ratio with its target; effects.
//
// Every peer runs on the same server with its own durability on, in a process of its own, and rounds go in turn
// (ours, peer, peer, ours, …), so that whatever else the machine does hits all of them. A ratio is the median of the
// rounds' ratios, its spread their lowest and highest. Peers and drivers live in this module only.
//
//	go run . -out ../../build/bench/store.json [-only append,read] [-rounds 5] [-seconds 2] [-events 10000000]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// bench is one run.
type bench struct {
	server  string // URL of the server's first database, of a superuser
	home    string // its folder
	work    string // folder of what is fetched and written
	rounds  int
	seconds float64
	events  int
	results []result
}

// result is one line of the table: ours against a peer or a limit.
type result struct {
	Name   string  `json:"name"`
	Ours   string  `json:"ours"`
	Peer   string  `json:"peer"`
	Ratio  float64 `json:"ratio,omitempty"` // median; 0 where the target is not a ratio
	Low    float64 `json:"low,omitempty"`
	High   float64 `json:"high,omitempty"`
	Target string  `json:"target"`
	OK     bool    `json:"ok"`
}

// sections are what can be measured, in order.
var sections = []struct {
	name    string
	measure func(context.Context, *bench) error
}{
	{"append", measureAppends},
	{"read", measureReads},
	{"proof", measureProof},
	{"rebuild", measureRebuild},
	{"live", measureLive},
	{"scale", measureScale},
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "drive" {
		drive(os.Args[2:])
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1) //nolint:gocritic // the signal handler goes with the process
	}
}

func run(ctx context.Context) error {
	b := &bench{}
	out := flag.String("out", "store.json", "file that the results are written to")
	only := flag.String("only", "", "sections to measure, divided by commas; empty: all")
	flag.StringVar(&b.work, "work", "", "folder for peers' packages; default: beside -out")
	flag.IntVar(&b.rounds, "rounds", 5, "rounds of each measurement")
	flag.Float64Var(&b.seconds, "seconds", 2, "length of each round")
	flag.IntVar(&b.events, "events", 10_000_000, "size of the large store")
	flag.Parse()
	file, err := filepath.Abs(*out)
	if err != nil {
		return err
	}
	if b.work == "" {
		b.work = filepath.Join(filepath.Dir(file), "peers")
	}
	if err := os.MkdirAll(b.work, 0o755); err != nil {
		return err
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) { // figures of another run
		return err
	}
	server, home, stop, err := startServer(ctx)
	if err != nil {
		return err
	}
	defer stop()
	var failed []error
	b.server, b.home = server, home
	for _, s := range sections {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), s.name) {
			continue
		}
		began := time.Now()
		fmt.Fprintf(os.Stderr, "== %s\n", s.name)
		if err := s.measure(ctx, b); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", s.name, err))
		}
		fmt.Fprintf(os.Stderr, "== %s: %s\n", s.name, time.Since(began).Round(time.Second))
	}
	return errors.Join(append(failed, b.report(file))...)
}

// report prints the table and writes it as JSON; an error says what missed its target.
func (b *bench) report(file string) error {
	missed := 0
	fmt.Printf("%-62s %-28s %-34s %-24s %-14s\n", "measured", "ours", "peer or limit", "ratio (lowest–highest)", "target")
	for _, r := range b.results {
		ratio, verdict := "", "ok"
		if r.Ratio > 0 {
			ratio = fmt.Sprintf("%.2f (%.2f–%.2f)", r.Ratio, r.Low, r.High)
		}
		if !r.OK {
			verdict = "MISSED"
			missed++
		}
		fmt.Printf("%-62s %-28s %-34s %-24s %-14s %s\n", r.Name, r.Ours, r.Peer, ratio, r.Target, verdict)
	}
	text, err := json.MarshalIndent(b.results, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, append(text, '\n'), 0o644); err != nil { //nolint:gosec // figures
		return err
	}
	if missed > 0 {
		return fmt.Errorf("%d of %d targets missed", missed, len(b.results))
	}
	return nil
}

// compare adds the ratio of ours to a peer's, round by round.
func (b *bench) compare(name string, ours, peers []float64, unit, peer string, target float64) {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / peers[i]
	}
	r := result{
		Name: name, Ours: fmt.Sprintf("%.0f %s", median(ours), unit), Peer: fmt.Sprintf("%s %.0f %s", peer, median(peers), unit),
		Ratio: median(ratios), Low: slices.Min(ratios), High: slices.Max(ratios), Target: fmt.Sprintf("≥ %.2f", target),
	}
	r.OK = r.Ratio >= target
	b.add(r)
}

// beside is compare with what can't be reached, and so has no target.
func (b *bench) beside(name string, ours, limit []float64, unit, of string) {
	b.compare(name, ours, limit, unit, of, 0)
	b.results[len(b.results)-1].Target = "(limit)"
}

// noMoreThan is compare for what should be small.
func (b *bench) noMoreThan(name string, ours, peers []float64, unit, peer string, target float64) {
	b.compare(name, ours, peers, unit, peer, target)
	r := &b.results[len(b.results)-1]
	r.Target, r.OK = fmt.Sprintf("≤ %.2f", target), r.Ratio <= target
}

// atLeast adds a figure with a floor, under one with a ceiling.
func (b *bench) atLeast(name string, ours []float64, unit string, target float64) {
	b.add(result{Name: name, Ours: fmt.Sprintf("%.0f %s", median(ours), unit), Target: fmt.Sprintf("≥ %.0f", target), OK: median(ours) >= target})
}

func (b *bench) under(name string, ours float64, unit string, target float64) {
	b.add(result{Name: name, Ours: fmt.Sprintf("%.1f %s", ours, unit), Target: fmt.Sprintf("< %.0f", target), OK: ours < target})
}

func (b *bench) add(r result) {
	b.results = append(b.results, r)
	fmt.Fprintf(os.Stderr, "   %s: %s, %s, %.2f (%s)\n", r.Name, r.Ours, r.Peer, r.Ratio, r.Target)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
