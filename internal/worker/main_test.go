package worker_test

import (
	"fmt"
	"net/http"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(urlVariable); url != "" {
		fmt.Fprintln(os.Stderr, beWorker(url))
		os.Exit(1)
	}
	code := m.Run()
	http.DefaultClient.CloseIdleConnections() // of the test environment
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
