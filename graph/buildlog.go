package graph

import (
	"context"
	"fmt"
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
	// lateOutput is how long after the end of an attempt its output may still come: what isn't there then is lost.
	lateOutput = 10 * time.Second
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
	out := &model.BuildLog{Build: string(id), Next: after, Done: b.Phase.Final() && r.settled(b.FinishedAt)}
	if out.Done && after == 0 && b.Attempts > 0 && r.outlived(b) {
		out.Text = r.removed("the output of this build was")
	}
	return out, nil
}

// readLog gives output from a byte on, cut where a letter ends. Chunks arrive in any order: what follows a hole waits
// for what fills it, as long as that may still come.
func (r *Resolver) readLog(ctx context.Context, b *projections.Build, attempt domain.AttemptID, after int64) (*model.BuildLog, error) {
	_, number, err := attempt.Split()
	if err != nil {
		return nil, err
	}
	end, ended, err := r.config.Logs.End(ctx, attempt, outputStream)
	if err != nil {
		return nil, err
	}
	late := r.settled(overSince(b, attempt))
	var text []byte
	next, whole := after, true
	for chunk, err := range r.config.Logs.Read(ctx, attempt, outputStream, after) {
		if err != nil {
			return nil, err
		}
		missing := chunk.Offset - next
		if missing > 0 && !late || len(text)+len(chunk.Bytes) > maxOutput && len(text) > 0 {
			whole = false
			break
		}
		if missing > 0 {
			text = append(text, r.missing(b, missing)...)
		}
		text = append(text, chunk.Bytes...)
		next = chunk.Offset + int64(len(chunk.Bytes))
	}
	over := late || ended && next >= end
	if cut := unfinished(text); cut < len(text) && (!whole || !over) {
		text, next = text[:len(text)-cut], next-int64(cut)
	}
	out := &model.BuildLog{Build: string(b.ID), Attempt: string(attempt), Text: strings.ToValidUTF8(string(text), "\uFFFD"), Next: next}
	if number < b.Attempts {
		out.NextAttempt = string(domain.NewAttemptID(string(b.ID), number+1))
	}
	if next == 0 && late && r.outlived(b) {
		out.Text = r.removed("the output of this attempt was")
	}
	out.Done = whole && over && (b.Phase.Final() || out.NextAttempt != "")
	return out, nil
}

// outlived says whether a build is older than output is kept: what is not there of it was there.
func (r *Resolver) outlived(b *projections.Build) bool {
	return r.config.KeepLogs > 0 && r.config.Now().Sub(b.RequestedAt) > r.config.KeepLogs
}

func (r *Resolver) removed(what string) string {
	return fmt.Sprintf("[pipeops: %s removed: it is kept for %d days]\n", what, int(r.config.KeepLogs.Hours()/24))
}

// missing stands where output isn't there.
func (r *Resolver) missing(b *projections.Build, size int64) string {
	if r.outlived(b) {
		return r.removed(fmt.Sprintf("%d bytes of output were", size))
	}
	return fmt.Sprintf("\n[pipeops: %d bytes of output are lost]\n", size)
}

// overSince is when an attempt ended, at the latest; the zero time while it may go on.
func overSince(b *projections.Build, attempt domain.AttemptID) time.Time {
	switch {
	case b.Phase.Final():
		return b.FinishedAt
	case attempt != b.Attempt:
		return b.StartedAt
	}
	return b.WaitingSince
}

// settled says whether what ended then has nothing more to tell.
func (r *Resolver) settled(end time.Time) bool {
	return !end.IsZero() && r.config.Now().Sub(end) > lateOutput
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
