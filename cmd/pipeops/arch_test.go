package main

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/pipeops/pipeops/"

// allowed is the table of imports inside the module: a package may import what
// its row names (a name with /... means the whole tree below it), its own
// sub-packages, and nothing else. A package without a row fails the test.
// Third-party fences stand in .golangci.yml.
var allowed = map[string][]string{
	"domain":             {},
	"migrations":         {},
	"web":                {},
	"internal/config":    {"domain"},
	"internal/seal":      {"domain"},
	"internal/bus":       {"domain"},
	"internal/worker":    {"domain", "internal/bus", "internal/seal"},
	"internal/records":   {"domain", "internal/seal"},
	"internal/local":     {"domain", "migrations", "internal/..."},
	"internal/testenv":   {"domain", "migrations", "internal/..."},
	"eventstore":         {"domain", "internal/seal"},
	"eventstore/verify":  {"domain"}, // stands alone: third parties import it
	"handlers/commands":  {"domain", "eventstore"},
	"handlers/webhook":   {"domain", "eventstore", "handlers/commands", "internal/records"},
	"handlers/gitremote": {"domain", "eventstore", "handlers/commands", "internal/records"},
	"handlers/policies":  {"domain", "eventstore", "handlers/commands", "internal/bus", "internal/records"},
	"handlers/schedule":  {"domain", "eventstore", "handlers/commands", "internal/bus", "internal/records"},
	"handlers/claims":    {"domain", "handlers/commands", "internal/bus", "internal/records", "internal/seal"},
	"handlers/ingest":    {"domain", "handlers/commands", "internal/bus", "internal/records", "internal/seal"},
	"handlers/audit":     {"domain", "eventstore"},
	"handlers/janitor":   {"internal/records"},
	"handlers/relay":     {"domain", "eventstore", "internal/bus", "internal/records", "internal/seal"},
	"handlers/replay":    {"domain", "eventstore", "projections", "handlers/commands", "handlers/gitremote", "handlers/policies", "handlers/webhook", "internal/records"},
	"projections":        {"domain", "eventstore"},
	"graph":              {"domain", "projections", "handlers/commands", "handlers/replay", "internal/records"},
	"runner":             {"domain", "internal/bus", "internal/worker", "internal/seal", "internal/config"},
	"deploy":             {"domain", "internal/bus", "internal/worker", "internal/seal", "internal/config"},
	"cmd/pipeops":        {"..."},
}

// pure packages may not reach, through any dependency, what has effects.
var pure = []string{"domain", "runner/args", "deploy/manifests", "deploy/diagnose"}

var effects = []string{"net", "net/http", "os/exec", "database/sql", "github.com/jackc/pgx/v5"}

type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
	GoFiles    []string
}

func TestPackagesImportOnlyWhatTheirRowAllows(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		row, ok := rowOf(name)
		if !ok {
			t.Errorf("%s has no row in the table of imports: add one, with what it may import", name)
			continue
		}
		for _, imported := range p.Imports {
			inner, ours := strings.CutPrefix(imported, module)
			if ours && !mayImport(row, inner) {
				t.Errorf("%s imports %s, which its row %q doesn't allow", name, inner, row)
			}
		}
	}
}

func TestPurePackagesReachNoEffects(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if name != "domain" {
			continue
		}
		for _, e := range effects {
			if slices.Contains(p.Deps, e) {
				t.Errorf("%s is pure but reaches %s", name, e)
			}
		}
	}
	for _, p := range packages(t) {
		if p.ImportPath != module+"eventstore/verify" {
			continue
		}
		for _, e := range effects {
			if slices.Contains(p.Deps, e) {
				t.Errorf("eventstore/verify works offline and alone, but reaches %s", e)
			}
		}
	}
	for _, name := range pure[1:] {
		for _, p := range packages(t) {
			if p.ImportPath == module+name && slices.Contains(p.Imports, "os/exec") {
				t.Errorf("%s is pure but imports os/exec", name)
			}
		}
	}
}

// rowOf finds the row of a package or of the nearest folder above it.
func rowOf(name string) (string, bool) {
	for n := name; n != "."; n = path.Dir(n) {
		if _, ok := allowed[n]; ok {
			return n, true
		}
	}
	return "", false
}

func mayImport(row, imported string) bool {
	if imported == row || strings.HasPrefix(imported, row+"/") {
		return true
	}
	return slices.ContainsFunc(allowed[row], func(a string) bool {
		tree, wild := strings.CutSuffix(a, "...")
		return imported == a || strings.HasPrefix(imported, a+"/") && isFolderOfOne(a) || wild && strings.HasPrefix(imported, tree)
	})
}

// isFolderOfOne says whether a row covers packages below it (graph/model, …).
func isFolderOfOne(a string) bool { return slices.Contains(slices.Collect(maps.Keys(allowed)), a) }

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Imports,Deps,GoFiles", module+"...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		if len(p.GoFiles) > 0 {
			all = append(all, p)
		}
	}
}
