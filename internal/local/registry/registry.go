// Package registry receives images over HTTP from BuildKit and other clients, and hands them to whoever pulls, from
// files in a home folder of package local; effects.
//
// It is distribution's own server as a library, on a kept loopback port, so that references to images that stand in
// events stay true and images survive a restart. A package of its own, because the library is heavy.
//
//	r, err := registry.New(ctx, local.Config{})
//	err = r.Run(ctx)
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // the storage that is used
	"github.com/sirupsen/logrus"

	"github.com/pipeops/pipeops/internal/local"
)

// Registry is an image registry over HTTP on a loopback port.
type Registry struct {
	// Address is host:port.
	Address  string
	listener net.Listener
	server   *http.Server
}

// New claims the kept port; Run must follow. The images lie in <home>/registry.
func New(ctx context.Context, c local.Config) (*Registry, error) {
	address, folder, secret, err := local.RegistryFiles(ctx, c)
	if err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen as the image registry: %w; end what uses %s, perhaps by `pipeops down`", err, address)
	}
	// The library logs through this global logger only, each missing manifest as an error.
	logrus.SetOutput(io.Discard)
	app := handlers.NewApp(context.WithoutCancel(ctx), &configuration.Configuration{
		Version: "0.1",
		Storage: configuration.Storage{
			"filesystem": {"rootdirectory": folder},
			"delete":     {"enabled": true},
		},
		HTTP: configuration.HTTP{Addr: address, Secret: secret},
	})
	server := &http.Server{Handler: app, ReadHeaderTimeout: 10 * time.Second}
	server.RegisterOnShutdown(func() { _ = app.Shutdown() })
	return &Registry{Address: address, listener: listener, server: server}, nil
}

// Run serves until ctx ends, finishes what is in flight for some seconds, and returns nil.
func (r *Registry) Run(ctx context.Context) error {
	served := make(chan error, 1) // the one result of Serve
	go func() { served <- r.server.Serve(r.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve images on %s: %w", r.Address, err)
	case <-ctx.Done():
	}
	closing, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), 5*time.Second, os.ErrDeadlineExceeded)
	defer cancel()
	if err := r.server.Shutdown(closing); err != nil {
		_ = r.server.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
