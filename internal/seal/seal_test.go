package seal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden file anew: only when a stored form was added, never to make a test pass")

func TestAMissingMasterKeyIsMadeOnceForAllProcesses(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "master.key")
	ids := make(chan string, 20)
	var group sync.WaitGroup
	for range cap(ids) {
		group.Go(func() {
			m, err := LoadMaster(path)
			if err != nil {
				ids <- err.Error()
				return
			}
			ids <- m.ID()
		})
	}
	group.Wait()
	first := <-ids
	for range cap(ids) - 1 {
		if next := <-ids; next != first {
			t.Fatalf("%s and %s", first, next)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestAMasterKeyThatOthersCanReadOrThatIsNoneIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "master.key")
	if err := os.WriteFile(path, []byte("too short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadMaster(path); err == nil || strings.Contains(err.Error(), "too short") {
		t.Errorf("got %v, want a refusal that doesn't show the file", err)
	}
	if err := os.Chmod(path, 0o640); err != nil { // too wide
		t.Fatal(err)
	}
	if _, err := LoadMaster(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("got %v, want what to type", err)
	}
}

func TestWhatIsSealedToAClaimOpensOnlyWithItsKey(t *testing.T) {
	t.Parallel()
	mine, err := NewEphemeral()
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewEphemeral()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := To(mine.Public(), []byte("hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	if text, err := mine.Open(sealed); string(text) != "hunter2" || err != nil {
		t.Errorf("opened %q, %v", text, err)
	}
	if text, err := other.Open(sealed); err == nil {
		t.Errorf("another claim opened %q", text)
	}
	sealed[len(sealed)-1] ^= 1
	if _, err := mine.Open(sealed); err == nil {
		t.Error("opened though it was changed")
	}
	if _, err := To([]byte("short"), nil); err == nil {
		t.Error("sealed to a key that is none")
	}
}

// rows are stored keys as the database would give them.
type rows struct {
	Keyring []WrappedKey
	Subject []SubjectKey
}

func (r *rows) Keys(context.Context) ([]WrappedKey, error) { return r.Keyring, nil }

func (r *rows) AddKey(_ context.Context, key WrappedKey) error {
	r.Keyring = append(r.Keyring, key)
	return nil
}

func (r *rows) SubjectKeys(context.Context, string) ([]SubjectKey, error) { return r.Subject, nil }

func (r *rows) AddSubjectKey(_ context.Context, key SubjectKey) error {
	r.Subject = append(r.Subject, key)
	return nil
}

func (r *rows) EraseSubject(context.Context, string) error {
	for i := range r.Subject {
		r.Subject[i].Sealed = nil
	}
	return nil
}

// golden is one of each stored form.
type golden struct {
	Master string // the key's file
	Rows   rows
	KeyID  string
	Sealed []byte // "delivery" about "d1"
	Field  string // "Ada" of subject act_1 in event e1, field name
	MAC    string // of a, b for actors
	Token  string // of attempt bld_1.1 and incarnation i
}

// What was ever sealed must open for ever: the golden file is such a past.
func TestStoredFormsOfThePastStillOpen(t *testing.T) {
	t.Parallel()
	const file = "testdata/golden.json"
	if *update {
		writeGolden(t, file)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	if err := json.Unmarshal(text, &g); err != nil { //nolint:musttag // the file has the fields' names
		t.Fatal(err)
	}
	keys, subjects := g.open(t)
	if plain, err := keys.Open(t.Context(), Deliveries, "d1", g.KeyID, g.Sealed); string(plain) != "delivery" || err != nil {
		t.Errorf("delivery: %q, %v", plain, err)
	}
	for _, wrong := range []struct {
		purpose Purpose
		about   string
	}{{Deliveries, "d2"}, {Secrets, "d1"}} {
		if _, err := keys.Open(t.Context(), wrong.purpose, wrong.about, g.KeyID, g.Sealed); err == nil {
			t.Errorf("opens for %v as well", wrong)
		}
	}
	if plain, ok, err := subjects.OpenField(t.Context(), "act_1", "e1", "name", g.Field); plain != "Ada" || !ok || err != nil {
		t.Errorf("field: %q, %v, %v", plain, ok, err)
	}
	field, err := subjects.SealField(t.Context(), "act_1", "e1", "name", "Ada")
	if err != nil {
		t.Fatal(err)
	}
	got := []string{field, keys.MAC(Actors, "a", "b"), keys.AttemptToken("bld_1.1", "i")}
	if diff := cmp.Diff([]string{g.Field, g.MAC, g.Token}, got); diff != "" {
		t.Errorf("want - got +\n%s", diff)
	}
	if !keys.CheckAttemptToken("bld_1.1", "i", g.Token) || keys.CheckAttemptToken("bld_1.2", "i", g.Token) {
		t.Error("a token is checked wrongly")
	}
}

func (g *golden) open(t *testing.T) (*Keyring, *Subjects) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "master.key")
	if err := os.WriteFile(path, []byte(g.Master), 0o600); err != nil {
		t.Fatal(err)
	}
	master, err := LoadMaster(path)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := Open(t.Context(), master, &g.Rows)
	if err != nil {
		t.Fatal(err)
	}
	return keys, NewSubjects(keys, &g.Rows)
}

func writeGolden(t *testing.T, file string) {
	t.Helper()
	g := golden{Master: base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, keySize)) + "\n"}
	keys, subjects := g.open(t)
	var err error
	if g.KeyID, g.Sealed, err = keys.Seal(Deliveries, "d1", []byte("delivery")); err != nil {
		t.Fatal(err)
	}
	if g.Field, err = subjects.SealField(t.Context(), "act_1", "e1", "name", "Ada"); err != nil {
		t.Fatal(err)
	}
	g.MAC, g.Token = keys.MAC(Actors, "a", "b"), keys.AttemptToken("bld_1.1", "i")
	text, err := json.MarshalIndent(g, "", "  ") //nolint:musttag // the file has the fields' names
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(text, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestKeysNeverShowInText(t *testing.T) {
	t.Parallel()
	key := bytes.Repeat([]byte{7}, keySize)
	g := golden{Master: base64.StdEncoding.EncodeToString(key)}
	keys, subjects := g.open(t)
	mine, err := NewEphemeral()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{keys.master, keys, subjects, mine} {
		if text := fmt.Sprintf("%v %+v %s", v, v, v); strings.Contains(text, "7 7 7") || strings.Contains(text, "map[") || strings.Contains(text, "[") {
			t.Errorf("%T shows %s", v, text)
		}
	}
}

func TestFingerprintsStayTheSameForEverAndNeedTheKey(t *testing.T) {
	t.Parallel()
	g := golden{Master: base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, keySize))}
	k, _ := g.open(t)
	raw := []byte(`{"pusher":"Ada <ada@example.org>"}`)
	before := k.Fingerprint("prj_1", raw)
	if err := k.make(t.Context(), Fingerprints, 2); err != nil {
		t.Fatal(err)
	}
	if err := k.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := k.Fingerprint("prj_1", raw); after != before || len(after) != 64 {
		t.Errorf("got %s, before the new key it was %s", after, before)
	}
	plain, other := sha256.Sum256(raw), golden{Master: base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{8}, keySize))}
	elsewhere, _ := other.open(t)
	for name, got := range map[string]string{
		"a plain hash": hex.EncodeToString(plain[:]), "another installation": elsewhere.Fingerprint("prj_1", raw), "another project": k.Fingerprint("prj_2", raw),
	} {
		if got == before {
			t.Errorf("%s gives the same fingerprint", name)
		}
	}
}

