package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var (
	advised = regexp.MustCompile("(?:^|: |[`(])pipeops ([a-z][^`,;()\n]*)")
	flagged = regexp.MustCompile(`^--([a-z][a-z-]*)`)
)

// What people are told to type exists: each `pipeops …` in a text of the packages that advise is a command, with its flags.
func TestAdvisedCommandsExist(t *testing.T) {
	t.Parallel()
	tree, found := root(), 0
	for _, dir := range []string{"domain", "runner", "deploy", "handlers", "graph"} {
		err := filepath.WalkDir(filepath.Join("..", "..", dir), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() && e.Name() == "generated" {
				return errOrSkip(err)
			}
			if e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			for at, text := range texts(t, path) {
				for _, m := range advised.FindAllStringSubmatch(text, -1) {
					found++
					if wrong := unknown(tree, strings.Fields(m[1])); wrong != "" {
						t.Errorf("%s: %q: %s", at, text, wrong)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 30 {
		t.Errorf("only %d commands were found: the texts aren't read any more", found)
	}
}

func errOrSkip(err error) error {
	if err != nil {
		return err
	}
	return fs.SkipDir
}

// unknown says what of a command line isn't there, "" for nothing.
func unknown(c *cobra.Command, words []string) string {
	begun := false
	for _, word := range words {
		if flag := flagged.FindStringSubmatch(word); flag != nil {
			c.InitDefaultHelpFlag()
			if c.Flags().Lookup(flag[1]) == nil && c.InheritedFlags().Lookup(flag[1]) == nil {
				return c.CommandPath() + " has no flag --" + flag[1]
			}
			continue
		}
		name := strings.Trim(word, ".:")
		for _, sub := range c.Commands() {
			if sub.Name() == name {
				c, begun = sub, true
				break
			}
		}
		if !begun {
			return "there is no command " + name
		}
	}
	return ""
}

// texts gives the texts of a file by their place; what is put in between stands there as VALUE.
func texts(t *testing.T, path string) map[string]string {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		e, ok := n.(ast.Expr)
		if !ok {
			return true
		}
		text, literal := flat(e)
		if !literal {
			return true
		}
		out[set.Position(e.Pos()).String()] = text
		return false
	})
	return out
}

// flat puts a sum of texts together; false when there is none in it.
func flat(e ast.Expr) (text string, literal bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			text, err := strconv.Unquote(e.Value)
			return text, err == nil
		}
	case *ast.BinaryExpr:
		if e.Op == token.ADD {
			a, inA := flat(e.X)
			b, inB := flat(e.Y)
			return a + b, inA || inB
		}
	}
	return "VALUE", false
}
