package verify

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"maps"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/pipeops/pipeops/domain"
)

const logID = "0b0e0000-0000-4000-8000-000000000001"

// log is a log in memory whose checkpoints can be signed.
type log struct {
	tb     testing.TB
	events []domain.Recorded
	keys   Keys
	secret ed25519.PrivateKey
	epoch  int64
	tree   *Tree
	hashes []tlog.Hash // stored hashes of the tree
	files  fstest.MapFS
	lines  [][]byte
	leaves []byte
}

func newLog(tb testing.TB) *log {
	tb.Helper()
	seed := sha256.Sum256([]byte("key"))
	l := &log{tb: tb, secret: ed25519.NewKeyFromSeed(seed[:]), epoch: 1, tree: &Tree{}, files: fstest.MapFS{}}
	l.keys = Keys{LogID: logID, Public: []ed25519.PublicKey{l.secret.Public().(ed25519.PublicKey)}}
	return l
}

// event is the n-th of a log: of three projects and of none, each with ten streams, with texts of all kinds.
func event(n, epoch int64) domain.Recorded {
	at := time.Date(2026, 11, 24, 0, 0, 0, 1000, time.UTC).Add(time.Duration(n) * time.Millisecond)
	e := domain.Recorded{
		Cursor: domain.Cursor{LogEpoch: epoch, Position: n}, ID: fmt.Sprintf("00000000-0000-4000-8000-%012d", n),
		Stream: domain.Stream(fmt.Sprint("build/", n%40)), Version: (n-1)/40 + 1, Type: "LayerBuilt", SchemaVersion: 1,
		Body:       fmt.Appendf(nil, `{"build":"bld_%d","step":"RUN go build ./...","seconds":%d,"text":"<&>"}`, n%40, n),
		OccurredAt: at, RecordedAt: at, Actor: "token:1", CorrelationID: "psh_1", CausationID: "0b0e0000-0000-4000-8000-000000000002",
		Attempt: "bld_1.1", AttemptSeq: n, Trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}
	if n%7 == 0 && n < 1000 {
		e.CausationID = "é\u2028\t\"\\ \"},\"data\":"
	}
	if project := n % 4; project > 0 {
		e.ProjectID = domain.ProjectID(fmt.Sprint("prj_", project))
	}
	return e
}

func (l *log) hash(indexes []int64) (out []tlog.Hash, err error) {
	for _, i := range indexes {
		out = append(out, l.hashes[i])
	}
	return out, nil
}

// grow appends n events.
func (l *log) grow(n int) {
	l.tb.Helper()
	for range n {
		e := event(int64(len(l.events))+1, l.epoch)
		l.events = append(l.events, e)
		leaf := LeafHash(e)
		l.tree.Add(leaf)
		stored, err := tlog.StoredHashesForRecordHash(e.Cursor.Position-1, leaf, tlog.HashReaderFunc(l.hash))
		if err != nil {
			l.tb.Fatal(err)
		}
		l.hashes = append(l.hashes, stored...)
		l.lines = append(l.lines, AppendLine(nil, e))
		l.leaves = append(l.leaves, leaf[:]...)
	}
}

// lose cuts the log back, as a restore does, and begins a new epoch.
func (l *log) lose(size int) {
	events := l.events[:size]
	*l = log{tb: l.tb, keys: l.keys, secret: l.secret, epoch: l.epoch, tree: &Tree{}, files: l.files}
	for _, e := range events {
		l.epoch = max(l.epoch, e.Cursor.LogEpoch)
	}
	l.grow(size)
	l.epoch++
}

func (l *log) sign() (Checkpoint, []byte) {
	l.tb.Helper()
	c := Checkpoint{LogID: logID, Epoch: l.epoch, Size: l.tree.Size(), Root: l.tree.Root()}
	signed, err := l.keys.Sign(c, func(text []byte) ([]byte, error) { return ed25519.Sign(l.secret, text), nil })
	if err != nil {
		l.tb.Fatal(err)
	}
	return c, signed
}

// head signs a checkpoint into the export.
func (l *log) head() {
	l.tb.Helper()
	c, signed := l.sign()
	l.files[CheckpointFolder+"/"+c.Name()] = &fstest.MapFile{Data: signed}
}

// export gives the whole log as it stands.
func (l *log) export() fstest.MapFS {
	l.tb.Helper()
	files := maps.Clone(l.files)
	key, err := l.keys.File([]int64{l.epoch})
	if err != nil {
		l.tb.Fatal(err)
	}
	files[KeyFile] = &fstest.MapFile{Data: key}
	files[EventsFile] = &fstest.MapFile{Data: bytes.Join(l.lines, nil)}
	files[LeavesFile] = &fstest.MapFile{Data: l.leaves}
	return files
}

// part gives one project's part.
func (l *log) part(project domain.ProjectID) fstest.MapFS {
	l.tb.Helper()
	files := l.export()
	delete(files, LeavesFile)
	var events, proofs []byte
	for i, e := range l.events {
		if e.ProjectID != project {
			continue
		}
		proof, err := tlog.ProveRecord(l.tree.Size(), int64(i), tlog.HashReaderFunc(l.hash))
		if err != nil {
			l.tb.Fatal(err)
		}
		events, proofs = append(events, l.lines[i]...), AppendProof(proofs, int64(i+1), proof)
	}
	files[EventsFile], files[ProofsFile] = &fstest.MapFile{Data: events}, &fstest.MapFile{Data: proofs}
	l.head()
	for name, file := range l.files {
		c, err := l.keys.Open(file.Data)
		if err != nil {
			l.tb.Fatal(err)
		}
		delete(files, name)
		if root, err := tlog.TreeHash(min(c.Size, l.tree.Size()), tlog.HashReaderFunc(l.hash)); err != nil || root != c.Root {
			continue // a restore has lost what it saw
		}
		files[name] = file
		l.prove(files, c.Size)
	}
	return files
}

// prove adds the proof that the log begins with so many events.
func (l *log) prove(files fstest.MapFS, size int64) {
	l.tb.Helper()
	if size == l.tree.Size() {
		return
	}
	proof, err := tlog.ProveTree(l.tree.Size(), size, tlog.HashReaderFunc(l.hash))
	if err != nil {
		l.tb.Fatal(err)
	}
	files[ConsistencyFile(size)] = &fstest.MapFile{Data: AppendConsistency(nil, size, proof)}
}

// sample is a log of 700 events with checkpoints here and there.
func sample(tb testing.TB) *log {
	tb.Helper()
	l := newLog(tb)
	for _, n := range []int{1, 99, 155, 1, 44, 299, 101} {
		l.grow(n)
		l.head()
	}
	return l
}
