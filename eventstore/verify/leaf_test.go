package verify

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/pipeops/pipeops/domain"
)

func leafInput(e domain.Recorded) []byte { return appendLeaf(nil, e, sha256.Sum256(e.Body)) }

var update = flag.Bool("update", false, "add missing golden leaves; an existing one never changes")

// goldenLeaf pins the form of leaves: tree heads that were signed once must stay true for ever.
type goldenLeaf struct {
	Name  string
	Event domain.Recorded
	Input string // hex
	Leaf  string // hex
}

func TestLeavesKeepTheirForm(t *testing.T) {
	t.Parallel()
	const file = "testdata/leaves.json"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var leaves []goldenLeaf
	if err := json.Unmarshal(text, &leaves); err != nil { //nolint:musttag // the file has the fields' names
		t.Fatal(err)
	}
	for i, g := range leaves {
		leaf := LeafHash(g.Event)
		got := goldenLeaf{g.Name, g.Event, hex.EncodeToString(leafInput(g.Event)), hex.EncodeToString(leaf[:])}
		if *update && g.Leaf == "" {
			leaves[i] = got
		} else if got.Input != g.Input || got.Leaf != g.Leaf {
			t.Errorf("%s: the leaf is\n%s %s, want\n%s %s", g.Name, got.Input, got.Leaf, g.Input, g.Leaf)
		}
	}
	if *update {
		var out bytes.Buffer
		encoder := json.NewEncoder(&out)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(leaves); err != nil { //nolint:musttag // the file has the fields' names
			t.Fatal(err)
		}
		if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheLeafIsRFC6962AndEveryFieldCounts(t *testing.T) {
	t.Parallel()
	e := domain.Recorded{
		Cursor: domain.Cursor{LogEpoch: 1, Position: 1}, ID: "11111111-0000-4000-8000-000000000000", Stream: "s", Version: 1,
		Type: "T", SchemaVersion: 1, Body: []byte("{}"), OccurredAt: time.Unix(1, 0), RecordedAt: time.Unix(2, 0),
	}
	if got, want := LeafHash(e), tlog.RecordHash(leafInput(e)); got != want {
		t.Errorf("leaf %x, want RFC 6962's %x", got, want)
	}
	seen := map[tlog.Hash]int{LeafHash(e): 0}
	for i, change := range []func(*domain.Recorded){
		func(e *domain.Recorded) { e.Cursor.Position++ }, func(e *domain.Recorded) { e.Cursor.LogEpoch++ },
		func(e *domain.Recorded) { e.Stream = "t" }, func(e *domain.Recorded) { e.Version++ },
		func(e *domain.Recorded) { e.ID = "2" + e.ID[1:] }, func(e *domain.Recorded) { e.ProjectID = "p" },
		func(e *domain.Recorded) { e.Type = "U" }, func(e *domain.Recorded) { e.SchemaVersion++ },
		func(e *domain.Recorded) { e.Body = []byte("[]") },
		func(e *domain.Recorded) { e.OccurredAt = e.OccurredAt.Add(time.Microsecond) },
		func(e *domain.Recorded) { e.RecordedAt = e.RecordedAt.Add(time.Microsecond) },
		func(e *domain.Recorded) { e.Actor = "a" }, func(e *domain.Recorded) { e.CorrelationID = "a" },
		func(e *domain.Recorded) { e.CausationID = "a" }, func(e *domain.Recorded) { e.Attempt = "a" },
		func(e *domain.Recorded) { e.AttemptSeq++ }, func(e *domain.Recorded) { e.Trace = "a" },
		func(e *domain.Recorded) { e.Stream, e.ProjectID = "", "s" }, // the same bytes in another field
	} {
		changed := e
		change(&changed)
		leaf := LeafHash(changed)
		if other, there := seen[leaf]; there {
			t.Errorf("changes %d and %d have the same leaf", other, i+1)
		}
		seen[leaf] = i + 1
	}
}
