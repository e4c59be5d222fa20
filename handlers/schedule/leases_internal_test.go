package schedule

import (
	"testing"
	"time"
)

func TestSilenceCountsOnlyFromWhenThisProcessListensWithoutABreak(t *testing.T) {
	t.Parallel()
	const gap = 7 * time.Second
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var h hearing
	looks := []struct {
		at   time.Duration // since start
		want time.Duration // heard for
	}{
		{0, 0},
		{time.Second, time.Second},
		{8 * time.Second, 8 * time.Second},
		{68 * time.Second, 0}, // it was frozen
		{70 * time.Second, 2 * time.Second},
		{10 * time.Second, 0}, // the clock was set back
		{11 * time.Second, time.Second},
	}
	for _, look := range looks {
		h.note(start.Add(look.at), gap)
		if got := h.last.Sub(h.since); got != look.want {
			t.Errorf("at %v: heard for %v, want %v", look.at, got, look.want)
		}
	}
}
