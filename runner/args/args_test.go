package args_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/runner/args"
)

const commit = "0123456789012345678901234567890123456789"

func TestArgsOfAUserPassWhereTheDockerfileDeclaresThem(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		dockerfile string
		user       string // names
		passed     string
		dropped    string
	}{
		"none declared":           {"FROM scratch", "A B", "", "A B"},
		"declared in a stage":     {"FROM scratch\nARG A", "A B", "A", "B"},
		"with a default":          {"FROM scratch\nARG A=1", "A", "A", ""},
		"global only":             {"ARG A=1\nFROM scratch", "A", "A", ""},
		"global with FROM":        {"ARG A\nFROM busybox:$A\nARG B", "A B C", "A B", "C"},
		"in a later stage":        {"FROM scratch AS a\nFROM scratch\nARG A", "A", "A", ""},
		"in a stage nobody needs": {"FROM scratch AS a\nARG A\nFROM scratch", "A", "A", ""},
		"lower case keyword":      {"from scratch\narg A", "A", "A", ""},
		"names are case exact":    {"FROM scratch\nARG a", "A", "", "A"},
		"several in a line":       {"FROM scratch\nARG A B=2 C", "A B C D", "A B C", "D"},
		"continued line":          {"FROM scratch\nARG A \\\n  B", "A B", "A B", ""},
		"comment in continuation": {"FROM scratch\nARG A \\\n# ARG C\n  B", "A B C", "A B", "C"},
		"backtick as escape":      {"# escape=`\nFROM scratch\nARG A `\n  B", "A B", "A B", ""},
		"quoted":                  {"FROM scratch\nARG \"A\"=1", "A", "A", ""},
		"single quoted":           {"FROM scratch\nARG 'A'", "A", "A", ""},
		"only in a comment":       {"FROM scratch\n# ARG A", "A", "", "A"},
		"in a RUN heredoc":        {"FROM busybox\nRUN <<E\nARG A\nE", "A", "", "A"},
		"in a COPY heredoc":       {"FROM scratch\nCOPY <<E /f\nARG A\nE", "A", "", "A"},
		"after a heredoc":         {"FROM busybox\nRUN <<E\ntrue\nE\nARG A", "A", "A", ""},
		"in ONBUILD":              {"FROM scratch\nONBUILD ARG A", "A", "", "A"},
		"as ENV only":             {"FROM scratch\nENV A=1", "A", "", "A"},
		"windows line ends":       {"FROM scratch\r\nARG A\r\n", "A", "A", ""},
		"byte order mark":         {"\ufeffFROM scratch\nARG A", "A", "A", ""},
		"blank lines and tabs":    {"\n\n\tFROM scratch\n\n\tARG\tA", "A", "A", ""},
		"used but not declared":   {"FROM busybox\nRUN echo $A", "A", "", "A"},
		"proxies need no ARG":     {"FROM scratch", "HTTP_PROXY https_proxy No_Proxy", "HTTP_PROXY https_proxy", "No_Proxy"},
		"platform is not theirs":  {"FROM scratch\nARG TARGETARCH", "TARGETARCH", "", "TARGETARCH"},
		"builder is not theirs":   {"FROM scratch\nARG BUILDKIT_SYNTAX", "BUILDKIT_SYNTAX", "", "BUILDKIT_SYNTAX"},
		"ours are not theirs":     {"FROM scratch\nARG PIPEOPS_SECRET", "PIPEOPS_SECRET", "", "PIPEOPS_SECRET"},
		"twice declared":          {"ARG A\nFROM scratch\nARG A\nARG A=2", "A", "A", ""},
		"ours when declared":      {"FROM scratch\nARG PIPEOPS_GIT_COMMIT\nARG PIPEOPS_BUILD_SHA", "", "PIPEOPS_BUILD_SHA PIPEOPS_GIT_COMMIT", ""},
		"ours even if overridden": {"FROM scratch\nARG PIPEOPS_GIT_COMMIT", "PIPEOPS_GIT_COMMIT", "PIPEOPS_GIT_COMMIT", "PIPEOPS_GIT_COMMIT"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := args.Read([]byte(c.dockerfile))
			if err != nil {
				t.Fatal(err)
			}
			user := map[string]string{}
			for n := range strings.FieldsSeq(c.user) {
				user[n] = "of the user"
			}
			f := d.Filter(user, args.Own(commit))
			if diff := cmp.Diff([2]string{c.passed, c.dropped}, [2]string{strings.Join(f.Names, " "), strings.Join(f.Dropped, " ")}); diff != "" {
				t.Error(diff)
			}
			for n, v := range f.Passed {
				if strings.HasPrefix(n, "PIPEOPS_") != (v == commit) {
					t.Errorf("%s=%s", n, v)
				}
			}
		})
	}
}