func TestANewDataKeySealsAndTheOldOneStillOpens(t *testing.T) {
	t.Parallel()
	g := golden{Master: base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, keySize))}
	here, _ := g.open(t)
	id, sealed, err := here.Seal(Secrets, "x", []byte("old"))
	if err != nil {
		t.Fatal(err)
	}
	token := here.AttemptToken("bld_1.1", "i")
	there, _ := g.open(t)
	for _, purpose := range []Purpose{Secrets, AttemptTokens} {
		if err := there.make(t.Context(), purpose, 2); err != nil {
			t.Fatal(err)
		}
	}
	if err := there.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if plain, err := there.Open(t.Context(), Secrets, "x", id, sealed); string(plain) != "old" || err != nil {
		t.Errorf("the old key opens %q, %v", plain, err)
	}
	if !there.CheckAttemptToken("bld_1.1", "i", token) {
		t.Error("a token of the old key is refused")
	}
	if id, sealed, err = there.Seal(Secrets, "x", []byte("new")); id != "secrets/2" || err != nil {
		t.Fatalf("sealed with %s, %v", id, err)
	}
	// The first process has not heard of the new key.
	if plain, err := here.Open(t.Context(), Secrets, "x", id, sealed); string(plain) != "new" || err != nil {
		t.Errorf("another process's new key opens %q, %v", plain, err)
	}
}
