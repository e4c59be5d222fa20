package local

import (
	"context"
	"os"
	"path/filepath"
	"time"
)

// RegistryAddress returns host:port of that home's embedded registry, whether it runs or not.
func RegistryAddress(ctx context.Context, c Config) (string, error) {
	c, err := c.withDefaults()
	if err != nil {
		return "", err
	}
	port, err := c.port(ctx, "registry")
	return loopback(port), err
}

// RegistryFiles returns what package registry serves from: its address, its folder, and the kept secret that it signs
// the state of uploads with.
func RegistryFiles(ctx context.Context, c Config) (address, folder, key string, err error) {
	c, err = c.withDefaults()
	if err != nil {
		return "", "", "", err
	}
	if address, err = RegistryAddress(ctx, c); err != nil {
		return "", "", "", err
	}
	folder = filepath.Join(c.Home, "registry")
	if err = os.MkdirAll(folder, 0o700); err != nil {
		return "", "", "", err
	}
	key, err = secret(filepath.Join(folder, "key"))
	return address, filepath.Join(folder, "images"), key, err
}

// StartRegistry runs the embedded registry as a daemon, for tests whose processes share it, and returns host:port.
// The command is a program that runs package registry on that home until SIGTERM.
func StartRegistry(ctx context.Context, c Config, command ...string) (string, error) {
	c, err := c.withDefaults()
	if err != nil {
		return "", err
	}
	unlock, err := c.lockPart(ctx, "registry")
	if err != nil {
		return "", err
	}
	defer unlock()
	address, err := RegistryAddress(ctx, c)
	if err != nil {
		return "", err
	}
	part := daemon{
		part: "registry", path: command[0], args: command[1:], within: 20 * time.Second,
		ready: func(ctx context.Context) error { return answers(ctx, "http://"+address+"/v2/") },
	}
	return address, part.start(ctx, c)
}

// StopRegistry ends the registry's daemon of that home; the images stay.
func StopRegistry(ctx context.Context, c Config) error {
	return stopPart(ctx, c, "registry", endingOf("registry"))
}
