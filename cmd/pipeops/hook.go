package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/pipeops/pipeops/handlers/gitremote"
)

// hookCommand is what git runs after a push to the built-in remote.
func hookCommand() *cobra.Command {
	return &cobra.Command{
		Use: "hook NAME", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if code := gitremote.RunHook(args[0], os.Stdin, os.Stdout, os.Getenv); code != 0 {
				os.Exit(code)
			}
			return nil
		},
	}
}
