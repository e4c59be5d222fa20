package audit_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/verify"
	"github.com/pipeops/pipeops/handlers/audit"
)

// witness is one as C2SP's tlog-witness says, but for the cosignature.
type witness struct {
	t    *testing.T
	keys verify.Keys

	mu    sync.Mutex
	seen  map[int64]verify.Checkpoint // by log epoch, which is its origin
	down  int                         // so many requests it answers with 503
	tried int
}

func (w *witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tried++
	if w.down > 0 {
		w.down--
		http.Error(rw, "down", http.StatusServiceUnavailable)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	head, checkpoint, _ := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	var old int64
	if _, err := fmt.Sscanf(lines[0], "old %d", &old); err != nil {
		w.t.Errorf("it begins with %q", lines[0])
	}
	var proof tlog.TreeProof
	for _, line := range lines[1:] {
		hash, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			w.t.Errorf("proof line %q", line)
		}
		proof = append(proof, tlog.Hash(hash))
	}
	c, err := w.keys.Open(checkpoint)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusForbidden)
		return
	}
	before := w.seen[c.Epoch]
	switch {
	case old != before.Size, old == c.Size && c.Root != before.Root:
		rw.Header().Set("Content-Type", "text/x.tlog.size")
		rw.WriteHeader(http.StatusConflict)
		fmt.Fprintln(rw, before.Size)
		return
	case old > 0 && tlog.CheckTree(proof, c.Size, c.Root, old, before.Root) != nil:
		http.Error(rw, "not consistent", http.StatusUnprocessableEntity)
		return
	}
	w.seen[c.Epoch] = c
}

func TestNewCheckpointsArePostedWithTheirProof(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wit := &witness{t: t, keys: w.verifyKeys(), seen: map[int64]verify.Checkpoint{}}
	server := httptest.NewServer(wit)
	t.Cleanup(server.Close)
	poster := func() *audit.Poster {
		p, err := audit.NewPoster(audit.PosterConfig{Store: w.store, Leader: w.leads, URL: server.URL, Log: w.log, Pause: time.Millisecond})
		must(t, err)
		return p
	}
	p := poster()
	must(t, p.RunOnce(t.Context())) // nothing is signed yet
	grow := func(n int) {
		t.Helper()
		w.append(n)
		_, err := w.signer.Sign(t.Context())
		must(t, err)
	}
	saw := func(epoch, size int64, tries int) {
		t.Helper()
		if got := wit.seen[epoch]; got.Size != size || wit.tried != tries {
			t.Errorf("the witness has seen %+v in %d tries, want %d events in %d", got, wit.tried, size, tries)
		}
	}
	saw(1, 0, 0)
	grow(10)
	must(t, p.RunOnce(t.Context()))
	saw(1, 10, 1)
	must(t, p.RunOnce(t.Context())) // nothing new
	saw(1, 10, 1)
	grow(500)
	must(t, p.RunOnce(t.Context()))
	saw(1, 510, 2)
	grow(5)
	must(t, poster().RunOnce(t.Context())) // after a restart it is told where the witness stands
	saw(1, 515, 4)
	wit.down = 2
	grow(5)
	must(t, p.RunOnce(t.Context()))
	saw(1, 520, 8) // two failures, a conflict, a success
	wit.down = 100
	grow(5)
	if err := p.RunOnce(t.Context()); err == nil || wit.tried != 12 {
		t.Errorf("%v after %d tries; want it to give up after four", err, wit.tried)
	}
	wit.down = 0
	// The end of the log is lost, with its heads, as in a restore of everything.
	w.exec(`ALTER TABLE pipeops.events DISABLE TRIGGER USER; DELETE FROM pipeops.events WHERE position > 100;
		ALTER TABLE pipeops.tree_heads DISABLE TRIGGER USER; DELETE FROM pipeops.tree_heads WHERE size > 10;
		ALTER TABLE pipeops.tree_tiles DISABLE TRIGGER USER; DELETE FROM pipeops.tree_tiles`)
	var err error
	w.signer, err = eventstore.NewSigner(eventstore.SignerConfig{Store: w.store, Keys: w.keys, Leader: w.leads, Log: w.log}) // the one before remembers
	must(t, err)
	grow(1)
	var conflict *eventstore.HeadConflictError
	if err := poster().RunOnce(t.Context()); !errors.As(err, &conflict) || conflict.Size != 520 || conflict.Position != 102 {
		t.Errorf("got %v, want that the witness has seen more", err)
	}
	w.exec("SELECT pipeops.raise_log_epoch()")
	_, err = w.signer.Sign(t.Context())
	must(t, err)
	must(t, poster().RunOnce(t.Context()))
	if wit.seen[2].Size != 101 || wit.seen[1].Size != 520 {
		t.Errorf("the witness has seen %v", wit.seen)
	}
}
