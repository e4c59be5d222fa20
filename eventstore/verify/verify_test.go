package verify

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/pipeops/pipeops/domain"
)

func TestAGoodExportIsGood(t *testing.T) {
	t.Parallel()
	l := sample(t)
	report, err := Export(l.export(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if report.Events != 700 || report.Checkpoints != 7 || report.Size != 700 || report.Epoch != 1 || report.LogID != logID || report.Root != l.tree.Root().String() {
		t.Errorf("got %+v", report)
	}
	without := l.export()
	delete(without, LeavesFile)
	if _, err := Export(without, Options{}); err != nil {
		t.Errorf("without the leaves: %v", err)
	}
}

// wrong wants an export to be found bad at a position (0: a file), and gives what was said.
func wrong(t *testing.T, files fs.FS, options Options, position int64) string {
	t.Helper()
	_, err := Export(files, options)
	var bad *Error
	if !errors.As(err, &bad) || bad.Position != position {
		t.Errorf("got %v, want an error at position %d", err, position)
		return ""
	}
	return bad.Error()
}

func TestAcceptance24_TamperingIsFoundAndItsFirstPositionNamed(t *testing.T) {
	t.Parallel()
	l := sample(t)
	line := func(position int) []byte { return bytes.Clone(l.lines[position-1]) }
	replace := func(lines ...[]byte) fstest.MapFS {
		files := l.export()
		files[EventsFile] = &fstest.MapFile{Data: bytes.Join(lines, nil)}
		return files
	}
	with := func(position int, change func(e *domain.Recorded)) fstest.MapFS {
		e := l.events[position-1]
		change(&e)
		lines := append([][]byte{}, l.lines...)
		lines[position-1] = AppendLine(nil, e)
		return replace(lines...)
	}
	for name, c := range map[string]struct {
		files    fstest.MapFS
		position int64
	}{
		"a byte of a body":              {replace(concat(l.lines[:41], bytes.Replace(line(42), []byte("RUN go"), []byte("RUN gp"), 1), l.lines[42:])...), 42},
		"a body with its hash":          {with(42, func(e *domain.Recorded) { e.Body = []byte(`{"build":"other"}`) }), 42},
		"an actor":                      {with(300, func(e *domain.Recorded) { e.Actor = "token:2" }), 300},
		"a time":                        {with(700, func(e *domain.Recorded) { e.OccurredAt = e.OccurredAt.Add(1000) }), 700},
		"a dropped line":                {replace(concat(l.lines[:41], nil, l.lines[42:])...), 42},
		"the first line":                {replace(l.lines[1:]...), 1},
		"the last line":                 {replace(l.lines[:699]...), 700},
		"two lines swapped":             {replace(concat(l.lines[:41], append(line(43), line(42)...), l.lines[43:])...), 42},
		"a line twice":                  {replace(concat(l.lines[:41], append(line(42), line(42)...), l.lines[42:])...), 43},
		"a line more":                   {replace(concat(l.lines, AppendLine(nil, event(701, 1)), nil)...), 701},
		"a file cut within a line":      {replace(concat(l.lines[:41], line(42)[:50], nil)...), 42},
		"a space more":                  {replace(concat(l.lines[:41], bytes.Replace(line(42), []byte(`,"epoch":`), []byte(`, "epoch":`), 1), l.lines[42:])...), 42},
		"a name's case":                 {replace(concat(l.lines[:41], bytes.Replace(line(42), []byte(`"actor"`), []byte(`"Actor"`), 1), l.lines[42:])...), 42},
		"an empty line":                 {replace(concat(l.lines[:41], append([]byte("\n"), line(42)...), l.lines[42:])...), 42},
		"nothing at all":                {replace(), 1},
		"a later epoch nobody signed":   {with(42, func(e *domain.Recorded) { e.Cursor.LogEpoch = 2 }), 42},
		"an earlier epoch":              {with(42, func(e *domain.Recorded) { e.Cursor.LogEpoch = 0 }), 42},
		"a line without its line break": {replace(concat(l.lines[:699], bytes.TrimSuffix(line(700), []byte("\n")), nil)...), 700},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wrong(t, c.files, Options{}, c.position)
			// Without the leaves it is found as well, at the latest at the next checkpoint.
			without := maps.Clone(c.files)
			delete(without, LeavesFile)
			var bad *Error
			if _, err := Export(without, Options{}); !errors.As(err, &bad) || bad.Position > c.position || bad.Position < 1 {
				t.Errorf("without the leaves: %v", err)
			}
		})
	}
}

