package verify

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"

	"golang.org/x/mod/sumdb/tlog"
)

// NotComparableError says that a checkpoint which was given can be held against nothing that a project's part has.
// It is no verdict: all that the part holds is good.
type NotComparableError struct {
	File   string // which of those that were given
	Reason string // and what to do
}

func (e *NotComparableError) Error() string { return e.File + ": " + e.Reason }

// ConsistencyFile names the file of an export that proves that the log of its newest checkpoint begins with so many
// events.
func ConsistencyFile(size int64) string {
	return ConsistencyFolder + "/" + strconv.FormatInt(size, 10)
}

// AppendConsistency adds what stands in a ConsistencyFile.
func AppendConsistency(b []byte, size int64, proof tlog.TreeProof) []byte {
	b = strconv.AppendInt(append(b, `{"size":`...), size, 10)
	return appendHashes(b, proof)
}

// earlier holds the checkpoints against the newest one of the export's own, which the proofs of events lead to. The
// first of those given that can't be is told apart, because what is forged counts more.
func (v *verification) earlier() (incomparable, err error) {
	var own, given []head
	for _, h := range v.heads {
		if h.given {
			given = append(given, h)
		} else {
			own = append(own, h)
		}
	}
	v.newest = newest(own)
	v.report.Epoch, v.report.Size, v.report.Root = v.newest.Epoch, v.newest.Size, v.newest.Root.String()
	for _, h := range own {
		if reason, err := v.begins(h); err != nil {
			return nil, err
		} else if reason != nil {
			return nil, &Error{File: h.file, Reason: reason.text}
		}
	}
	if err := v.noOtherProofs(own); err != nil {
		return nil, err
	}
	for _, h := range given {
		reason, err := v.begins(h)
		switch {
		case err != nil:
			return nil, err
		case reason == nil:
		case reason.forged && v.sameLog(h, own):
			return nil, &Error{File: h.file, Reason: reason.text}
		case incomparable == nil:
			incomparable = v.notComparable(h, *reason)
		}
	}
	return incomparable, nil
}

// doubt is why the newest checkpoint's log is not known to begin with what another one saw.
type doubt struct {
	text   string
	forged bool // it is known not to; else nothing is known
}

// begins says what speaks against the newest checkpoint's log beginning with what h saw, nil for nothing.
func (v *verification) begins(h head) (*doubt, error) {
	another := &doubt{fmt.Sprintf("the log of %s does not begin with what it saw: the log was two logs, or has forked", v.newest.file), true}
	switch {
	case h.Size > v.newest.Size:
		return &doubt{text: fmt.Sprintf("it saw %d events, the newest checkpoint of this part, %s, only %d", h.Size, v.newest.file, v.newest.Size)}, nil
	case h.Size == v.newest.Size && h.Root != v.newest.Root:
		return another, nil
	case h.Size == v.newest.Size:
		return nil, nil
	case h.Size == 0 && h.Root != (&Tree{}).Root():
		return another, nil
	case h.Size == 0:
		return nil, nil
	}
	proof, err := v.consistency(h.Size)
	if errors.Is(err, fs.ErrNotExist) {
		return &doubt{text: fmt.Sprintf("it saw %d events, and nothing here proves that the log of %s begins with them: %s is missing", h.Size, v.newest.file, ConsistencyFile(h.Size))}, nil
	}
	if err != nil {
		return nil, err
	}
	if proven := tlog.CheckTree(proof, v.newest.Size, v.newest.Root, h.Size, h.Root) == nil; !proven {
		return another, nil
	}
	return nil, nil
}

func (v *verification) consistency(size int64) (tlog.TreeProof, error) {
	text, err := fs.ReadFile(v.export, ConsistencyFile(size))
	if err != nil {
		return nil, fmt.Errorf("read a proof of the export: %w", err)
	}
	var told struct {
		Size   int64          `json:"size"`
		Hashes tlog.TreeProof `json:"hashes"`
	}
	if err := json.Unmarshal(text, &told); err != nil || told.Size != size || !bytes.Equal(AppendConsistency(nil, size, told.Hashes), text) {
		return nil, &Error{File: ConsistencyFile(size), Reason: "it is not of the form of an export, byte for byte"}
	}
	return told.Hashes, nil
}

// noOtherProofs sees to it that each file of proofs was checked: it is that of a checkpoint of the export.
func (v *verification) noOtherProofs(own []head) error {
	entries, err := fs.ReadDir(v.export, ConsistencyFolder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list the export's proofs: %w", err)
	}
	needed := map[string]bool{}
	for _, h := range own {
		if h.Size < v.newest.Size {
			needed[ConsistencyFile(h.Size)] = true
		}
	}
	for _, entry := range entries {
		if file := ConsistencyFolder + "/" + entry.Name(); !needed[file] {
			return &Error{File: file, Reason: "no checkpoint of the export has this size: nothing says whether it is right"}
		}
	}
	return nil
}

// sameLog says whether no restore can excuse that h has seen another log: what the log begins with came as far in the
// same epoch.
func (v *verification) sameLog(h head, own []head) bool {
	return h.Epoch <= v.newest.Epoch && slices.ContainsFunc(own, func(o head) bool { return o.Epoch <= h.Epoch && o.Size >= h.Size })
}

func (v *verification) notComparable(h head, why doubt) error {
	fix := "export it again with this checkpoint: pipeops audit export --project NAME --checkpoint FILE"
	if h.Epoch != v.newest.Epoch {
		fix = fmt.Sprintf("a restore was declared between log epoch %d of this checkpoint and %d of the part, and may have lost what it saw: "+
			"only the whole log tells: pipeops audit export, without --project", h.Epoch, v.newest.Epoch)
	}
	return &NotComparableError{File: h.file, Reason: why.text + "; " + fix}
}
