// Package verify receives an export of the log (`pipeops audit export`) as a file system and hands back whether it is
// what was signed, and where it isn't; pure but for reading. It needs no server, no database and no configuration, and
// imports only the standard library, golang.org/x/mod and the shape of an event.
//
// An export holds
//
//	events.jsonl   a line per event, in order of position; see AppendLine
//	leaves         the 32 bytes of each event's leaf hash, in order of position, as the server's tree has them; may
//	               be missing: then a changed envelope is only known to lie between two checkpoints
//	checkpoints/   signed checkpoints, one a file; see Checkpoint
//	key.pub        the keys that sign them; keep a copy elsewhere, see Options
//
// and one project's part holds, instead of leaves,
//
//	proofs.jsonl   a line per event: {"position":1,"hashes":["<base64>",…]}, the RFC 6962 audit path from its leaf to
//	               the newest checkpoint
//	consistency/   a file for the size of each earlier checkpoint: {"size":1,"hashes":["<base64>",…]}, the RFC 6962
//	               proof that the log of the newest checkpoint begins with what that one saw
//
// Memory is constant, however many events and streams there are. A part of more than 131,072 streams is read more than
// once for that: once for about so many of them.
//
//	report, err := verify.Export(os.DirFS("export"), verify.Options{})
//	var wrong *verify.Error // position 42: …
package verify

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/pipeops/pipeops/domain"
)

// Names of the files of an export.
const (
	EventsFile       = "events.jsonl"
	LeavesFile       = "leaves"
	ProofsFile       = "proofs.jsonl"
	KeyFile          = "key.pub"
	CheckpointFolder = "checkpoints"

	ConsistencyFolder = "consistency"
)

// Options say what is trusted besides the export itself. Whoever can change all of an export, and has the signing
// key, can make another one that is good in itself: what was kept elsewhere tells.
type Options struct {
	Key         []byte   // content of a key.pub kept elsewhere; empty: the export's own
	Checkpoints [][]byte // signed checkpoints kept elsewhere: the export must hold all that they saw

	room int // for so many streams at once; 0: maxStreams
}

// Report says what was found good.
type Report struct {
	LogID       string           `json:"logId"`
	Project     domain.ProjectID `json:"project,omitempty"` // of a project's part
	Events      int64            `json:"events"`
	Checkpoints int              `json:"checkpoints"` // whose signature and root are good
	Epoch       int64            `json:"epoch"`       // of the newest checkpoint
	Size        int64            `json:"size"`        // of the log, by the newest checkpoint
	Root        string           `json:"root"`        // of the newest checkpoint, base64
	Keys        []string         `json:"keys"`        // Ed25519 public keys that were trusted, base64
	Forks       []Fork           `json:"forks,omitempty"`
	Lost        []LostCheckpoint `json:"lost,omitempty"`
}

// Fork is where a restore or failover began a new log epoch.
type Fork struct {
	Epoch int64 `json:"epoch"`
	First int64 `json:"first"` // its first position
}

// LostCheckpoint is one of an earlier epoch that saw events which a restore has lost. It can't be held against the
// log: that it was restored is signed by a checkpoint of a later epoch.
type LostCheckpoint struct {
	Epoch int64 `json:"epoch"`
	Size  int64 `json:"size"`
	Kept  int64 `json:"kept"` // how many of its events are still in the log
}

// Error says what is wrong with an export, and where.
type Error struct {
	Position int64  // the first bad one; 0: no event, but File itself
	File     string // where it was seen
	Reason   string
}

func (e *Error) Error() string {
	if e.Position == 0 {
		return fmt.Sprintf("%s: %s", e.File, e.Reason)
	}
	return fmt.Sprintf("position %d: %s (%s)", e.Position, e.Reason, e.File)
}

// Export checks an export: every body's hash, every leaf, that positions have no gap (in one project's part: that no
// stream has one), the root at every checkpoint, so that any two of them are consistent, and every signature. Errors:
// *Error; *NotComparableError, when all is good but nothing in a part says whether a checkpoint that was given is as
// well; or the file system's.
func Export(export fs.FS, options Options) (Report, error) {
	keys, err := trusted(export, options)
	if err != nil {
		return Report{}, err
	}
	heads, err := checkpoints(export, keys, options)
	if err != nil {
		return Report{}, err
	}
	v := &verification{export: export, heads: heads, newest: newest(heads), epoch: 1, room: options.room}
	v.report = Report{
		LogID: keys.LogID, Epoch: v.newest.Epoch, Size: v.newest.Size, Root: v.newest.Root.String(),
		Keys: keys.Fingerprints(), Checkpoints: len(heads),
	}
	_, err = fs.Stat(export, ProofsFile)
	switch {
	case err == nil:
		err = v.project()
		return v.report, err
	case !errors.Is(err, fs.ErrNotExist):
		return Report{}, err
	}
	err = v.whole()
	return v.report, err
}

func trusted(export fs.FS, options Options) (Keys, error) {
	file := options.Key
	if len(file) == 0 {
		var err error
		if file, err = fs.ReadFile(export, KeyFile); err != nil {
			return Keys{}, fmt.Errorf("read the export's key: %w", err)
		}
	}
	keys, err := ParseKeys(file)
	if err != nil {
		return Keys{}, &Error{File: KeyFile, Reason: err.Error()}
	}
	return keys, nil
}

// head is a checkpoint, and where it was read.
type head struct {
	Checkpoint

	file  string
	given bool // by Options
}