func concat(before [][]byte, line []byte, after [][]byte) (all [][]byte) {
	all = append(append(all, before...), line)
	return append(all, after...)
}

func TestAcceptance24_CheckpointsKeysAndLeavesAreChecked(t *testing.T) {
	t.Parallel()
	l := sample(t)
	other := newLog(t)
	other.secret = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	other.keys.Public = []ed25519.PublicKey{other.secret.Public().(ed25519.PublicKey)}
	otherKey, err := other.keys.File([]int64{1})
	if err != nil {
		t.Fatal(err)
	}
	newest := CheckpointFolder + "/1.700"
	for name, c := range map[string]struct {
		file string
		data []byte
		says string
	}{
		"garbage":               {newest, []byte("garbage"), "no checkpoint"},
		"an empty checkpoint":   {newest, nil, "no checkpoint"},
		"another root":          {newest, bytes.Replace(l.files[newest].Data, []byte("\n700\n"), []byte("\n701\n"), 1), "signature"},
		"a cut signature":       {newest, l.files[newest].Data[:len(l.files[newest].Data)-10], "signature"},
		"another log's":         {newest, bytes.Replace(l.files[newest].Data, []byte(logID), []byte("1"+logID[1:]), 1), "log"},
		"another key":           {KeyFile, otherKey, "signature"},
		"no key":                {KeyFile, []byte("\n"), "no key"},
		"garbage for a key":     {KeyFile, []byte("garbage\n"), "key"},
		"a leaf":                {LeavesFile, append([]byte{^l.leaves[0]}, l.leaves[1:]...), "tree"},
		"leaves cut short":      {LeavesFile, l.leaves[:len(l.leaves)-1], "missing"},
		"a leaf more":           {LeavesFile, append(bytes.Clone(l.leaves), 0), "more"},
		"a root that isn't":     {CheckpointFolder + "/1.256", signedAs(t, l, Checkpoint{LogID: logID, Epoch: 1, Size: 256}), "not what was signed"},
		"a head beyond the end": {CheckpointFolder + "/1.701", signedAs(t, l, Checkpoint{LogID: logID, Epoch: 1, Size: 701}), "missing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files := l.export()
			files[c.file] = &fstest.MapFile{Data: c.data}
			_, err := Export(files, Options{})
			var bad *Error
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
	none := l.export()
	for name := range none {
		if strings.HasPrefix(name, CheckpointFolder+"/") {
			delete(none, name)
		}
	}
	none[CheckpointFolder] = &fstest.MapFile{Mode: fs.ModeDir}
	wrong(t, none, Options{}, 0)
	wrong(t, l.export(), Options{Key: otherKey}, 0)
}

func signedAs(t *testing.T, l *log, c Checkpoint) []byte {
	t.Helper()
	signed, err := l.keys.Sign(c, func(text []byte) ([]byte, error) { return ed25519.Sign(l.secret, text), nil })
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func TestAcceptance24_AnyTwoCheckpointsAreConsistent(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	var heads []Checkpoint
	for range 40 {
		l.grow(1 + rand.IntN(60))
		c, _ := l.sign()
		heads = append(heads, c)
	}
	for i, older := range heads {
		for _, newer := range heads[i:] {
			proof, err := tlog.ProveTree(newer.Size, older.Size, tlog.HashReaderFunc(l.hash))
			if err == nil {
				err = tlog.CheckTree(proof, newer.Size, newer.Root, older.Size, older.Root)
			}
			if err != nil {
				t.Fatalf("%s and %s: %v", older.Name(), newer.Name(), err)
			}
		}
	}
}

func TestWhatWasKeptElsewhereTellsOfAnotherHistory(t *testing.T) {
	t.Parallel()
	l := sample(t)
	kept := l.files[CheckpointFolder+"/1.700"].Data
	if _, err := Export(l.export(), Options{Checkpoints: [][]byte{kept}}); err != nil {
		t.Fatal(err)
	}
	// Who has the key signs another history; or hides the newest part of this one.
	other := newLog(t)
	other.grow(41)
	changed := other.events[40]
	changed.Actor = "somebody"
	other.tree, other.lines = &Tree{}, nil
	for _, e := range append(other.events[:40:40], changed) {
		other.tree.Add(LeafHash(e))
		other.lines = append(other.lines, AppendLine(nil, e))
	}
	other.head()
	files := other.export()
	delete(files, LeavesFile)
	if _, err := Export(files, Options{}); err != nil {
		t.Fatal(err)
	}
	wrong(t, files, Options{Checkpoints: [][]byte{kept}}, 42)
	short := newLog(t)
	short.grow(40)
	short.head()
	wrong(t, short.export(), Options{Checkpoints: [][]byte{kept}}, 41)
}

func TestAForkIsToldAndWhatItLost(t *testing.T) {
	t.Parallel()
	l := sample(t)
	kept := l.files[CheckpointFolder+"/1.700"].Data
	l.lose(650)
	l.head() // before anything new
	files := l.export()
	report, err := Export(files, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := "[{2 651}] [{1 700 650}] 7"
	if got := fmt.Sprint(report.Forks, report.Lost, report.Checkpoints); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	l.grow(100)
	l.head()
	if report, err = Export(l.export(), Options{Checkpoints: [][]byte{kept}}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(report.Forks, report.Lost, report.Checkpoints); got != "[{2 651}] [{1 700 650} {1 700 650}] 8" {
		t.Errorf("got %s", got)
	}
	// What stands before the fork is held against the checkpoints of the epoch before.
	changed := l.events[498]
	changed.Actor = "somebody"
	l.lines[498] = AppendLine(nil, changed)
	wrong(t, l.export(), Options{}, 499)
	// Without a signature of the new epoch, it is no fork but a loss.
	files = l.export()
	delete(files, CheckpointFolder+"/2.650")
	delete(files, CheckpointFolder+"/2.750")
	files[EventsFile] = &fstest.MapFile{Data: bytes.Join(l.lines[:498], nil)}
	wrong(t, files, Options{}, 499)
}

func TestAProjectsPartIsProvenEventByEvent(t *testing.T) {
	t.Parallel()
	l := sample(t)
	files := l.part("prj_1")
	report, err := Export(files, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if report.Events != 175 || report.Project != "prj_1" || report.Size != 700 {
		t.Errorf("got %+v", report)
	}
	lines := bytes.SplitAfter(files[EventsFile].Data, []byte("\n")) // positions 1, 5, 9, …
	proofs := bytes.SplitAfter(files[ProofsFile].Data, []byte("\n"))
	change := func(file string, data []byte) fstest.MapFS {
		changed := maps.Clone(files)
		changed[file] = &fstest.MapFile{Data: data}
		return changed
	}
	e := l.events[4]
	e.Actor = "somebody"
	wrong(t, change(EventsFile, bytes.Join(concat(lines[:1], AppendLine(nil, e), lines[2:]), nil)), Options{}, 5)
	wrong(t, change(EventsFile, bytes.Join(concat(lines[:1], nil, lines[2:]), nil)), Options{}, 9)
	wrong(t, change(EventsFile, bytes.Replace(files[EventsFile].Data, []byte("RUN go"), []byte("RUN gp"), 1)), Options{}, 1)
	wrong(t, change(ProofsFile, bytes.Join(concat(proofs[:1], nil, proofs[2:]), nil)), Options{}, 5)
	wrong(t, change(ProofsFile, append(bytes.Clone(files[ProofsFile].Data), proofs[0]...)), Options{}, 0)
	wrong(t, change(ProofsFile, bytes.Replace(files[ProofsFile].Data, []byte(`"hashes"`), []byte(`"Hashes"`), 1)), Options{}, 1)
	// Both dropped: a gap in a stream.
	both := change(EventsFile, bytes.Join(concat(lines[:1], nil, lines[2:]), nil))
	both[ProofsFile] = &fstest.MapFile{Data: bytes.Join(concat(proofs[:1], nil, proofs[2:]), nil)}
	if says := wrong(t, both, Options{}, 45); !strings.Contains(says, "version 2 after 0") {
		t.Errorf("got %s", says)
	}
}

// incomparable wants a given checkpoint to be told apart, with what to do, from one that isn't what was signed.
func incomparable(t *testing.T, files fs.FS, given []byte, says string) {
	t.Helper()
	_, err := Export(files, Options{Checkpoints: [][]byte{given}})
	var apart *NotComparableError
	if !errors.As(err, &apart) || apart.File != "the given checkpoint 1" || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want it not to be comparable: %q", err, says)
	}
}

func TestAPartIsHeldAgainstACheckpointThatWasKept(t *testing.T) {
	t.Parallel()
	l := sample(t)
	earlier, seldom, newest := l.files[CheckpointFolder+"/1.256"].Data, signedAs(t, l, headOf(t, l, 301)), l.files[CheckpointFolder+"/1.700"].Data
	files := l.part("prj_1")
	for _, given := range [][]byte{earlier, newest} {
		report, err := Export(files, Options{Checkpoints: [][]byte{given}})
		if err != nil || report.Checkpoints != 8 {
			t.Errorf("got %+v, %v", report, err)
		}
	}
	incomparable(t, files, seldom, "--checkpoint FILE")
	l.prove(files, 301)
	files[CheckpointFolder+"/1.301"] = &fstest.MapFile{Data: seldom}
	if _, err := Export(files, Options{Checkpoints: [][]byte{seldom}}); err != nil {
		t.Errorf("once it is proven: %v", err)
	}
	// Another history of the same epoch is forged, with its proof and without.
	for _, size := range []int64{256, 700} {
		wrong(t, files, Options{Checkpoints: [][]byte{signedAs(t, l, Checkpoint{LogID: logID, Epoch: 1, Size: size})}}, 0)
	}
	change := func(file string, data []byte) fstest.MapFS {
		changed := maps.Clone(files)
		changed[file] = &fstest.MapFile{Data: data}
		return changed
	}
	proof := files[ConsistencyFile(256)].Data
	wrong(t, change(ConsistencyFile(256), files[ConsistencyFile(301)].Data), Options{}, 0)
	wrong(t, change(ConsistencyFile(256), append(bytes.Clone(proof), ' ')), Options{}, 0)
	wrong(t, change(ConsistencyFile(257), proof), Options{}, 0)
	without := maps.Clone(files)
	delete(without, ConsistencyFile(256))
	wrong(t, without, Options{}, 0)
	// What is forged counts more than what can't be compared.
	lines := bytes.SplitAfter(files[EventsFile].Data, []byte("\n"))
	wrong(t, change(EventsFile, bytes.Join(lines[1:], nil)), Options{Checkpoints: [][]byte{signedAs(t, l, headOf(t, l, 302))}}, 5)
	l.grow(1)
	_, longer := l.sign()
	incomparable(t, files, longer, "only 700")
}

// headOf is the checkpoint that could have been signed of so many events.
func headOf(t *testing.T, l *log, size int64) Checkpoint {
	t.Helper()
	root, err := tlog.TreeHash(size, tlog.HashReaderFunc(l.hash))
	if err != nil {
		t.Fatal(err)
	}
	return Checkpoint{LogID: logID, Epoch: l.epoch, Size: size, Root: root}
}

func TestAPartSaysNothingOfACheckpointThatARestoreMayHaveLost(t *testing.T) {
	t.Parallel()
	l := sample(t)
	kept, lost := l.files[CheckpointFolder+"/1.599"].Data, l.files[CheckpointFolder+"/1.700"].Data
	before := l.part("prj_1")
	l.lose(650)
	l.grow(1) // other than it was: events are of epoch 2
	l.head()
	l.grow(49)
	l.head() // as large as the lost one
	l.grow(50)
	files := l.part("prj_1")
	if _, err := Export(files, Options{Checkpoints: [][]byte{kept}}); err != nil {
		t.Errorf("one of before the fork: %v", err)
	}
	for name := range files {
		if name == CheckpointFolder+"/1.700" {
			t.Fatal("the part has a checkpoint that was lost: the test does not test")
		}
	}
	incomparable(t, files, lost, "only the whole log tells")
	l.prove(files, 651)
	_, later := l.sign()
	incomparable(t, before, later, "only the whole log tells")
	// No restore excuses another history up to where the epoch is still the log's.
	wrong(t, files, Options{Checkpoints: [][]byte{signedAs(t, l, Checkpoint{LogID: logID, Epoch: 1, Size: 256})}}, 0)
}

func TestStreamsThatHaveNoRoomAreCheckedAllTheSame(t *testing.T) {
	t.Parallel()
	l := sample(t)
	files := l.part("prj_1")
	lines := bytes.SplitAfter(files[EventsFile].Data, []byte("\n"))
	proofs := bytes.SplitAfter(files[ProofsFile].Data, []byte("\n"))
	for _, room := range []int{1, 2, 3, 9, 10} { // there are ten streams
		report, err := Export(files, Options{room: room})
		if err != nil || report.Events != 175 {
			t.Errorf("room for %d: %+v, %v", room, report, err)
		}
		for i := range lines[:20] { // each of the first two of every stream
			bad := maps.Clone(files)
			bad[EventsFile] = &fstest.MapFile{Data: bytes.Join(concat(lines[:i], nil, lines[i+1:]), nil)}
			bad[ProofsFile] = &fstest.MapFile{Data: bytes.Join(concat(proofs[:i], nil, proofs[i+1:]), nil)}
			wrong(t, bad, Options{room: room}, int64(4*(i+10)+1)) // where its stream goes on
		}
		// Of two gaps the first is told, whichever stream had room first.
		for i := range lines[:10] {
			bad := maps.Clone(files)
			bad[EventsFile] = &fstest.MapFile{Data: bytes.Join(append(concat(lines[:i], nil, lines[i+1:20]), lines[21:]...), nil)}
			bad[ProofsFile] = &fstest.MapFile{Data: bytes.Join(append(concat(proofs[:i], nil, proofs[i+1:20]), proofs[21:]...), nil)}
			wrong(t, bad, Options{room: room}, int64(4*(i+10)+1))
		}
	}
}

func TestStreamsAreFollowedInTheRoomThereIs(t *testing.T) {
	t.Parallel()
	const room, all = 100, 10_000
	s, followed, passes := newStreams(room), map[domain.Stream]bool{}, 0
	for more := true; more; more = s.more() {
		passes++
		for version := range int64(2) {
			for n := range all {
				e := domain.Recorded{Stream: domain.Stream(fmt.Sprint("build/", n)), Version: version + 1}
				if err := s.next(e); err != nil {
					t.Fatal(err)
				}
				if len(s.versions) > room {
					t.Fatalf("%d streams are followed, there is room for %d", len(s.versions), room)
				}
				if e.Version = 7; version == 1 && s.next(e) != nil {
					followed[e.Stream] = true
				}
			}
		}
	}
	if len(followed) != all || passes > 4*all/room {
		t.Errorf("%d of %d streams were followed, in %d passes", len(followed), all, passes)
	}
}

// Any single byte of any file may change: it is noticed.
func FuzzAChangedByteIsNoticed(f *testing.F) {
	l := newLog(f)
	l.grow(20)
	l.head()
	l.grow(23)
	l.head()
	whole, part := l.export(), l.part("prj_2")
	f.Add(uint8(0), uint32(100), byte(1))
	f.Add(uint8(1), uint32(5000), byte(0x20))
	f.Add(uint8(9), uint32(77), byte(0x80))
	f.Fuzz(func(t *testing.T, pick uint8, at uint32, flip byte) {
		files := maps.Clone(whole)
		if pick%2 == 1 {
			files = maps.Clone(part)
		}
		names := []string{EventsFile, LeavesFile, ProofsFile, CheckpointFolder + "/1.43", CheckpointFolder + "/1.20", ConsistencyFile(20)}
		name := names[int(pick/2)%len(names)]
		if files[name] == nil || flip == 0 {
			return
		}
		data := bytes.Clone(files[name].Data)
		data[int(at)%len(data)] ^= flip
		files[name] = &fstest.MapFile{Data: data}
		if _, err := Export(files, Options{}); err == nil {
			t.Errorf("byte %d of %s ^ %#x: %q", int(at)%len(data), name, flip, data)
		}
	})
}

func TestEveryBitOfEveryFileCounts(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	l.grow(3)
	l.head()
	for _, files := range []fstest.MapFS{l.export(), l.part("prj_1")} {
		delete(files, LeavesFile)
		for name, file := range files {
			for bit := range 8 * len(file.Data) {
				if name == KeyFile || bit%5 > 0 { // the key is what is trusted; see Options
					continue
				}
				data := bytes.Clone(file.Data)
				data[bit/8] ^= 1 << (bit % 8)
				changed := maps.Clone(files)
				changed[name] = &fstest.MapFile{Data: data}
				if _, err := Export(changed, Options{}); err == nil {
					t.Fatalf("bit %d of %s is not noticed: %q", bit, name, data)
				}
			}
		}
	}
}

func TestALineIsTheSameWhenReadAgain(t *testing.T) {
	t.Parallel()
	for n := range int64(50) {
		e := event(n+1, 1)
		line := AppendLine(nil, e)
		got, err := ReadLine(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil || LeafHash(got) != LeafHash(e) || !bytes.Equal(AppendLine(nil, got), line) {
			t.Fatalf("%s\n%v", line, err)
		}
	}
}

func FuzzReadLine(f *testing.F) {
	f.Add(AppendLine(nil, event(1, 1)))
	f.Add([]byte(`{"event":{"position":1,"epoch":1,"stream":"\u00`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if e, err := ReadLine(line); err == nil && !bytes.Equal(AppendLine(nil, e), append(bytes.Clone(line), '\n')) {
			t.Errorf("%q is read, and is no line", line)
		}
	})
}

func TestALineKeepsItsForm(t *testing.T) {
	t.Parallel()
	const file = "testdata/line.jsonl"
	line := AppendLine(nil, event(7, 2))
	if *update {
		if err := os.WriteFile(file, line, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(golden, line) {
		t.Errorf("exports are for ever: %v\ngot  %swant %s", err, line, golden)
	}
}

func TestACheckpointKeepsItsFormAndOtherToolsReadIt(t *testing.T) {
	t.Parallel()
	const file = "testdata/checkpoint"
	l := newLog(t)
	l.grow(300)
	_, signed := l.sign()
	if *update {
		if err := os.WriteFile(file, signed, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(golden, signed) {
		t.Errorf("checkpoints are for ever: %v\ngot  %swant %s", err, signed, golden)
	}
	key, err := l.keys.File([]int64{1})
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(string(key)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := note.Open(signed, note.VerifierList(verifier)); err != nil {
		t.Error(err)
	}
}

func TestTheTreeIsRFC6962sAndCanBeTakenUpAgain(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	l.tree.OnTile = func(level int, index int64, hashes []tlog.Hash) {
		for i, hash := range hashes {
			stored := tlog.StoredHashIndex(TileHeight*level, index*TileWidth+int64(i))
			if stored >= int64(len(l.hashes)) { // its last leaf's hashes are stored after it
				continue
			}
			if hash != l.hashes[stored] {
				t.Fatalf("tile %d/%d has another hash at %d", level, index, i)
			}
		}
	}
	if got, _ := tlog.TreeHash(0, nil); l.tree.Root() != got {
		t.Errorf("the empty tree has root %s", l.tree.Root())
	}
	for _, n := range []int{1, 1, 1, 4, 200, 48, 1, 1, 1000, 300} {
		l.grow(n)
		want, err := tlog.TreeHash(l.tree.Size(), tlog.HashReaderFunc(l.hash))
		if err != nil || l.tree.Root() != want {
			t.Fatalf("%d events: root %s, want %s, %v", l.tree.Size(), l.tree.Root(), want, err)
		}
		again, err := OpenTree(l.tree.Size(), tlog.HashReaderFunc(l.hash))
		if err != nil || again.Root() != want || again.Size() != l.tree.Size() {
			t.Fatalf("%d events: taken up again it has root %s, %v", l.tree.Size(), again.Root(), err)
		}
	}
}

// written puts a large export on disk, block by block.
func written(tb testing.TB, n int) string {
	tb.Helper()
	dir := tb.TempDir()
	events, err := os.Create(filepath.Join(dir, EventsFile))
	if err != nil {
		tb.Fatal(err)
	}
	leaves, err := os.Create(filepath.Join(dir, LeavesFile))
	if err != nil {
		tb.Fatal(err)
	}
	l := newLog(tb)
	var text, hashes []byte
	for i := range int64(n) {
		e := event(i+1, 1)
		leaf := LeafHash(e)
		l.tree.Add(leaf)
		text, hashes = AppendLine(text, e), append(hashes, leaf[:]...)
		if len(text) > 1<<20 || i == int64(n)-1 {
			if _, err := events.Write(text); err != nil {
				tb.Fatal(err)
			}
			if _, err := leaves.Write(hashes); err != nil {
				tb.Fatal(err)
			}
			text, hashes = text[:0], hashes[:0]
		}
		if (i+1)%10000 == 0 || i == int64(n)-1 {
			l.head()
		}
	}
	if err := errors.Join(events.Close(), leaves.Close()); err != nil {
		tb.Fatal(err)
	}
	key, err := l.keys.File([]int64{1})
	if err != nil {
		tb.Fatal(err)
	}
	l.files[KeyFile] = &fstest.MapFile{Data: key}
	if err := os.CopyFS(dir, l.files); err != nil {
		tb.Fatal(err)
	}
	return dir
}

func TestVerificationTakesConstantMemory(t *testing.T) {
	dir := written(t, 60_000)
	info, err := os.Stat(filepath.Join(dir, EventsFile))
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	peak := uint64(0)
	watched := watchedFS{os.DirFS(dir), func() {
		runtime.ReadMemStats(&after)
		peak = max(peak, after.HeapAlloc)
	}}
	if _, err := Export(watched, Options{}); err != nil {
		t.Fatal(err)
	}
	if grown := int64(peak) - int64(before.HeapAlloc); grown > 16<<20 || info.Size() < 32<<20 {
		t.Errorf("%d MiB more for a file of %d MiB", grown>>20, info.Size()>>20)
	}
}

// watchedFS calls look from time to time while the events are read.
type watchedFS struct {
	fs.FS

	look func()
}

func (w watchedFS) Open(name string) (fs.File, error) {
	f, err := w.FS.Open(name)
	if name == EventsFile && err == nil {
		return &watchedFile{f, w.look, 0}, nil
	}
	return f, err
}

type watchedFile struct {
	fs.File

	look  func()
	reads int
}

func (w *watchedFile) Read(b []byte) (int, error) {
	if w.reads++; w.reads%20 == 0 {
		w.look()
	}
	return w.File.Read(b)
}

func BenchmarkVerifyMillion(b *testing.B) {
	const n = 1_000_000
	dir := written(b, n)
	for b.Loop() {
		if _, err := Export(os.DirFS(dir), Options{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(n/(b.Elapsed().Seconds()/float64(b.N)), "events/s")
}

func BenchmarkTree(b *testing.B) {
	events := make([]domain.Recorded, 1000)
	for i := range events {
		events[i] = event(int64(i)+1, 1)
	}
	var tree Tree
	tree.OnTile = func(int, int64, []tlog.Hash) {}
	for b.Loop() {
		for _, e := range events {
			tree.Add(LeafHash(e))
		}
	}
	b.ReportMetric(float64(b.N)*float64(len(events))/b.Elapsed().Seconds(), "events/s")
}
