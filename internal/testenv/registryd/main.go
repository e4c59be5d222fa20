// Command registryd receives a home folder, and serves images from it until SIGTERM, so that test processes share one
// registry; effects.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/pipeops/pipeops/internal/local"
	"github.com/pipeops/pipeops/internal/local/registry"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:gocritic // the signal handler goes with the process
	}
}

func run(ctx context.Context) error {
	if len(os.Args) != 2 {
		return errors.New("usage: registryd HOME")
	}
	r, err := registry.New(ctx, local.Config{Home: os.Args[1]})
	if err != nil {
		return err
	}
	return r.Run(ctx)
}
