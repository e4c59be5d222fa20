package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/graph"
	"github.com/pipeops/pipeops/handlers/claims"
	"github.com/pipeops/pipeops/handlers/ingest"
	"github.com/pipeops/pipeops/handlers/policies"
	"github.com/pipeops/pipeops/handlers/relay"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/projections"
	"github.com/pipeops/pipeops/web"
)

// doors are what the server answers with.
type doors struct {
	api           *graph.Handler
	hooks, remote http.Handler
	audit         http.Handler
	health        *health
}

func routes(d doors) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/webhooks/", d.hooks)
	mux.Handle("/git/", d.remote)
	mux.Handle("/graphql", d.api)
	mux.Handle("/login", d.api)
	mux.Handle("/audit/", d.audit)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", d.health.ready)
	mux.Handle("GET /metrics", d.health.metrics())
	mux.Handle("/", d.api.SignIn(web.Handler("")))
	return mux
}

// health tells whether the server can do its work.
type health struct {
	core      *core
	bus       bus.Bus
	projector *projections.Projector
	late      time.Duration // see projections.Late
	ingest    *ingest.Ingest
	claims    *claims.Claims
}

// ready answers 200 when the database can be reached, the bus is connected and every projection is near the head of the
// log, else 503 and which isn't. A projection that has stopped at an event is named and does no harm: see Unready.
func (h *health) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeoutCause(r.Context(), 5*time.Second, errSlow)
	defer cancel()
	checks := map[string]string{"database": "ok", "bus": "ok", "projections": "ok"}
	code := http.StatusOK
	fail := func(name, why string) {
		checks[name], code = why, http.StatusServiceUnavailable
	}
	if _, err := h.core.store.Head(ctx); err != nil {
		fail("database", "can't be reached")
	}
	if !h.bus.Connected() {
		fail("bus", "not connected")
	}
	status, err := h.projector.Status(ctx)
	if err != nil {
		fail("projections", "their state can't be read")
	} else if unready, stopped := h.standing(status); len(unready) > 0 {
		fail("projections", strings.Join(append(unready, stopped...), "; "))
	} else if len(stopped) > 0 {
		checks["projections"] = strings.Join(stopped, "; ") // it answers what it knew, as any other copy would
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(checks)
}

// standing says which projections are a reason to ask another copy, and which can't get over an event.
func (h *health) standing(status []projections.ProjectionStatus) (unready, stopped []string) {
	for _, s := range status {
		if why := s.Unready(h.late); why != "" {
			unready = append(unready, why)
		}
		if s.StoppedPosition > 0 {
			stopped = append(stopped, fmt.Sprintf("%s: stopped at position %d", s.Name, s.StoppedPosition))
		}
	}
	return unready, stopped
}

func (h *health) metrics() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	counter := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, f))
	}
	counter("pipeops_reports_stale_total", "Reports of attempts that were over.", func() float64 { return float64(h.ingest.Stale.Load()) })
	counter("pipeops_reports_forged_total", "Reports with a wrong token or a forbidden item.", func() float64 { return float64(h.ingest.Forged.Load()) })
	counter("pipeops_reports_refused_total", "Items that the domain refused.", func() float64 { return float64(h.ingest.Refused.Load()) })
	counter("pipeops_heartbeats_unsigned_total", "Heartbeats that no enrolled worker has signed.", func() float64 { return float64(h.claims.Unsigned.Load()) })
	reg.MustRegister(&gauges{h}, h.projector)
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}

// gauges reads the head and the bus when it is asked.
type gauges struct{ h *health }

var (
	headDesc   = prometheus.NewDesc("pipeops_log_position", "Position of the newest event.", nil, nil)
	signedDesc = prometheus.NewDesc("pipeops_log_signed_position", "Position of the newest event that a signed checkpoint has seen.", nil, nil)
	behindDesc = prometheus.NewDesc("pipeops_follower_lag_seconds",
		"Age of the oldest event that a follower of the log has still to see to; 0 when there is none.", []string{"follower"}, nil)
	busDesc = prometheus.NewDesc("pipeops_bus_connected", "1 while the bus is connected.", nil, nil)
)

// Describe implements prometheus.Collector.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	ch <- headDesc
	ch <- busDesc
	ch <- signedDesc
	ch <- behindDesc
}

// Collect implements prometheus.Collector.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), 5*time.Second, errSlow)
	defer cancel()
	if head, err := g.h.core.store.Head(ctx); err == nil {
		ch <- prometheus.MustNewConstMetric(headDesc, prometheus.GaugeValue, float64(head.Position))
	}
	if head, err := g.h.core.store.NewestHead(ctx); err == nil {
		ch <- prometheus.MustNewConstMetric(signedDesc, prometheus.GaugeValue, float64(head.Size))
	}
	for name, types := range followers {
		behind, err := g.h.behind(ctx, name, types)
		if err != nil { // not left out: an alert would take that for no lag
			ch <- prometheus.NewInvalidMetric(behindDesc, err)
			continue
		}
		ch <- prometheus.MustNewConstMetric(behindDesc, prometheus.GaugeValue, behind.Seconds(), name)
	}
	connected := 0.0
	if g.h.bus.Connected() {
		connected = 1
	}
	ch <- prometheus.MustNewConstMetric(busDesc, prometheus.GaugeValue, connected)
}

// followers go on from a cursor that the database keeps; by its name, what they see to (nil: everything). A lag of the
// scheduler is no harm: its cursor only says from where a leader reads anew.
var followers = map[string][]string{policies.CursorName: domain.Followed(), relay.CursorName: nil}

// behind is how long the oldest of a follower's events has been waiting.
func (h *health) behind(ctx context.Context, name string, types []string) (time.Duration, error) {
	at, err := h.core.store.LoadCursor(ctx, name)
	if err != nil {
		return 0, err
	}
	for e, err := range h.core.store.Read(ctx, eventstore.Query{After: at, Types: types, Limit: 1}) {
		if err != nil {
			return 0, err
		}
		return h.core.store.Age(ctx, e.Cursor.Position)
	}
	return 0, nil
}
