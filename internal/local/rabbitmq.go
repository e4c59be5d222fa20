package local

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Broker is a running RabbitMQ. Both addresses hold the password.
type Broker struct {
	URL   string // amqp://user:password@127.0.0.1:port/
	Admin string // http://user:password@127.0.0.1:port, the root of the management API
}

// StartRabbitMQ runs a private RabbitMQ node in <home>/rabbitmq with the management API, all on loopback and kept ports.
// It has an epmd of its own on a port of its own, so that nodes of other homes are independent of it.
func StartRabbitMQ(ctx context.Context, c Config) (Broker, error) {
	c, err := c.withDefaults()
	if err != nil {
		return Broker{}, err
	}
	unlock, err := c.lockPart(ctx, "rabbitmq")
	if err != nil {
		return Broker{}, err
	}
	defer unlock()
	// Not the wrapper on PATH: that one switches to another user.
	server := "/usr/lib/rabbitmq/bin/rabbitmq-server"
	if _, err := os.Stat(server); err != nil {
		return Broker{}, &MissingError{What: "RabbitMQ", Fix: "apt-get install --no-install-recommends rabbitmq-server"}
	}
	return startRabbitMQ(ctx, c, server)
}

// StopRabbitMQ ends the node of that home in order, and its epmd.
func StopRabbitMQ(ctx context.Context, c Config) error {
	return stopPart(ctx, c, "rabbitmq", endingOf("rabbitmq"))
}

// KillRabbitMQ ends the node of that home at once, as a crash does; for tests of what others do then.
func KillRabbitMQ(ctx context.Context, c Config) error {
	return stopPart(ctx, c, "rabbitmq", ending{syscall.SIGKILL, 30 * time.Second})
}

func startRabbitMQ(ctx context.Context, c Config, server string) (Broker, error) {
	folder := filepath.Join(c.Home, "rabbitmq")
	if err := os.MkdirAll(folder, 0o711); err != nil { //nolint:gosec // as the home
		return Broker{}, err
	}
	ports := map[string]int{"rabbitmq": 0, "rabbitmq-admin": 0, "rabbitmq-cluster": 0, "rabbitmq-names": 0}
	for name := range ports {
		port, err := c.port(ctx, name)
		if err != nil {
			return Broker{}, err
		}
		ports[name] = port
	}
	password, err := secret(filepath.Join(folder, "password"))
	if err != nil {
		return Broker{}, err
	}
	settings := fmt.Sprintf(`listeners.tcp.1 = 127.0.0.1:%d
management.tcp.ip = 127.0.0.1
management.tcp.port = %d
management_agent.disable_metrics_collector = true
default_user = pipeops
default_pass = %s
loopback_users.pipeops = true
log.console = true
log.console.level = info
log.connection.level = warning
`, ports["rabbitmq"], ports["rabbitmq-admin"], password)
	if err := writeFile(filepath.Join(folder, "rabbitmq.conf"), []byte(settings), 0o600); err != nil {
		return Broker{}, err
	}
	if err := writeFile(filepath.Join(folder, "plugins"), []byte("[rabbitmq_management].\n"), 0o600); err != nil {
		return Broker{}, err
	}
	address := func(scheme, name, path string) string {
		return (&url.URL{Scheme: scheme, User: url.UserPassword("pipeops", password), Host: loopback(ports[name]), Path: path}).String()
	}
	broker := Broker{URL: address("amqp", "rabbitmq", "/"), Admin: address("http", "rabbitmq-admin", "")}
	part := daemon{
		part: "rabbitmq", path: server, within: 2 * time.Minute,
		files: []string{filepath.Join(folder, "rabbitmq.conf"), filepath.Join(folder, "plugins")},
		ready: func(ctx context.Context) error {
			return answers(ctx, broker.Admin+"/api/health/checks/port-listener/"+strconv.Itoa(ports["rabbitmq"]))
		},
		env: []string{
			"HOME=" + folder, // where Erlang keeps its cookie
			"RABBITMQ_NODENAME=pipeops@localhost",
			"RABBITMQ_MNESIA_BASE=" + filepath.Join(folder, "data"),
			"RABBITMQ_LOG_BASE=" + folder,
			"RABBITMQ_LOGS=-",
			"RABBITMQ_NODE_PORT=" + strconv.Itoa(ports["rabbitmq"]),
			"RABBITMQ_DIST_PORT=" + strconv.Itoa(ports["rabbitmq-cluster"]),
			"RABBITMQ_CONFIG_FILE=" + filepath.Join(folder, "rabbitmq.conf"),
			"RABBITMQ_ENABLED_PLUGINS_FILE=" + filepath.Join(folder, "plugins"),
			"RABBITMQ_CONF_ENV_FILE=/dev/null",
			"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}",
			"ERL_EPMD_PORT=" + strconv.Itoa(ports["rabbitmq-names"]),
			"ERL_EPMD_ADDRESS=127.0.0.1",
			"RUNNING_UNDER_SYSTEMD=true", // the script then becomes the server, instead of waiting beside it
		},
	}
	return broker, part.start(ctx, c)
}

// answers wants a 200 from that address.
func answers(ctx context.Context, address string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		// Not the whole error: it repeats the address, which may hold a password.
		return fmt.Errorf("no answer from %s", request.URL.Host)
	}
	defer response.Body.Close() //nolint:errcheck // only read
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", request.URL.Host, response.Status)
	}
	return nil
}
