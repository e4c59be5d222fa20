package diagnose_test

import (
	"strings"
	"testing"

	"github.com/pipeops/pipeops/runner/diagnose"
)

// failures as tools tell them.
var failures = map[string]struct {
	code    string
	failure diagnose.Failure
}{
	"oom kill":           {"OUT_OF_MEMORY", run(137, `process "/bin/sh -c npm run build" did not complete successfully: exit code: 137`, "Killed")},
	"go killed":          {"OUT_OF_MEMORY", run(1, "exit code: 1", "github.com/a/b: /usr/local/go/pkg/tool/linux_amd64/compile: signal: killed")},
	"v8 heap":            {"JS_HEAP", run(134, "exit code: 134", "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory")},
	"disk":               {"NO_SPACE", run(1, "exit code: 1", "write /root/.cache/x: no space left on device")},
	"disk of exporter":   {"NO_SPACE", diagnose.Failure{Stage: "push", Message: "failed to copy: write /var/lib/buildkit/ingest: no space left on device"}},
	"copy":               {"COPY_SOURCE_MISSING", run(0, `failed to compute cache key: failed to calculate checksum of ref h7z::k2: "/dist": not found`)},
	"no dockerfile":      {"DOCKERFILE_MISSING", diagnose.Failure{Stage: "dockerfile", Code: "DOCKERFILE_MISSING", Message: "open Dockerfile: no such file or directory"}},
	"parse error":        {"DOCKERFILE_SYNTAX", run(0, "dockerfile parse error on line 3: unknown instruction: RNU (did you mean RUN?)")},
	"private base":       {"BASE_IMAGE_DENIED", run(0, "acme/base:1: failed to resolve source metadata for docker.io/acme/base:1: pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed")},
	"base tag":           {"BASE_IMAGE_NOT_FOUND", run(0, "node:99: failed to resolve source metadata for docker.io/library/node:99: docker.io/library/node:99: not found")},
	"base platform":      {"BASE_IMAGE_PLATFORM", run(0, "failed to resolve source metadata for docker.io/a/b:1: no match for platform in manifest: not found")},
	"base network":       {"BASE_IMAGE_NETWORK", run(0, `failed to resolve source metadata for docker.io/library/node:20: failed to do request: Head "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io: no such host`)},
	"pull limit":         {"REGISTRY_LIMIT", run(0, "failed to resolve source metadata for docker.io/library/node:20: failed to copy: httpReadSeeker: failed open: unexpected status code: 429 Too Many Requests - toomanyrequests: You have reached your pull rate limit")},
	"exec format":        {"ARCHITECTURE", run(1, "exit code: 1", "exec /bin/sh: exec format error")},
	"npm ci":             {"NODE_LOCK", run(1, "exit code: 1", "npm error code EUSAGE", "npm error `npm ci` can only install packages when your package.json and package-lock.json are in sync.")},
	"pnpm lock":          {"NODE_LOCK", run(1, "exit code: 1", "ERR_PNPM_OUTDATED_LOCKFILE  Cannot install with \"frozen-lockfile\"")},
	"yarn lock":          {"NODE_LOCK", run(1, "exit code: 1", "YN0028: The lockfile would have been modified by this install, which is explicitly forbidden.")},
	"npm resolve":        {"NODE_RESOLVE", run(1, "exit code: 1", "npm error code ERESOLVE", "npm error ERESOLVE unable to resolve dependency tree")},
	"npm script":         {"NODE_SCRIPT", run(1, "exit code: 1", `npm error Missing script: "build"`)},
	"node version":       {"TOOL_VERSION", run(1, "exit code: 1", "npm warn EBADENGINE Unsupported engine")},
	"go version":         {"TOOL_VERSION", run(1, "exit code: 1", "go: go.mod requires go >= 1.27 (running go 1.26.1; GOTOOLCHAIN=local)")},
	"java version":       {"TOOL_VERSION", run(1, "exit code: 1", "[ERROR] error: release version 21 not supported")},
	"pip name":           {"PYTHON_DEPENDENCY", run(1, "exit code: 1", "ERROR: Could not find a version that satisfies the requirement nope==9", "ERROR: No matching distribution found for nope==9")},
	"pip wheel":          {"PYTHON_DEPENDENCY", run(1, "exit code: 1", "ERROR: Failed building wheel for psycopg2")},
	"go module":          {"GO_DEPENDENCY", run(1, "exit code: 1", "main.go:4:2: no required module provides package github.com/a/b; to add it:")},
	"go sum":             {"GO_DEPENDENCY", run(1, "exit code: 1", "missing go.sum entry for module providing package github.com/a/b")},
	"go code":            {"GO_COMPILE", run(1, "exit code: 1", "# example.com/app", "./main.go:7:2: undefined: x")},
	"js module":          {"MODULE_MISSING", run(1, "exit code: 1", "Error: Cannot find module './Header'")},
	"py module":          {"MODULE_MISSING", run(1, "exit code: 1", "ModuleNotFoundError: No module named 'flask'")},
	"private git":        {"PRIVATE_DEPENDENCY", run(1, "exit code: 1", "fatal: could not read Username for 'https://github.com': terminal prompts disabled")},
	"apt network":        {"NETWORK", run(100, "exit code: 100", "Err:1 http://deb.debian.org/debian bookworm InRelease", "  Temporary failure resolving 'deb.debian.org'")},
	"npm network":        {"NETWORK", run(1, "exit code: 1", "npm error code ENOTFOUND")},
	"windows script":     {"LINE_ENDINGS", run(127, "exit code: 127", "/bin/sh: ./entry.sh: bad interpreter: /bin/bash^M: no such file")},
	"no command":         {"COMMAND_NOT_FOUND", run(127, "exit code: 127", "/bin/sh: make: not found")},
	"not executable":     {"NOT_EXECUTABLE", run(126, "exit code: 126", "/bin/sh: ./gradlew: Permission denied")},
	"no shell":           {"NO_SHELL", run(0, "failed to create task: runc create failed: exec: \"/bin/sh\": stat /bin/sh: no such file or directory: unknown")},
	"env":                {"VARIABLE_MISSING", run(1, "exit code: 1", "Error: Invalid environment variables: DATABASE_URL")},
	"plain exit":         {"STEP_FAILED", run(3, `process "/bin/sh -c exit 3" did not complete successfully: exit code: 3`)},
	"push denied":        {"PUSH_DENIED", diagnose.Failure{Stage: "push", Message: "ghcr.io/acme/app: denied: permission_denied: write_package"}},
	"push without login": {"PUSH_DENIED", diagnose.Failure{Stage: "push", Message: "reg/app: failed to authorize: failed to fetch anonymous token: 401 Unauthorized"}},
	"push no repository": {"PUSH_REPOSITORY", diagnose.Failure{Stage: "push", Message: "1.dkr.ecr.eu.amazonaws.com/app: name unknown: The repository with name 'app' does not exist"}},
	"push network":       {"PUSH_NETWORK", diagnose.Failure{Stage: "push", Message: `failed to do request: Put "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused`}},
	"push limit":         {"REGISTRY_LIMIT", diagnose.Failure{Stage: "push", Message: "unexpected status: 429 Too Many Requests"}},
	"commit gone":        {"COMMIT_NOT_FOUND", diagnose.Failure{Stage: "source", Code: "COMMIT_NOT_FOUND", Message: "fatal: remote error: upload-pack: not our ref abc"}},
	"clone auth":         {"CLONE_AUTH", diagnose.Failure{Stage: "source", Code: "CLONE_AUTH", Message: "fatal: Authentication failed for 'https://github.com/a/b'"}},
	"something else":     {"BUILD_FAILED", diagnose.Failure{Stage: "build", Message: "no idea"}},
}

