package main

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkPushToServed measures from `git push` of a changed app to its new
// version's first answer (one replica, minReadySeconds 1, probes each second).
func BenchmarkPushToServed(b *testing.B) {
	s := newSystem(b)
	a := s.newApp("bench")
	a.events(a.push("serve", nil), 4*time.Minute)
	address := a.address()
	var took []time.Duration
	for b.Loop() {
		commit := a.commit("serve", nil)
		began := time.Now()
		if err := a.clients[0].gitPush(b.Context(), a.work, a.name); err != nil {
			b.Fatal(err)
		}
		eventually(b, 2*time.Minute, "the commit is served", func() error {
			if got, err := get(b.Context(), address); got != commit {
				return fmt.Errorf("serves %q, %w", got, err)
			}
			return nil
		})
		took = append(took, time.Since(began))
		b.Logf("%s", took[len(took)-1])
		a.events(commit, time.Minute)
	}
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2].Seconds(), "s-median")
	b.ReportMetric(took[len(took)-1].Seconds(), "s-max")
}
