package source_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/runner/internal/gittest"
	"github.com/pipeops/pipeops/runner/source"
)

func fetch(t *testing.T, r source.Request) (source.Fetched, error) {
	t.Helper()
	if r.Workspace == "" {
		r.Workspace = t.TempDir()
	}
	return source.Fetch(t.Context(), r)
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	var failed *source.Error
	if !errors.As(err, &failed) || failed.Code != code {
		t.Errorf("%v, want %s", err, code)
	}
}

// tree reads what lies in a folder, links as "-> target".
func tree(t *testing.T, folder string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(folder, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name := strings.TrimPrefix(path, folder+"/")
		if target, err := os.Readlink(path); err == nil {
			files[name] = "-> " + target
			return nil
		}
		text, err := os.ReadFile(path)
		files[name] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestExactlyTheCommitIsFetched(t *testing.T) {
	t.Parallel()
	for _, old := range []bool{false, true} {
		s := gittest.New(t)
		s.Old = old
		files := map[string]string{"Dockerfile": "FROM scratch\n", "a/b": "text", "link": "-> /etc/passwd"}
		first := s.Commit(t, "app", files)
		second := s.Commit(t, "app", map[string]string{"Dockerfile": "FROM busybox\n"})
		for commit, want := range map[string]map[string]string{first: files, second: {"Dockerfile": "FROM busybox\n"}} {
			workspace := t.TempDir()
			got, err := fetch(t, source.Request{URL: s.URL + "/app", Ref: "refs/heads/main", Commit: commit, Workspace: workspace})
			if err != nil {
				t.Fatalf("old server: %v: %v", old, err)
			}
			if diff := cmp.Diff(want, tree(t, got.Folder)); diff != "" {
				t.Error(diff)
			}
			if got.Files != int64(len(want)) || got.Bytes == 0 {
				t.Errorf("%+v of %d files", got, len(want))
			}
			if left := tree(t, workspace); len(left) != len(want) {
				t.Errorf("left in the workspace: %v", left)
			}
		}
	}
}

func TestTokenOpensARepositoryAndStaysOutOfErrors(t *testing.T) {
	t.Parallel()
	s := gittest.New(t)
	s.Token = "hush-hush"
	commit := s.Commit(t, "app", map[string]string{"f": "x"})
	if _, err := fetch(t, source.Request{URL: s.URL + "/app", Commit: commit, Credential: "hush-hush"}); err != nil {
		t.Error(err)
	}
	_, err := fetch(t, source.Request{URL: s.URL + "/app", Commit: commit, Credential: "wrong-token"})
	wantCode(t, err, source.Denied)
	if strings.Contains(err.Error(), "wrong-token") {
		t.Errorf("the error tells the token: %v", err)
	}
	_, err = fetch(t, source.Request{URL: s.URL + "/app", Commit: commit})
	wantCode(t, err, source.Denied)
}

func TestOnlyTheRepositoryItselfGetsItsCredential(t *testing.T) {
	t.Parallel()
	public, private, elsewhere := gittest.New(t), gittest.New(t), gittest.New(t)
	private.Token = "hush-hush"
	elsewhere.Redirect = private.URL
	open := public.Commit(t, "app", map[string]string{"f": "x"})
	closed := private.Commit(t, "app", map[string]string{"f": "x"})
	if _, err := fetch(t, source.Request{URL: public.URL + "/app", Commit: open}); err != nil {
		t.Error(err)
	}
	if slices.ContainsFunc(public.Logins(), func(l string) bool { return l != "" }) {
		t.Errorf("a public repository got logins: %q", public.Logins())
	}
	if _, err := fetch(t, source.Request{URL: elsewhere.URL + "/app", Commit: closed, Credential: "ada:hush-hush"}); err == nil {
		t.Error("a redirect was followed")
	}
	if len(private.Logins()) > 0 {
		t.Errorf("the redirect took the login along: %q", private.Logins())
	}
	if _, err := fetch(t, source.Request{URL: private.URL + "/app", Commit: closed, Credential: "ada:hush-hush"}); err != nil {
		t.Error(err)
	}
	if got := slices.Compact(private.Logins()); len(got) != 1 || got[0] != "ada:hush-hush" {
		t.Errorf("got logins %q", got)
	}
}

func TestCommitThatIsGoneIsToldAsSuch(t *testing.T) {
	t.Parallel()
	for _, old := range []bool{false, true} {
		s := gittest.New(t)
		s.Old = old
		kept := s.Commit(t, "app", map[string]string{"f": "1"})
		gone := s.Commit(t, "app", map[string]string{"f": "2"})
		s.Forget(t, "app", kept)
		_, err := fetch(t, source.Request{URL: s.URL + "/app", Ref: "refs/heads/main", Commit: gone})
		wantCode(t, err, source.CommitNotFound)
	}
}

func TestAddressesThatAreNotFetched(t *testing.T) {
	t.Parallel()
	commit := strings.Repeat("a", 40)
	for _, address := range []string{
		"file:///etc", "/etc", "git@github.com:a/b", "ssh://git@github.com/a/b", "git://github.com/a/b", "ext::sh -c true",
		"http://example.com/a", "http://own.example/other/a", "https://user:password@example.com/a", "--upload-pack=true", "",
	} {
		_, err := fetch(t, source.Request{URL: address, Commit: commit, OwnRemote: "http://own.example/git"})
		wantCode(t, err, source.BadURL)
		if err != nil && strings.Contains(err.Error(), "password@") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
	for _, commit := range []string{"", "main", "abc123", "--upload-pack=x", strings.Repeat("A", 40), strings.Repeat("a", 41)} {
		_, err := fetch(t, source.Request{URL: "https://example.com/a", Commit: commit})
		wantCode(t, err, source.BadCommit)
	}
}

func TestRepositoryThatIsNotThere(t *testing.T) {
	t.Parallel()
	s := gittest.New(t)
	_, err := fetch(t, source.Request{URL: s.URL + "/none", Commit: strings.Repeat("a", 40)})
	wantCode(t, err, source.RepositoryNotFound)
}

func TestTroubleOfTheServerMayMend(t *testing.T) {
	t.Parallel()
	s := gittest.New(t)
	commit := s.Commit(t, "app", map[string]string{"f": "x"})
	s.Away.Store(1)
	r := source.Request{URL: s.URL + "/app", Commit: commit, Workspace: t.TempDir()}
	_, err := fetch(t, r)
	wantCode(t, err, source.Network)
	if _, err := fetch(t, r); err != nil {
		t.Errorf("second try in the same workspace: %v", err)
	}
	_, err = fetch(t, source.Request{URL: "http://127.0.0.1:1/app", Commit: commit})
	wantCode(t, err, source.Network)
}

func TestTooLargeSourcesAreRefusedBeforeTheyAreUnpacked(t *testing.T) {
	t.Parallel()
	s := gittest.New(t)
	commit := s.Commit(t, "app", map[string]string{"a": strings.Repeat("x", 1000), "b": "y"})
	for _, r := range []source.Request{{MaxFiles: 1}, {MaxBytes: 1000}} {
		r.URL, r.Commit, r.Workspace = s.URL+"/app", commit, t.TempDir()
		_, err := fetch(t, r)
		wantCode(t, err, source.TooLarge)
		if files := tree(t, filepath.Join(r.Workspace, "source")); len(files) > 0 {
			t.Errorf("unpacked: %v", files)
		}
	}
}

// A repository can't make git run its programs.
func TestNothingOfTheRepositoryIsRun(t *testing.T) {
	t.Parallel()
	s := gittest.New(t)
	proof := filepath.Join(t.TempDir(), "proof")
	run := "#!/bin/sh\ntouch " + proof + "\n"
	files := map[string]string{
		".gitattributes": "* filter=evil\n", ".lfsconfig": "[lfs]\n\turl = http://127.0.0.1:1/\n",
		"hooks/post-checkout": run, "run": run,
	}
	if _, err := fetch(t, source.Request{URL: s.URL + "/app", Commit: s.Commit(t, "app", files)}); err != nil {
		t.Error(err)
	}
	files[".gitmodules"] = "[submodule \"x\"]\n\tpath = x\n\turl = -u./run\n\tupdate = !touch " + proof + "\n"
	_, err := fetch(t, source.Request{URL: s.URL + "/app", Commit: s.Commit(t, "app", files)})
	wantCode(t, err, source.Failed)
	if _, err := os.Stat(proof); err == nil {
		t.Error("a program of the repository was run")
	}
}

func TestCancelEndsTheFetchAtOnce(t *testing.T) {
	t.Parallel()
	s := gittest.New(t)
	commit := s.Commit(t, "app", map[string]string{"f": "x"})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("changed our mind")
	cancel(why)
	began := time.Now()
	if _, err := source.Fetch(ctx, source.Request{URL: s.URL + "/app", Commit: commit, Workspace: t.TempDir()}); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
}
