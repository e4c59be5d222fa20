package projections

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	lagDesc = prometheus.NewDesc("pipeops_projection_lag_positions",
		"Events that the read model has not seen yet.", []string{"projection"}, nil)
	lagSecondsDesc = prometheus.NewDesc("pipeops_projection_lag_seconds",
		"Age of the oldest event that the read model has not seen yet; 0 when it has seen all.", []string{"projection"}, nil)
	stoppedDesc = prometheus.NewDesc("pipeops_projection_stopped_position",
		"Position of the event that the read model can't get over; 0 while it runs.", []string{"projection"}, nil)
	leadsDesc = prometheus.NewDesc("pipeops_projection_leader",
		"1 in the process that keeps the read model current.", []string{"projection"}, nil)
)

// Describe implements prometheus.Collector.
func (p *Projector) Describe(out chan<- *prometheus.Desc) {
	out <- lagDesc
	out <- lagSecondsDesc
	out <- stoppedDesc
	out <- leadsDesc
}

var errSlowScrape = errors.New("the database did not answer in time")

// Collect implements prometheus.Collector. It asks the database, so that every process tells the same.
func (p *Projector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), 5*time.Second, errSlowScrape)
	defer cancel()
	status, err := p.Status(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(lagDesc, err)
		return
	}
	gauge := func(of *prometheus.Desc, value float64, projection string) {
		out <- prometheus.MustNewConstMetric(of, prometheus.GaugeValue, value, projection)
	}
	for _, s := range status {
		leads := 0.0
		if p.marks.leads(s.Name) {
			leads = 1
		}
		gauge(lagDesc, float64(s.Behind), s.Name)
		gauge(lagSecondsDesc, s.BehindFor.Seconds(), s.Name)
		gauge(stoppedDesc, float64(s.StoppedPosition), s.Name)
		gauge(leadsDesc, leads, s.Name)
	}
}
