// Command pipeops receives a command line and the environment, and hands them
// to one file per command here; effects. Data goes to stdout, progress and
// errors to stderr.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "dev"

// Exit codes.
const (
	exitFailure = 1 // something went wrong
	exitUsage   = 2 // the command line is at fault
	exitRefused = 3 // PipeOps says no, and why
	exitVerdict = 4 // what was waited for has failed
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := root().ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	if msg := err.Error(); msg != "" {
		fmt.Fprintln(os.Stderr, "pipeops: "+msg)
	}
	os.Exit(exitCode(err))
}

// coded is an error with an exit code.
type coded struct {
	code int
	err  error
}

func (c *coded) Error() string { return c.err.Error() }
func (c *coded) Unwrap() error { return c.err }

func exitCode(err error) int {
	if c, ok := errors.AsType[*coded](err); ok {
		return c.code
	}
	return exitFailure
}

func usage(format string, args ...any) error {
	return &coded{exitUsage, fmt.Errorf(format, args...)}
}
