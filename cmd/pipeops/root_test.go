package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheCommandLineTellsItsFaultsByExitCode(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]struct {
		code   int
		stdout string
	}{
		"version":           {0, version + "\n"},
		"--version":         {0, version + "\n"},
		"project":           {0, "Usage:"},
		"foo":               {exitUsage, ""},
		"project lst":       {exitUsage, ""},
		"deploy":            {exitUsage, ""},
		"events extra":      {exitUsage, ""},
		"events --nonsense": {exitUsage, ""},
		"up --sample x":     {exitUsage, ""},
	} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			var stdout bytes.Buffer
			cmd := root()
			cmd.SetArgs(strings.Fields(line))
			cmd.SetOut(&stdout)
			err := cmd.ExecuteContext(t.Context())
			if code := exitCode(err); err != nil && code != want.code || err == nil && want.code != 0 {
				t.Errorf("exit code %d (%v), want %d", code, err, want.code)
			}
			if want.stdout == "" && stdout.Len() > 0 || !strings.Contains(stdout.String(), want.stdout) {
				t.Errorf("stdout is %q, want %q", stdout.String(), want.stdout)
			}
		})
	}
}

func TestOnlyWhoHoldsTheHomeIsStopped(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	pid := filepath.Join(home, "up.pid")
	if got := holder(home); got != 0 {
		t.Errorf("nobody holds it, got %d", got)
	}
	if err := writePrivate(pid, os.Getpid()); err != nil {
		t.Fatal(err)
	}
	if got := holder(home); got != 0 {
		t.Errorf("the number of an earlier holder is taken for the holder: %d", got)
	}
	release, err := exclusive(filepath.Join(home, "up.lock"))
	if err != nil {
		t.Fatal(err)
	}
	if got := holder(home); got != os.Getpid() || !running(home) {
		t.Errorf("holder is %d, want %d", got, os.Getpid())
	}
	release()
	if holder(home) != 0 || running(home) {
		t.Error("released, and still held")
	}
}

func TestPrivateFilesAreTheOwnersOnly(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	for _, path := range []string{file, file + ".new"} {
		if err := os.WriteFile(path, []byte("old"), 0o644); err != nil { //nolint:gosec // that is the case
			t.Fatal(err)
		}
	}
	if err := writeFile(file, []byte("secret")); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}
