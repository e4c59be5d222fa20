// Command testenvctl receives up, down or status from make, and hands them to the shared parts of the tests; effects.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/pipeops/pipeops/internal/testenv"
)

const usage = `usage: go run ./internal/testenv/testenvctl up|down|status
  up      start every shared part and wait until it is ready
  down    end every shared part; nothing of them stays on the machine but downloaded and built files
  status  list the parts that run`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	var err error
	switch os.Args[1] {
	case "up":
		err = testenv.Up(ctx, os.Stderr)
	case "down":
		err = testenv.Down(ctx)
	case "status":
		err = testenv.Status(os.Stdout)
	default:
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
