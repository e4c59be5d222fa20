package graph

import (
	"context"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/graph/model"
	"github.com/pipeops/pipeops/projections"
)

const (
	outputStream = "build"   // that the runner writes to
	maxOutput    = 256 << 10 // bytes of one answer
	heardWithin  = 30 * time.Second
)

func (r *Resolver) buildLog(ctx context.Context, id domain.BuildID, attempt domain.AttemptID, after int64) (*model.BuildLog, error) {
	b, err := r.config.Queries.Build(ctx, id, projections.At{})
	if b, err = seen(ctx, r, b, err, ofBuild); err != nil {
		return nil, err
	}
	if b == nil {
		return nil, notFound("build", "build "+string(id), "see the builds of the project")
	}
	if after < 0 {
		return nil, badInput("after", "a log begins at byte 0", "ask with after: 0")
	}
	if attempt != "" {
		if subject, _, err := attempt.Split(); err != nil || subject != string(id) {
			return nil, badInput("attempt", "no attempt at this build", "leave it out, or use "+string(id)+".1")
		}
		return r.readLog(ctx, b, attempt, after)
	}
	for n := b.Attempts; n > 0; n-- {
		attempt := domain.NewAttemptID(string(id), n)
		for _, err := range r.config.Logs.Read(ctx, attempt, outputStream, 0) {
			if err != nil {
				return nil, err
			}
			return r.readLog(ctx, b, attempt, after)
		}
	}
	return &model.BuildLog{Build: string(id), Next: after, Done: b.Phase.Final()}, nil
}

// readLog gives output from a byte on, cut where a letter ends.
func (r *Resolver) readLog(ctx context.Context, b *projections.Build, attempt domain.AttemptID, after int64) (*model.BuildLog, error) {
	var text []byte
	next, whole := after, true
	for chunk, err := range r.config.Logs.Read(ctx, attempt, outputStream, after) {
		if err != nil {
			return nil, err
		}
		if len(text)+len(chunk.Bytes) > maxOutput && len(text) > 0 {
			whole = false
			break
		}
		text = append(text, chunk.Bytes...)
		next = chunk.Offset + int64(len(chunk.Bytes))
	}
	over := attempt != b.Attempt || b.Phase.Final() || b.Phase == domain.Waiting
	if cut := unfinished(text); cut < len(text) && (!whole || !over) {
		text, next = text[:len(text)-cut], next-int64(cut)
	}
	return &model.BuildLog{
		Build: string(b.ID), Attempt: string(attempt), Text: strings.ToValidUTF8(string(text), "\uFFFD"), Next: next, Done: whole && over,
	}, nil
}

// unfinished is how many bytes at the end begin a letter whose rest isn't there.
func unfinished(b []byte) int {
	for n := 1; n <= utf8.UTFMax && n <= len(b); n++ {
		if c := b[len(b)-n]; utf8.RuneStart(c) {
			if utf8.FullRune(b[len(b)-n:]) {
				return 0
			}
			return n
		}
	}
	return 0
}
