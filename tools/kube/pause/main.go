// Command pause is the first process of every pod of the local cluster: it holds the pod's namespaces until SIGTERM,
// and lets go of the zombies that the pod's processes leave; effects.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 8) // children may end together; one SIGCHLD seen is enough to reap them all
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
