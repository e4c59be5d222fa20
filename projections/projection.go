package projections

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

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

// UnknownError says that there is no projection of that name.
type UnknownError struct {
	Name  string
	Known []string
}

func (e *UnknownError) Error() string {
	return fmt.Sprintf("there is no projection %q: there are %s", e.Name, strings.Join(e.Known, ", "))
}

// Names of all projections, in the order that they are shown.
func (p *Projector) Names() []string {
	names := make([]string, len(p.models))
	for i, projection := range p.models {
		names[i] = projection.name
	}
	return names
}

func (p *Projector) place(name string) (place, error) {
	for _, projection := range p.models {
		if projection.name == name {
			return place{projection, ""}, nil
		}
	}
	return place{}, &UnknownError{Name: name, Known: p.Names()}
}

// versioned is the name of a table, or of the checkpoint: "builds_v1".
func (p *projection) versioned(name string) string { return name + "_v" + strconv.Itoa(p.version) }

// decoded is an event that a projection is made of.
type decoded struct {
	domain.Recorded
	event domain.Event
}

// decode reads an event, when the projection is made of its kind. Event types that this binary doesn't know are left
// out: a projection that knows them has another version, and so other tables.
func (p *projection) decode(r domain.Recorded) (d decoded, made bool, err error) {
	if !slices.Contains(p.streams, r.Stream.Kind()) {
		return d, false, nil
	}
	e, err := r.Decode()
	var unknown *domain.UnknownTypeError
	if errors.As(err, &unknown) && unknown.SchemaVersion == 0 {
		return d, false, nil
	}
	return decoded{r, e}, err == nil, err
}
