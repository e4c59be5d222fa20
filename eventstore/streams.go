package eventstore

import (
	"context"
	"fmt"

	"github.com/pipeops/pipeops/domain"
)

// ReadStreams gives the events of these types in these streams up to a position, in order of position, all at once: for
// streams that are known to be short, or types that are rare in them.
func (s *Store) ReadStreams(ctx context.Context, until int64, types []string, streams ...domain.Stream) ([]domain.Recorded, error) {
	names := make([]string, len(streams))
	for i, stream := range streams {
		names[i] = string(stream)
	}
	return s.all(ctx, fmt.Sprintf("read %d streams", len(streams)), "stream = ANY ($1) AND type = ANY ($2) AND position <= $3", names, types, until)
}
