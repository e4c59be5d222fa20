package testenv

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pipeops/pipeops/internal/local"
)

// AMQP returns the URL of a fresh, empty virtual host on the shared RabbitMQ, deleted when the test ends.
func AMQP(tb testing.TB) string {
	tb.Helper()
	ctx, cancel := starting(tb, 3*time.Minute)
	defer cancel()
	broker, err := local.StartRabbitMQ(ctx, config(tb))
	need(tb, "RabbitMQ", err)
	sweepHostsOnce.Do(func() { err = sweepVirtualHosts(ctx, broker) })
	need(tb, "RabbitMQ", err)
	name := freshName()
	need(tb, "RabbitMQ", ask(ctx, broker, http.MethodPut, "/api/vhosts/"+name, "{}", nil))
	tb.Cleanup(func() {
		ctx, cancel := cleaning()
		defer cancel()
		if err := ask(ctx, broker, http.MethodDelete, "/api/vhosts/"+name, "", nil); err != nil {
			tb.Errorf("delete virtual host %s: %v", name, err)
		}
	})
	need(tb, "RabbitMQ", ask(ctx, broker, http.MethodPut, "/api/permissions/"+name+"/pipeops",
		`{"configure":".*","write":".*","read":".*"}`, nil))
	return broker.URL + name
}

// PrivateBroker is a RabbitMQ of one test's own, to be stopped, killed and started again at the same address.
type PrivateBroker struct {
	URL    string // amqp URL of its default virtual host
	Admin  string // root of its management API, with user and password
	tb     testing.TB
	config local.Config
}

// RabbitMQ starts a private broker, which ends with the test. It takes some seconds.
func RabbitMQ(tb testing.TB) *PrivateBroker {
	tb.Helper()
	b := &PrivateBroker{tb: tb, config: config(tb)}
	b.config.Home = filepath.Join(tb.TempDir(), "broker")
	tb.Cleanup(func() {
		ctx, cancel := cleaning()
		defer cancel()
		if err := local.KillRabbitMQ(ctx, b.config); err != nil {
			tb.Errorf("end the private RabbitMQ: %v", err)
		}
	})
	b.Start()
	return b
}

// Start starts the broker with the data that it had, and returns when it accepts connections.
func (b *PrivateBroker) Start() {
	b.tb.Helper()
	ctx, cancel := starting(b.tb, 3*time.Minute)
	defer cancel()
	broker, err := local.StartRabbitMQ(ctx, b.config)
	need(b.tb, "RabbitMQ", err)
	b.URL, b.Admin = broker.URL, broker.Admin
}

// Stop ends the broker in order and returns when it has gone.
func (b *PrivateBroker) Stop() {
	b.tb.Helper()
	need(b.tb, "RabbitMQ", local.StopRabbitMQ(b.tb.Context(), b.config))
}

// Kill ends the broker as a crash does and returns when it has gone. RabbitMQ 3.10 loses the registration of a quorum
// queue when it is killed within three minutes of the declaration (the queue then answers nothing, for ever), unless
// it was stopped in order since: call Restart between declaring and Kill.
func (b *PrivateBroker) Kill() {
	b.tb.Helper()
	need(b.tb, "RabbitMQ", local.KillRabbitMQ(b.tb.Context(), b.config))
}

// Restart is Stop and Start.
func (b *PrivateBroker) Restart() {
	b.tb.Helper()
	b.Stop()
	b.Start()
}

var sweepHostsOnce sync.Once

// sweepVirtualHosts deletes what test processes that were killed have left.
func sweepVirtualHosts(ctx context.Context, broker local.Broker) error {
	var hosts []struct {
		Name string `json:"name"`
	}
	if err := ask(ctx, broker, http.MethodGet, "/api/vhosts", "", &hosts); err != nil {
		return err
	}
	for _, host := range hosts {
		if !leftBehind(host.Name) {
			continue
		}
		if err := ask(ctx, broker, http.MethodDelete, "/api/vhosts/"+url.PathEscape(host.Name), "", nil); err != nil {
			return err
		}
	}
	return nil
}

// ask calls the management API; what has gone already when deleted is no error.
func ask(ctx context.Context, broker local.Broker, method, path, body string, answer any) error {
	request, err := http.NewRequestWithContext(ctx, method, broker.Admin+path, strings.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask RabbitMQ: %s %s", method, path)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("ask RabbitMQ: %s %s at %s: no answer", method, path, request.URL.Host)
	}
	defer response.Body.Close() //nolint:errcheck // only read
	if method == http.MethodDelete && response.StatusCode == http.StatusNotFound {
		return nil
	}
	if response.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("ask RabbitMQ: %s %s: %s", method, path, response.Status)
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(response.Body).Decode(answer)
}
