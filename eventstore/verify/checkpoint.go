package verify

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Checkpoint says what the log began with at a time: a C2SP tlog-checkpoint. Its origin, and so the name of the key
// that signs it, is "pipeops.log/<log id>/<log epoch>": after a fork it is another log's.
type Checkpoint struct {
	LogID string // UUID
	Epoch int64  // log epoch, from 1
	Size  int64  // number of events
	Root  tlog.Hash
}

const originPrefix = "pipeops.log/"

// Origin names a log in an epoch.
func Origin(logID string, epoch int64) string {
	return originPrefix + logID + "/" + strconv.FormatInt(epoch, 10)
}

func parseOrigin(origin string) (logID string, epoch int64, ok bool) {
	rest, ok := strings.CutPrefix(origin, originPrefix)
	logID, number, cut := strings.Cut(rest, "/")
	epoch, err := strconv.ParseInt(number, 10, 64)
	return logID, epoch, ok && cut && err == nil && epoch > 0 && Origin(logID, epoch) == origin && logID != ""
}

// Text is what is signed.
func (c Checkpoint) Text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", Origin(c.LogID, c.Epoch), c.Size, c.Root)
}

// Name is that of its file in an export: "<epoch>.<size>".
func (c Checkpoint) Name() string { return fmt.Sprintf("%d.%d", c.Epoch, c.Size) }

// compare orders checkpoints by how new they are.
func (c Checkpoint) compare(other Checkpoint) int {
	if c.Epoch != other.Epoch {
		return int(c.Epoch - other.Epoch)
	}
	return int(c.Size - other.Size)
}

// Keys are the public keys of a log. A key signs in every epoch of its log, so that whoever keeps it elsewhere needs
// no new one after a fork.
type Keys struct {
	LogID  string
	Public []ed25519.PublicKey // the newest last
}

// File is key.pub: one C2SP verifier key a line, for each epoch and key.
func (k Keys) File(epochs []int64) ([]byte, error) {
	var out bytes.Buffer
	for _, epoch := range epochs {
		for _, public := range k.Public {
			line, err := note.NewEd25519VerifierKey(Origin(k.LogID, epoch), public)
			if err != nil {
				return nil, err
			}
			fmt.Fprintln(&out, line)
		}
	}
	return out.Bytes(), nil
}

// ParseKeys reads key.pub.
func ParseKeys(file []byte) (k Keys, err error) {
	for line := range strings.Lines(string(file)) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if _, err := note.NewVerifier(line); err != nil {
			return k, fmt.Errorf("key %.80q: %w", line, err)
		}
		parts := strings.SplitN(line, "+", 3) // NewVerifier has seen to the form: base64 of a byte for Ed25519 and the key
		raw, err := base64.StdEncoding.DecodeString(parts[2])
		if err != nil {
			return k, fmt.Errorf("key %.80q: %w", line, err)
		}
		id, _, ok := parseOrigin(parts[0])
		if !ok || k.LogID != "" && k.LogID != id {
			return k, fmt.Errorf("key of %q: want keys of one log, %s<log id>/<log epoch>", parts[0], originPrefix)
		}
		k.LogID = id
		if public := ed25519.PublicKey(raw[1:]); !slices.ContainsFunc(k.Public, func(p ed25519.PublicKey) bool { return p.Equal(public) }) {
			k.Public = append(k.Public, public)
		}
	}
	if len(k.Public) == 0 {
		return k, errors.New("there is no key in it")
	}
	return k, nil
}

// Fingerprints are what people compare keys by: base64 of the Ed25519 public keys.
func (k Keys) Fingerprints() (all []string) {
	for _, public := range k.Public {
		all = append(all, base64.StdEncoding.EncodeToString(public))
	}
	return all
}

// Open reads a signed checkpoint, if one of the keys has signed it.
func (k Keys) Open(signed []byte) (c Checkpoint, err error) {
	origin, _, _ := strings.Cut(string(signed), "\n")
	var ok bool
	if c.LogID, c.Epoch, ok = parseOrigin(origin); !ok {
		return c, fmt.Errorf("it is no checkpoint: it begins with %.80q, want %s<log id>/<log epoch>", origin, originPrefix)
	}
	if c.LogID != k.LogID {
		return c, fmt.Errorf("it is a checkpoint of log %s, the key is of %s", c.LogID, k.LogID)
	}
	var verifiers []note.Verifier
	for _, public := range k.Public {
		line, err := note.NewEd25519VerifierKey(origin, public)
		if err != nil {
			return c, err
		}
		verifier, err := note.NewVerifier(line)
		if err != nil {
			return c, err
		}
		verifiers = append(verifiers, verifier)
	}
	opened, err := note.Open(signed, note.VerifierList(verifiers...))
	if err != nil {
		return c, fmt.Errorf("its signature is not good: %w", err)
	}
	return parse(opened.Text)
}

// Parse reads a signed checkpoint without asking who has signed it.
func Parse(signed []byte) (Checkpoint, error) {
	text, _, _ := strings.Cut(string(signed), "\n\n")
	return parse(text + "\n")
}

// parse reads what is signed.
func parse(text string) (c Checkpoint, err error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 {
		return c, fmt.Errorf("it has %d lines, want 3", len(lines)-1)
	}
	var ok bool
	if c.LogID, c.Epoch, ok = parseOrigin(lines[0]); !ok {
		return c, fmt.Errorf("it is no checkpoint: it begins with %.80q, want %s<log id>/<log epoch>", lines[0], originPrefix)
	}
	size, errSize := strconv.ParseInt(lines[1], 10, 64)
	root, errRoot := tlog.ParseHash(lines[2])
	c.Size, c.Root = size, root
	if errSize != nil || errRoot != nil || size < 0 || c.Text() != text {
		return c, errors.New("its size or root is not of the form of a checkpoint")
	}
	return c, nil
}

// Sign signs a checkpoint with the newest of the keys, whose signing key sign uses.
func (k Keys) Sign(c Checkpoint, sign func(text []byte) ([]byte, error)) ([]byte, error) {
	origin := Origin(c.LogID, c.Epoch)
	line, err := note.NewEd25519VerifierKey(origin, k.Public[len(k.Public)-1])
	if err != nil {
		return nil, err
	}
	verifier, err := note.NewVerifier(line)
	if err != nil {
		return nil, err
	}
	return note.Sign(&note.Note{Text: c.Text()}, signer{verifier, sign})
}

// signer implements note.Signer with a key that stays where it is.
type signer struct {
	note.Verifier

	sign func(text []byte) ([]byte, error)
}

// Sign implements note.Signer.
func (s signer) Sign(text []byte) ([]byte, error) { return s.sign(text) }
