package workspace_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/runner/workspace"
)

// folderVariable makes the test program a process that has a workspace and waits to be killed.
const folderVariable = "WORKSPACE_TEST_FOLDER"

func TestMain(m *testing.M) {
	if folder := os.Getenv(folderVariable); folder != "" {
		hold(folder)
	}
	os.Exit(m.Run())
}

func hold(folder string) {
	root, _, err := workspace.Open(folder)
	if err != nil {
		panic(err)
	}
	w, err := root.Make("bld_killed.1")
	if err != nil {
		panic(err)
	}
	dir, err := w.Folder("source")
	if err != nil {
		panic(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o400); err != nil {
		panic(err)
	}
	println("ready")
	select {}
}

func entries(t *testing.T, folder string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(folder, func(path string, _ os.DirEntry, err error) error {
		if path != folder {
			names = append(names, strings.TrimPrefix(path, folder+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestWorkspaceIsPrivateAndGoesWhole(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	root, swept, err := workspace.Open(folder)
	if err != nil || len(swept) != 0 {
		t.Fatalf("open: %v, swept %v", err, swept)
	}
	w, err := root.Make("bld_1.1")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := w.Folder("source")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Dir(dir))
	if err != nil || info.Mode().Perm() != 0o700 || filepath.Base(filepath.Dir(dir)) != "bld_1.1" {
		t.Errorf("workspace %s: %v, %v", dir, info, err)
	}
	if _, err := root.Make("bld_1.1"); err == nil {
		t.Error("an attempt got two workspaces")
	}
	if err := w.Remove(); err != nil {
		t.Error(err)
	}
	if err := w.Remove(); err != nil {
		t.Errorf("removed twice: %v", err)
	}
	if err := root.Close(); err != nil {
		t.Error(err)
	}
	if left := entries(t, folder); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestNamesThatLeaveTheFolderAreRefused(t *testing.T) {
	t.Parallel()
	root, _, err := workspace.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close() //nolint:errcheck // the folder goes with the test
	for _, name := range []string{"", ".", "..", "a/b", "../a", ".hidden"} {
		if _, err := root.Make(name); err == nil {
			t.Errorf("%q was accepted", name)
		}
	}
}

func TestKilledRunnersWorkspaceIsSweptAndALivingOnesStays(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	living, _, err := workspace.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close() //nolint:errcheck // the folder goes with the test
	if _, err := living.Make("bld_living.1"); err != nil {
		t.Fatal(err)
	}
	killed := exec.CommandContext(t.Context(), os.Args[0])
	killed.Env = append(os.Environ(), folderVariable+"="+folder)
	out, err := killed.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = killed.Wait() // tells that it was killed
	next, swept, err := workspace.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"bld_killed.1"}, swept); diff != "" {
		t.Error(diff)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	if left := strings.Join(entries(t, folder), " "); strings.Contains(left, "killed") || !strings.Contains(left, "bld_living.1") {
		t.Errorf("left: %s", left)
	}
}
