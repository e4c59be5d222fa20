package worker

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/pipeops/pipeops/internal/bus"
)

// output is what an attempt printed and the broker doesn't have yet.
type output struct {
	limit int64

	mu      sync.Mutex
	streams map[string]*printed
	taken   int64         // bytes of all streams, sent ones included
	ending  bool          // nothing more comes
	changed chan struct{} // closed at the next change
	done    chan struct{} // closed when all was sent after ending
}

type printed struct {
	offset int64 // bytes before waiting
	bytes  []byte
}

const (
	chunkBytes = 32 << 10
	chunkDelay = 250 * time.Millisecond
	// outputWait bounds how long the end of an attempt waits for the rest of its output to be sent.
	outputWait = 10 * time.Second
)

func newOutput(limit int64) output {
	return output{limit: limit, streams: map[string]*printed{}, changed: make(chan struct{}), done: make(chan struct{})}
}

// Log takes output of a stream ("build"); it never blocks. It is sent in chunks, and kept while the broker is away. What
// exceeds Config.LogLimit is left out, and a last line says so. The bytes hold no secrets.
func (a *Attempt) Log(stream string, b []byte) {
	o := &a.output
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ending || o.taken > o.limit || len(b) == 0 {
		return
	}
	p := o.streams[stream]
	if p == nil {
		p = &printed{}
		o.streams[stream] = p
	}
	if room := o.limit - o.taken; int64(len(b)) > room {
		b = fmt.Appendf(b[:room:room], "\n[pipeops: more than %d bytes of output, the rest is left out]\n", o.limit)
	}
	o.taken += int64(len(b))
	p.bytes = append(p.bytes, b...)
	o.tell()
}

// tell needs the lock.
func (o *output) tell() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// ready waits until a chunk is worth sending: it is full, old enough, or the last; false when nothing comes any more.
func (o *output) ready(ctx context.Context) bool {
	var old <-chan time.Time
	for {
		o.mu.Lock()
		waiting := 0
		for _, p := range o.streams {
			waiting = max(waiting, len(p.bytes))
		}
		ending, changed := o.ending, o.changed
		o.mu.Unlock()
		switch {
		case waiting >= chunkBytes || waiting > 0 && ending:
			return true
		case ending:
			return false
		case waiting > 0 && old == nil:
			timer := time.NewTimer(chunkDelay)
			defer timer.Stop()
			old = timer.C
		}
		select {
		case <-changed:
		case <-old:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// next gives a chunk of each stream that has something.
func (o *output) next() (chunks []bus.LogChunk) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(o.streams)) {
		if p := o.streams[name]; len(p.bytes) > 0 {
			chunks = append(chunks, bus.LogChunk{Stream: name, Offset: p.offset, Bytes: p.bytes[:min(len(p.bytes), chunkBytes)]})
		}
	}
	return chunks
}

func (o *output) sent(c bus.LogChunk) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.streams[c.Stream]
	p.offset += int64(len(c.Bytes))
	if p.bytes = p.bytes[len(c.Bytes):]; len(p.bytes) == 0 {
		p.bytes = nil
	}
}

// ends gives for each stream the chunk without bytes that says where it ends.
func (o *output) ends() (chunks []bus.LogChunk) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(o.streams)) {
		chunks = append(chunks, bus.LogChunk{Stream: name, Offset: o.streams[name].offset})
	}
	return chunks
}

// sendOutput sends chunks until all is sent after the end, and where that is, or ctx ends.
func (a *Attempt) sendOutput(ctx context.Context) {
	defer close(a.output.done)
	for a.output.ready(ctx) {
		if !a.sendChunks(ctx, a.output.next()) {
			return
		}
	}
	if context.Cause(ctx) == nil {
		a.sendChunks(ctx, a.output.ends())
	}
}

// sendChunks says whether all of them were sent before ctx ended.
func (a *Attempt) sendChunks(ctx context.Context, chunks []bus.LogChunk) bool {
	const pause = time.Second
	for _, c := range chunks {
		c.Attempt, c.Incarnation, c.Token = a.ID, a.worker.incarnation, a.Grant.Token
		for err := a.worker.cfg.Bus.PublishLogChunk(ctx, c); err != nil; err = a.worker.cfg.Bus.PublishLogChunk(ctx, c) {
			a.worker.cfg.Log.DebugContext(ctx, "output was not sent", "attempt", a.ID, "err", err)
			if within(ctx.Done(), pause) {
				return false
			}
		}
		a.output.sent(c)
	}
	return true
}

// finishOutput waits for the rest of the output.
func (w *Worker) finishOutput(a *Attempt) {
	o := &a.output
	o.mu.Lock()
	o.ending = true
	o.tell()
	o.mu.Unlock()
	if !within(o.done, outputWait) {
		w.cfg.Log.Warn("the end of the output was not sent", "attempt", a.ID)
	}
}