func TestFrontendsOtherThanTheBuiltInAreSeen(t *testing.T) {
	t.Parallel()
	for dockerfile, builtIn := range map[string]bool{
		"FROM scratch": true,
		"# syntax=docker/dockerfile:1\nFROM scratch":                    true,
		"# syntax = docker.io/docker/dockerfile:1.7-labs\nFROM scratch": true,
		"#syntax=docker/dockerfile@sha256:0\nFROM scratch":              true,
		"# syntax=evil/x\nFROM scratch":                                 false,
		"# syntax=docker/dockerfile-upstream:master\nFROM scratch":      false,
		"# syntax=evil.example/docker/dockerfile:1\nFROM scratch":       false,
		"#!/usr/bin/env x\n# syntax=evil/x\nFROM scratch":               false,
		"# escape=`\n# syntax=evil/x\nFROM scratch":                     false,
		"# just a comment\n# syntax=evil/x\nFROM scratch":               true, // too late to count
		"FROM scratch\n# syntax=evil/x":                                 true,
	} {
		d, err := args.Read([]byte(dockerfile))
		if err != nil {
			t.Errorf("%q: %v", dockerfile, err)
			continue
		}
		if d.BuiltIn() != builtIn {
			t.Errorf("%q: frontend %q, built in: %v", dockerfile, d.Frontend, d.BuiltIn())
		}
	}
}

func TestBrokenDockerfileTellsItsLine(t *testing.T) {
	t.Parallel()
	for dockerfile, want := range map[string]int{
		"FROM scratch\nFORM x":            2,
		"FROM scratch\n\nCOPY a":          3,
		"RUN true":                        1,
		"":                                0,
		"FROM scratch\nRUN <<E\nno end\n": 2,
	} {
		_, err := args.Read([]byte(dockerfile))
		var syntax *args.SyntaxError
		if !errors.As(err, &syntax) || syntax.Line != want {
			t.Errorf("%q: %v, line %+v, want %d", dockerfile, err, syntax, want)
		}
	}
}

func FuzzFilter(f *testing.F) {
	for _, s := range []string{"FROM scratch\nARG A", "# escape=`\nARG A=1 `\n B\nFROM $A", "FROM a\nRUN <<E\nARG A\nE", "ARG \"A=\\\"\nFROM x", "\ufeff#!x\n// syntax=y\nFROM z"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, dockerfile []byte) {
		d, err := args.Read(dockerfile)
		if err != nil {
			return
		}
		user := map[string]string{"A": "a", "BUILDKIT_SYNTAX": "evil", "TARGETARCH": "x", "PIPEOPS_X": "y", "b": "c"}
		got := d.Filter(user, args.Own(commit))
		if len(got.Names) != len(got.Passed) || !slices.IsSorted(got.Names) || !slices.IsSorted(got.Dropped) {
			t.Errorf("%+v", got)
		}
		for _, never := range []string{"BUILDKIT_SYNTAX", "TARGETARCH", "PIPEOPS_X"} {
			if _, ok := got.Passed[never]; ok {
				t.Errorf("%s was passed", never)
			}
		}
		for name := range user {
			if _, passed := got.Passed[name]; passed == slices.Contains(got.Dropped, name) {
				t.Errorf("%s is both passed and dropped, or neither", name)
			}
		}
	})
}
