package audit

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/pipeops/pipeops/eventstore"
)

// BehindError is a receiver's answer that it has seen a checkpoint of another size than the sender thought.
type BehindError struct{ Size int64 }

func (e *BehindError) Error() string {
	return fmt.Sprintf("the receiver has a checkpoint of %d events", e.Size)
}

// Send posts a signed checkpoint as a log does to a C2SP tlog-witness (add-checkpoint): "old <size>", the proof that it
// begins with what the receiver saw last (old, 0 for nothing), an empty line, the checkpoint. Any answer of 2xx means
// that it is kept; 409 with a size is a *BehindError.
func Send(ctx context.Context, client *http.Client, url, checkpoint string, old int64, proof tlog.TreeProof) error {
	var body bytes.Buffer
	fmt.Fprintf(&body, "old %d\n", old)
	for _, hash := range proof {
		fmt.Fprintln(&body, hash)
	}
	fmt.Fprintf(&body, "\n%s", checkpoint)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, &body)
	if err != nil {
		return fmt.Errorf("post a checkpoint: %w", err)
	}
	r.Header.Set("Content-Type", "text/plain; charset=utf-8")
	resp, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("post a checkpoint: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	switch {
	case err != nil:
		return fmt.Errorf("post a checkpoint to %s: read the answer: %w", r.URL.Host, err)
	case resp.StatusCode/100 == 2:
		return nil
	case resp.StatusCode == http.StatusConflict:
		if size, err := strconv.ParseInt(strings.TrimSpace(string(answer)), 10, 64); err == nil {
			return &BehindError{size}
		}
	}
	return fmt.Errorf("post a checkpoint to %s: it answered %s: %.200q", r.URL.Host, resp.Status, answer)
}

// PosterConfig is that of a Poster. The first part is required.
type PosterConfig struct {
	Store  *eventstore.Store
	Leader eventstore.Leader
	URL    string // http or https; a C2SP tlog-witness's add-checkpoint, or whatever keeps what it gets
	Log    *slog.Logger

	Interval time.Duration // between two looks for a newer checkpoint; default 10 s
	Pause    time.Duration // before the second try, then twice as long each time; default 1 s
	Tries    int           // of one checkpoint; then the next newer one is waited for; default 4
}

// Poster posts the newest checkpoint off the machine, so that whoever can change all of this one can't change what was
// seen elsewhere. It never holds up the signer: what it could not post is overtaken by the next one.
type Poster struct {
	config PosterConfig
	client http.Client
	posted eventstore.Head // by this process
}

// NewPoster gives a poster.
func NewPoster(config PosterConfig) (*Poster, error) {
	if config.Store == nil || config.Leader == nil || config.Log == nil {
		return nil, errors.New("poster of checkpoints: Store, Leader or Log is missing")
	}
	if !strings.HasPrefix(config.URL, "http://") && !strings.HasPrefix(config.URL, "https://") {
		return nil, errors.New("poster of checkpoints: URL: want for example https://witness.example.org/add-checkpoint")
	}
	if config.Interval < 0 || config.Pause < 0 || config.Tries < 0 {
		return nil, errors.New("poster of checkpoints: a bound is negative: 0 means its default")
	}
	config.Interval = cmp.Or(config.Interval, 10*time.Second)
	config.Pause = cmp.Or(config.Pause, time.Second)
	config.Tries = cmp.Or(config.Tries, 4)
	return &Poster{config: config, client: http.Client{Timeout: 10 * time.Second}}, nil
}

// Run posts until ctx ends, in one process at a time.
func (p *Poster) Run(ctx context.Context) error {
	return p.config.Leader.Lead(ctx, "post checkpoints", func(ctx context.Context) error {
		for {
			if err := p.RunOnce(ctx); err != nil && context.Cause(ctx) == nil {
				p.config.Log.ErrorContext(ctx, "the newest checkpoint is not kept elsewhere", "err", err)
			}
			if !pause(ctx, p.config.Interval) {
				return nil
			}
		}
	})
}

// RunOnce posts the newest checkpoint, if it wasn't yet. A receiver that has seen more than the log holds gets nothing:
// a *eventstore.HeadConflictError, the log was cut.
func (p *Poster) RunOnce(ctx context.Context) error {
	head, err := p.config.Store.NewestHead(ctx)
	if err != nil || head.Size == 0 || head == p.posted {
		return err
	}
	old := int64(0)
	if p.posted.Epoch == head.Epoch {
		old = p.posted.Size
	}
	for try := 1; ; try++ {
		if err = p.post(ctx, head, old); err == nil {
			p.posted = head
			return nil
		}
		behind, knows := errors.AsType[*BehindError](err)
		_, cut := errors.AsType[*eventstore.HeadConflictError](err)
		if try >= p.config.Tries || cut {
			return err
		}
		if knows && behind.Size != old {
			old = behind.Size
			continue
		}
		if !pause(ctx, p.config.Pause<<(try-1)) {
			return err
		}
	}
}

func (p *Poster) post(ctx context.Context, head eventstore.Head, old int64) (err error) {
	if old > head.Size {
		return &eventstore.HeadConflictError{Epoch: head.Epoch, Size: old, Position: head.Size + 1}
	}
	proof := tlog.TreeProof{}
	if old > 0 {
		if proof, err = tlog.ProveTree(head.Size, old, p.config.Store.Tree(ctx, head.Size)); err != nil {
			return err
		}
	}
	if old == p.posted.Size && old > 0 && p.posted.Epoch == head.Epoch {
		if err := tlog.CheckTree(proof, head.Size, head.Root, old, p.posted.Root); err != nil {
			return &eventstore.HeadConflictError{Epoch: head.Epoch, Size: old}
		}
	}
	return Send(ctx, &p.client, p.config.URL, head.Checkpoint, old, proof)
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
