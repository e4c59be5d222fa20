package projections

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/pipeops/pipeops/domain"
)

// projection is one read model: which streams it is made of, its tables, and how an event changes their rows.
type projection struct {
	name    string // "builds"
	version int    // raised whenever the same events would give other rows: the tables are named by it
	streams []string
	tables  []string
	// apply changes rows by an event; pure.
	apply func(*rows, domain.Recorded, domain.Event)
}

// all read models, in the order that they are shown.
var all = []*projection{projectsProjection, buildsProjection, deploymentsProjection, environmentsProjection, timelineProjection}

func projectionNamed(name string) (*projection, error) {
	for _, p := range all {
		if p.name == name {
			return p, nil
		}
	}
	names := make([]string, len(all))
	for i, p := range all {
		names[i] = p.name
	}
	return nil, fmt.Errorf("there is no projection %q: there are %q", name, names)
}

// versioned is the name of a table, or of the checkpoint: "builds_v1".
func (p *projection) versioned(name string) string { return name + "_v" + strconv.Itoa(p.version) }

// decoded is an event that a projection is made of.
type decoded struct {
	domain.Recorded
	event domain.Event
}

// decode picks what the projection is made of. Event types that this binary doesn't know are left out: a projection
// that knows them has another version, and so other tables. The second result is the index of the first event that
// can't be read, with its error.
func (p *projection) decode(events []domain.Recorded) ([]decoded, int, error) {
	var out []decoded
	for i, r := range events {
		if !slices.Contains(p.streams, r.Stream.Kind()) {
			continue
		}
		e, err := r.Decode()
		var unknown *domain.UnknownTypeError
		if errors.As(err, &unknown) && unknown.SchemaVersion == 0 {
			continue
		}
		if err != nil {
			return out, i, err
		}
		out = append(out, decoded{r, e})
	}
	return out, len(events), nil
}
