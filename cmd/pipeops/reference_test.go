package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

//go:generate go test -run ^TestTheReferenceOfCommandsIsUpToDate$ . -update-reference

var updateReference = flag.Bool("update-reference", false, "rewrite docs/cli.md")

func TestTheReferenceOfCommandsIsUpToDate(t *testing.T) {
	t.Parallel()
	const file = "../../docs/cli.md"
	var want bytes.Buffer
	want.WriteString("<!-- Generated from the commands in cmd/pipeops by \"go generate ./cmd/pipeops\"; DO NOT EDIT. -->\n\n# Commands\n")
	writeCommand(&want, root())
	if *updateReference {
		if err := os.WriteFile(file, want.Bytes(), 0o644); err != nil { //nolint:gosec // a document
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Error("docs/cli.md doesn't say what the commands say: run `go generate ./cmd/pipeops`")
	}
}

// writeCommand writes a command and those below it.
func writeCommand(b *bytes.Buffer, c *cobra.Command) {
	if c.Hidden {
		return
	}
	c.InitDefaultHelpFlag()
	fmt.Fprintf(b, "\n## %s\n\n%s.\n", c.CommandPath(), strings.TrimSuffix(c.Short, "."))
	block := func(text string) {
		if text != "" {
			fmt.Fprintf(b, "\n```\n%s\n```\n", strings.Trim(text, "\n"))
		}
	}
	if c.Long != "" {
		fmt.Fprintf(b, "\n%s\n", c.Long)
	}
	if c.Runnable() && c.Annotations[onlyGroup] == "" {
		block(c.UseLine())
	}
	block(c.Example)
	block(strings.TrimRight(c.NonInheritedFlags().FlagUsages(), "\n"))
	for _, sub := range c.Commands() {
		writeCommand(b, sub)
	}
}