// checkpoints reads all of them, ordered by size.
func checkpoints(export fs.FS, keys Keys, options Options) (heads []head, err error) {
	add := func(file string, given bool, signed []byte) error {
		c, err := keys.Open(signed)
		if err != nil {
			return &Error{File: file, Reason: err.Error()}
		}
		heads = append(heads, head{c, file, given})
		return nil
	}
	entries, err := fs.ReadDir(export, CheckpointFolder)
	if err != nil {
		return nil, fmt.Errorf("list the export's checkpoints: %w", err)
	}
	for _, entry := range entries {
		file := CheckpointFolder + "/" + entry.Name()
		signed, err := fs.ReadFile(export, file)
		if err != nil {
			return nil, fmt.Errorf("read a checkpoint of the export: %w", err)
		}
		if err := add(file, false, signed); err != nil {
			return nil, err
		}
	}
	if len(heads) == 0 {
		return nil, &Error{File: CheckpointFolder, Reason: "there is no checkpoint: nothing is signed"}
	}
	for i, signed := range options.Checkpoints {
		if err := add(fmt.Sprintf("the given checkpoint %d", i+1), true, signed); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(heads, func(a, b head) int { return cmp.Or(cmp.Compare(a.Size, b.Size), cmp.Compare(a.Epoch, b.Epoch)) })
	return heads, nil
}

func newest(heads []head) head {
	return slices.MaxFunc(heads, func(a, b head) int { return a.compare(b.Checkpoint) })
}

// verification is one run of Export.
type verification struct {
	export fs.FS
	heads  []head // by size; those that are compared already are cut off
	newest head
	report Report
	room   int // Options.room

	tree  Tree
	epoch int64 // of the event before
	since int64 // position that the checkpoint before has seen
}

// whole checks an export of the log.
func (v *verification) whole() error {
	leaves, err := openLeaves(v.export)
	if err != nil {
		return err
	}
	defer leaves.close()
	if err := v.compare(); err != nil { // those of the empty log
		return err
	}
	err = events(v.export, func(e domain.Recorded, leaf tlog.Hash) error {
		if err := v.next(e); err != nil {
			return err
		}
		if err := leaves.check(e.Cursor.Position, leaf); err != nil {
			return err
		}
		v.tree.Add(leaf)
		return v.compare()
	})
	if bad, ok := errors.AsType[*lineError](err); ok {
		return &Error{Position: v.tree.Size() + 1, File: EventsFile, Reason: bad.reason()}
	}
	if err == nil {
		err = v.end()
	}
	if err == nil {
		err = leaves.end()
	}
	return err
}

// next says whether an event may come next.
func (v *verification) next(e domain.Recorded) error {
	position := v.tree.Size() + 1
	wrong := func(format string, args ...any) error {
		return &Error{Position: position, File: EventsFile, Reason: fmt.Sprintf(format, args...)}
	}
	switch got := e.Cursor.Position; {
	case got > position:
		return wrong("it is missing: position %d comes instead", got)
	case got < position:
		return wrong("position %d comes again instead of it", got)
	case position > v.newest.Size:
		return wrong("it is beyond what the newest checkpoint saw, %s: nobody signed it", v.newest.file)
	case e.Cursor.LogEpoch < v.epoch:
		return wrong("its log epoch %d is below that of the event before it, %d", e.Cursor.LogEpoch, v.epoch)
	case e.Cursor.LogEpoch > v.newest.Epoch:
		return wrong("its log epoch %d is above that of the newest checkpoint, %d", e.Cursor.LogEpoch, v.newest.Epoch)
	}
	if e.Cursor.LogEpoch > v.epoch { // what earlier epochs saw beyond this was lost
		v.report.Forks = append(v.report.Forks, Fork{Epoch: e.Cursor.LogEpoch, First: position})
		v.lose(e.Cursor.LogEpoch, v.tree.Size())
	}
	v.epoch = e.Cursor.LogEpoch
	v.report.Events++
	return nil
}

// lose takes out the checkpoints of epochs before epoch that saw more than is left of theirs.
func (v *verification) lose(epoch, kept int64) {
	v.heads = slices.DeleteFunc(v.heads, func(h head) bool {
		lost := h.Epoch < epoch && h.Size > kept
		if lost {
			v.report.Lost = append(v.report.Lost, LostCheckpoint{Epoch: h.Epoch, Size: h.Size, Kept: kept})
			v.report.Checkpoints--
		}
		return lost
	})
}

// compare compares the tree with the checkpoints of its size.
func (v *verification) compare() error {
	for len(v.heads) > 0 && v.heads[0].Size == v.tree.Size() {
		h := v.heads[0]
		if root := v.tree.Root(); root != h.Root {
			between := fmt.Sprintf("what stands between here and position %d", h.Size)
			if h.Size <= v.since+1 {
				between = "it"
			}
			return &Error{Position: v.since + 1, File: EventsFile, Reason: fmt.Sprintf("%s is not what was signed: checkpoint %s has root %s, the events give %s", between, h.file, h.Root, root)}
		}
		v.since, v.heads = h.Size, v.heads[1:]
	}
	return nil
}

// end says whether the export ends where the newest checkpoint does.
func (v *verification) end() error {
	if size := v.tree.Size(); size < v.newest.Size {
		return &Error{
			Position: size + 1, File: EventsFile,
			Reason: fmt.Sprintf("it and what follows up to position %d is missing, which checkpoint %s saw", v.newest.Size, v.newest.file),
		}
	}
	if v.newest.Epoch > v.epoch {
		v.report.Forks = append(v.report.Forks, Fork{Epoch: v.newest.Epoch, First: v.newest.Size + 1})
	}
	v.lose(v.newest.Epoch, v.newest.Size)
	return nil
}