func run(exit int, message string, log ...string) diagnose.Failure {
	return diagnose.Failure{Stage: "build", Step: "[2/2] RUN x", ExitCode: exit, Message: message, Log: log}
}

func TestKnownFailuresGetTheirOwnDiagnosis(t *testing.T) {
	t.Parallel()
	for name, c := range failures {
		for _, line := range []int{0, 7} {
			f := c.failure
			f.Line, f.Dockerfile, f.Image, f.Build, f.Commit, f.Ref, f.Project = line, "Dockerfile", "ghcr.io/acme/app", "bld_1", "abc", "refs/heads/main", "app"
			d := diagnose.Explain(f)
			if d.Code != c.code {
				t.Errorf("%s: got %s, want %s", name, d.Code, c.code)
			}
			if text := d.String(); strings.ContainsAny(text, "{}") || strings.Contains(text, "line 0") || d.Title == "" || d.Reason == "" || len(d.Fixes) == 0 {
				t.Errorf("%s: %s", name, text)
			}
		}
	}
}

func TestDiagnosisIsBounded(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 100_000)
	f := run(3, long)
	for range 200 {
		f.Log = append(f.Log, long)
	}
	f.Log[199] = "the last"
	d := diagnose.Explain(f)
	if len(d.String()) > 16<<10 || len(d.Log) != 20 || d.Log[19] != "the last" {
		t.Errorf("%d bytes, %d lines", len(d.String()), len(d.Log))
	}
}
