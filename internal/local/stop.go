package local

import (
	"context"
	"errors"
	"path/filepath"
)

// StopPostgres ends the cluster of that home in order; its data stays.
func StopPostgres(ctx context.Context, c Config) error {
	return stopPart(ctx, c, "postgres", endingOf("postgres"))
}

func stopPart(ctx context.Context, c Config, part string, how ending) error {
	c, err := c.withDefaults()
	if err != nil {
		return err
	}
	unlock, err := c.lockPart(ctx, part)
	if err != nil {
		return err
	}
	defer unlock()
	return end(ctx, c, part, how)
}

// Down ends every part of that home, whoever started it, and takes away what the parts left on the machine.
// The data stays.
func Down(ctx context.Context, c Config) error {
	return errors.Join(
		StopCluster(ctx, c),
		StopBuildkitd(ctx, c),
		StopRegistry(ctx, c),
		StopRabbitMQ(ctx, c),
		StopPostgres(ctx, c),
	)
}

// Part is one running part of a home.
type Part struct {
	Name string
	Pid  int
}

// Running lists the parts of that home that run now; those of the cluster are named cluster/<part>.
func Running(c Config) ([]Part, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(startedFile(c.Home, "*"))
	if err != nil {
		return nil, err
	}
	for _, part := range clusterParts {
		files = append(files, startedFile(c.Home, clusterPart(part)))
	}
	var parts []Part
	for _, file := range files {
		if started, err := readStarted(file); err == nil && started.alive() {
			name, _ := filepath.Rel(c.Home, filepath.Dir(file))
			parts = append(parts, Part{Name: name, Pid: started.Pid})
		}
	}
	return parts, nil
}
