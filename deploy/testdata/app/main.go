// Command app is what the tests deploy: a web program that behaves as its variables say.
//
//	MODE=        serves on PORT: / tells the commit, /health is well
//	MODE=exit    says why and ends with code 3
//	MODE=deaf    runs, but listens on no port
//	MODE=sick    serves, but /health answers 500
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch os.Getenv("MODE") {
	case "exit":
		fmt.Println("starting")
		fmt.Fprintln(os.Stderr, "fatal: no database at db.example:5432")
		os.Exit(3)
	case "deaf":
		<-ctx.Done()
		return
	}
	http.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		if os.Getenv("MODE") == "sick" {
			http.Error(w, "the database is away", http.StatusInternalServerError)
		}
	})
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getenv("PIPEOPS_COMMIT")) })
	server := &http.Server{Addr: ":" + os.Getenv("PORT")}
	go func() {
		<-ctx.Done()
		_ = server.Shutdown(context.Background())
	}()
	fmt.Println(server.ListenAndServe())
}
