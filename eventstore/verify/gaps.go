package verify

import (
	"fmt"
	"hash/maphash"
	"maps"
	"math"

	"github.com/pipeops/pipeops/domain"
)

// maxStreams is how many streams are followed at once: a few MiB. A part with more of them is read more than once.
const maxStreams = 1 << 17

// streams follows the versions of streams, of each a number, in bounded memory: it takes those whose hash lies in a
// range, which it makes smaller while they are too many. The others have their turn when the events are read again.
type streams struct {
	room     int
	seed     maphash.Seed
	from, to uint64 // the range, both ends in it
	versions map[uint64]int64
}

func newStreams(room int) *streams {
	if room == 0 {
		room = maxStreams
	}
	return &streams{room: room, seed: maphash.MakeSeed(), to: math.MaxUint64, versions: map[uint64]int64{}}
}

// next says whether an event may come next in its stream, if that is in the range.
func (s *streams) next(e domain.Recorded) error {
	stream := maphash.String(s.seed, string(e.Stream))
	if stream < s.from || stream > s.to {
		return nil
	}
	if before := s.versions[stream]; e.Version != before+1 {
		return &Error{
			Position: e.Cursor.Position, File: EventsFile,
			Reason: fmt.Sprintf("stream %s goes on with version %d after %d: an event is missing", e.Stream, e.Version, before),
		}
	}
	s.versions[stream] = e.Version
	for len(s.versions) > s.room {
		s.to = s.from + (s.to-s.from)/2
		maps.DeleteFunc(s.versions, func(stream uint64, _ int64) bool { return stream > s.to })
	}
	return nil
}

// more goes on to the streams that had no room, if there are any; the events must then be read from the beginning.
func (s *streams) more() bool {
	if s.to == math.MaxUint64 {
		return false
	}
	s.from, s.to = s.to+1, math.MaxUint64
	clear(s.versions)
	return true
}
