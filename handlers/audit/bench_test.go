package audit_test

import (
	"io"
	"net/http"
	"testing"
)

// BenchmarkExport streams the log from PostgreSQL over HTTP in the form of an export.
func BenchmarkExport(b *testing.B) {
	const n = 50_000
	w := newWorld(b)
	w.append(n)
	var size int64
	for b.Loop() {
		r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, w.server.URL+"/audit/events", nil)
		must(b, err)
		r.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(r)
		must(b, err)
		size, err = io.Copy(io.Discard, resp.Body)
		must(b, err)
		must(b, resp.Body.Close())
	}
	b.SetBytes(size)
	b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
