package projections

import (
	"strconv"
	"testing"

	"github.com/pipeops/pipeops/domain"
)

func TestRowsStayInMemoryUntilTheyAreWritten(t *testing.T) {
	t.Parallel()
	r := newRows()
	for i := range maxRows + 1 {
		r.at, r.writes = int64(i+1), r.writes[:0]
		builds.add(r, strconv.Itoa(i), Build{ID: domain.BuildID(strconv.Itoa(i))})
		r.keep()
	}
	first, _ := r.take([]string{builds.table})
	second, _ := r.take([]string{builds.table})
	if len(r.states) != maxRows+1 {
		t.Fatalf("%d rows are in memory, and none of %d is written", len(r.states), maxRows+1)
	}
	r.stand(&changes{batch: first})
	r.take([]string{builds.table})
	if len(r.states) != 0 {
		t.Errorf("%d rows are in memory after batch %d was written, want none when %d come", len(r.states), first, second)
	}
}
