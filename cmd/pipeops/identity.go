package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/internal/bus"
)

// identity is an enrolled worker's key file, of mode 0600.
type identity struct {
	Worker domain.WorkerID    `json:"worker"`
	Class  bus.Kind           `json:"class"`
	Key    ed25519.PrivateKey `json:"key"`
}

// identityFile is PIPEOPS_WORKER_FILE, or one per class in the home folder.
func identityFile(home string, class bus.Kind) string {
	if f := os.Getenv("PIPEOPS_WORKER_FILE"); f != "" {
		return f
	}
	return filepath.Join(home, "workers", string(class)+".json")
}

// loadIdentity reads a key file and takes it for this process: two processes
// with one identity would give up each other's work.
func loadIdentity(file string, class bus.Kind) (identity, func(), error) {
	var id identity
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return id, nil, usage("no key of an enrolled worker at %s: run `pipeops worker enroll --class %s` where the control plane runs, and bring the file here (PIPEOPS_WORKER_FILE)", file, class)
	}
	if err == nil {
		err = json.Unmarshal(b, &id)
	}
	if err != nil || id.Worker == "" || len(id.Key) != ed25519.PrivateKeySize {
		return id, nil, usage("%s isn't the key of an enrolled worker", file)
	}
	if id.Class != class {
		return id, nil, usage("%s is the key of a %s worker; this is a %s worker", file, id.Class, class)
	}
	release, err := exclusive(file + ".lock")
	if err != nil {
		return id, nil, fmt.Errorf("worker %s runs already with %s: enroll another one: %w", id.Worker, file, err)
	}
	return id, release, nil
}

// enroll makes a key file, or takes the one that is there, and lets the worker in.
func enroll(ctx context.Context, h *commands.Handler, file string, class bus.Kind) (identity, error) {
	var id identity
	b, err := os.ReadFile(file)
	switch {
	case err == nil:
		if err := json.Unmarshal(b, &id); err != nil || id.Class != class {
			return id, usage("%s isn't the key of a %s worker", file, class)
		}
	case errors.Is(err, os.ErrNotExist):
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			return id, err
		}
		id = identity{Worker: domain.WorkerID(newID("wrk")), Class: class, Key: key}
		if err := writePrivate(file, id); err != nil {
			return id, err
		}
	default:
		return id, err
	}
	public, _ := id.Key.Public().(ed25519.PublicKey)
	_, err = h.Execute(ctx, domain.EnrollWorker{Worker: id.Worker, Class: string(class), PublicKey: public}, commands.Meta{
		CommandID: uuid.NewString(), Actor: "operator", At: now(),
	})
	return id, err
}

func workerCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "worker", Short: "Let workers in"}
	var class, file string
	in := &cobra.Command{
		Use: "enroll", Short: "Make the key of a worker and let it in (needs the home of the control plane, and DATABASE_URL unless pipeops up keeps PostgreSQL there)", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if class != string(bus.KindBuild) && class != string(bus.KindDeploy) {
				return usage("--class: want build or deploy")
			}
			return withCore(cmd.Context(), func(c *core) error {
				if file == "" {
					file = identityFile(c.home, bus.Kind(class))
				}
				id, err := enroll(cmd.Context(), c.commands, file, bus.Kind(class))
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s\n", file)
				fmt.Fprintf(cmd.ErrOrStderr(), "%s may claim %s work with the key in this file; keep it secret\n", id.Worker, class)
				return nil
			})
		},
	}
	in.Flags().StringVar(&class, "class", "", "build or deploy")
	in.Flags().StringVar(&file, "out", "", "key file to write (default: in PIPEOPS_HOME)")
	cmd.AddCommand(in)
	return cmd
}
