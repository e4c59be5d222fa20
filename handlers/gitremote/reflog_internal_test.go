package gitremote

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLineOfAReflogIsRead(t *testing.T) {
	t.Parallel()
	old, commit := strings.Repeat("0", 40), strings.Repeat("ab", 20)
	for text, want := range map[string]entry{
		old + " " + commit + " tok_1 <req_2> 1795392000 +0000\tpush":               {name: "tok_1", email: "req_2", at: time.Unix(1795392000, 0).UTC()},
		old + " " + commit + " Ada L. <ada@x.org> 1795392000 -0230":                {name: "Ada L.", email: "ada@x.org", at: time.Unix(1795392000, 0).UTC()},
		old + " " + commit + " <> 1795392000 +0000\tbranch: Created from <x> 1 +0": {at: time.Unix(1795392000, 0).UTC()},
	} {
		want.ref, want.old, want.new, want.line = "refs/heads/main", old, commit, text
		if got, ok := parseLine("refs/heads/main", text); !ok || got != want {
			t.Errorf("%q is read as %+v, %t", text, got, ok)
		}
	}
	for _, text := range []string{"", "x", old + " " + commit, old + " " + commit + " a <b> x +0000", old + " short a <b> 1 +0000"} {
		if got, ok := parseLine("refs/heads/main", text); ok {
			t.Errorf("%q is read as %+v", text, got)
		}
	}
}

func FuzzReflogLine(f *testing.F) {
	hash := strings.Repeat("ab", 20)
	f.Add(hash + " " + hash + " tok_1 <req_2> 1795392000 +0000\tpush")
	f.Add(hash + " " + hash + " <> 1 -0000")
	f.Fuzz(func(t *testing.T, text string) {
		e, ok := parseLine("refs/heads/main", text)
		if !ok {
			return
		}
		again, ok := parseLine("refs/heads/main", e.line)
		if !ok || again != e {
			t.Errorf("read as %+v, and from its own line as %+v", e, again)
		}
	})
}

func TestHookWithoutAServerRefusesWhatIsStillToComeAndForgivesWhatIsDone(t *testing.T) {
	t.Parallel()
	getenv := func(string) string { return filepath.Join(t.TempDir(), "nobody") }
	for name, want := range map[string]int{preReceive: 1, postReceive: 0} {
		var out strings.Builder
		if code := RunHook(name, strings.NewReader("a b refs/heads/main\n"), &out, getenv); code != want || out.Len() == 0 {
			t.Errorf("%s: code %d, %q", name, code, out.String())
		}
	}
	var out strings.Builder
	if code := RunHook(preReceive, strings.NewReader(strings.Repeat("x", maxUpdates+1)), &out, getenv); code != 1 || !strings.Contains(out.String(), "too many refs") {
		t.Errorf("too many refs: code %d, %q", code, out.String())
	}
}

func TestSocketHasAShortPathAndThoseOfKilledProcessesAreRemoved(t *testing.T) {
	t.Parallel()
	short, err := os.MkdirTemp("", "git") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(short) })
	left := filepath.Join(short, socketPrefix+"killed")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{short, filepath.Join(t.TempDir(), strings.Repeat("long", 30))} {
		path, tidy, err := (&Remote{cfg: Config{Root: root}}).socket(t.Context())
		if err != nil || len(path) > maxSocket {
			t.Errorf("socket of %s: %s, %v", root, path, err)
		}
		tidy()
	}
	if _, err := os.Lstat(left); !os.IsNotExist(err) {
		t.Errorf("the socket of a killed process is still there: %v", err)
	}
}
