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
	stoppedDesc = prometheus.NewDesc("pipeops_projection_stopped_position",
		"Position of the event that the read model can't get over; 0 while it runs.", []string{"projection"}, nil)
)

// Describe implements prometheus.Collector.
func (p *Projector) Describe(out chan<- *prometheus.Desc) {
	out <- lagDesc
	out <- stoppedDesc
}

var errSlowScrape = errors.New("the database did not answer a scrape in time")

// Collect implements prometheus.Collector. It asks the database, so that every process tells the same.
func (p *Projector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), 5*time.Second, errSlowScrape)
	defer cancel()
	status, err := p.Status(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(lagDesc, err)
		return
	}
	for _, s := range status {
		out <- prometheus.MustNewConstMetric(lagDesc, prometheus.GaugeValue, float64(s.Behind), s.Name)
		out <- prometheus.MustNewConstMetric(stoppedDesc, prometheus.GaugeValue, float64(s.StoppedPosition), s.Name)
	}
}
