package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/pipeops/pipeops/internal/local"
)

// Up starts every shared part and tells out what it is doing.
func Up(ctx context.Context, out io.Writer) error {
	c := Config()
	c.Progress = func(text string) { _, _ = fmt.Fprintln(out, text) }
	if _, err := local.StartPostgres(ctx, c); err != nil {
		return err
	}
	if _, err := local.StartRabbitMQ(ctx, c); err != nil {
		return err
	}
	registry, err := startRegistry(ctx, c)
	if err != nil {
		return err
	}
	if _, err = local.StartBuildkitd(ctx, c, registry); err != nil {
		return err
	}
	_, err = local.StartCluster(ctx, c, registry)
	return err
}

// Down ends every shared part and forgets what tests wrote into them.
func Down(ctx context.Context) error {
	c := Config()
	if err := local.Down(ctx, c); err != nil {
		return err
	}
	var problems []error
	for _, part := range []string{"postgres", "rabbitmq", "cluster"} {
		problems = append(problems, os.RemoveAll(filepath.Join(c.Home, part)))
	}
	return errors.Join(problems...)
}

// Status lists the parts that run, one a line: name, process id.
func Status(out io.Writer) error {
	parts, err := local.Running(Config())
	if err != nil {
		return err
	}
	for _, part := range parts {
		if _, err := fmt.Fprintf(out, "%-20s %d\n", part.Name, part.Pid); err != nil {
			return err
		}
	}
	return nil
}
