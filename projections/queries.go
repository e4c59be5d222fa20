package projections

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
)

// Queries answers from the read models. Its methods may be called at the same time. What isn't there is nil, or an
// empty list.
type Queries struct{ p *Projector }

// Queries of these read models; some process must Run the projector.
func (p *Projector) Queries() *Queries { return &Queries{p} }

// At says as of when a query is answered. The zero value: now, each read model as far as it is. What Pin gives is one
// moment for all.
type At struct {
	AsOf    *domain.Cursor // as if the log ended there
	AtLeast domain.Cursor  // with this seen; the query waits for it

	seen []string // read models that are known to have seen AsOf
}

// Page picks part of a list, newest first.
type Page struct {
	First  int   // at most; 0 = MaxFirst
	Before int64 // position that rows began before; 0 = all
}

// MaxFirst is the longest list.
const MaxFirst = 500

// BehindError says that a read model didn't catch up in time.
type BehindError struct {
	Projection string
	Position   int64 // where it is
	Wanted     int64
	Stopped    string // why it stands still; empty: it is only slow
}

func (e *BehindError) Error() string {
	text := fmt.Sprintf("read model %s is at position %d, not yet at %d", e.Projection, e.Position, e.Wanted)
	if e.Stopped != "" {
		text += "; it has stopped: " + e.Stopped
	}
	return text
}

// Names picks part of a list that is ordered by name.
type Names struct {
	First int    // at most; 0 = all
	After string // the last name of the part before; "" = from the start
}

// Projects gives projects, by name.
func (q *Queries) Projects(ctx context.Context, page Names, at At) ([]Project, error) {
	return list(ctx, q, at, projectsProjection, projects, "lookup > $2 ORDER BY lookup LIMIT nullif($3, 0)", page.After, page.First)
}

// Project finds a project by id or name.
func (q *Queries) Project(ctx context.Context, idOrName string, at At) (*Project, error) {
	if isID(idOrName, "prj") {
		return one(ctx, q, at, projectsProjection, projects, idOrName)
	}
	return first(list(ctx, q, at, projectsProjection, projects, "lookup = $2", idOrName))
}

// isID says whether text is an id, not a name: names have no underscore.
func isID(text, prefix string) bool { return strings.HasPrefix(text, prefix+"_") }

// Build finds a build.
func (q *Queries) Build(ctx context.Context, id domain.BuildID, at At) (*Build, error) {
	return one(ctx, q, at, buildsProjection, builds, string(id))
}

// BuildsOf gives the builds with these ids, oldest first.
func (q *Queries) BuildsOf(ctx context.Context, ids []domain.BuildID, at At) ([]Build, error) {
	return list(ctx, q, at, buildsProjection, builds, "key = ANY ($2) ORDER BY place", ids)
}

// Builds gives a project's builds, newest first; commit (the whole hash or its beginning) may be empty.
func (q *Queries) Builds(ctx context.Context, project domain.ProjectID, commit string, page Page, at At) ([]Build, error) {
	if commit == "" {
		return list(ctx, q, at, buildsProjection, builds, "project = $2 AND place < $3 ORDER BY place DESC LIMIT $4",
			project, page.before(), page.limit())
	}
	return list(ctx, q, at, buildsProjection, builds,
		"project = $2 AND "+begins("lookup", "$3")+" AND place < $4 ORDER BY place DESC LIMIT $5",
		project, commit, page.before(), page.limit())
}

// Deployment finds a deployment.
func (q *Queries) Deployment(ctx context.Context, id domain.DeploymentID, at At) (*Deployment, error) {
	return one(ctx, q, at, deploymentsProjection, deployments, string(id))
}

// DeploymentsOf gives the deployments with these ids, oldest first.
func (q *Queries) DeploymentsOf(ctx context.Context, ids []domain.DeploymentID, at At) ([]Deployment, error) {
	return list(ctx, q, at, deploymentsProjection, deployments, "key = ANY ($2) ORDER BY place", ids)
}

// Deployments gives a project's deployments, newest first; environment and service may be empty.
func (q *Queries) Deployments(ctx context.Context, project domain.ProjectID, environment domain.EnvironmentID, service domain.ServiceID, page Page, at At) ([]Deployment, error) {
	condition, args := "project = $2 AND place < $3", []any{project, page.before(), page.limit()}
	switch {
	case environment != "" && service != "":
		condition, args = condition+" AND lookup = $5", append(args, slotKey(environment, service))
	case environment != "":
		condition, args = condition+" AND "+begins("lookup", "$5"), append(args, string(environment)+"/")
	case service != "":
		condition, args = condition+" AND split_part(lookup, '/', 2) = $5", append(args, service)
	}
	return list(ctx, q, at, deploymentsProjection, deployments, condition+" ORDER BY place DESC LIMIT $4", args...)
}

// begins is the condition that a column begins with a text, as a range, which an index knows how to find.
func begins(column, text string) string {
	return fmt.Sprintf(`%[1]s >= %[2]s AND %[1]s < %[2]s || U&'\+10FFFF'`, column, text)
}

// Push finds a push.
func (q *Queries) Push(ctx context.Context, id domain.PushID, at At) (*Push, error) {
	p, err := one(ctx, q, at, timelineProjection, pushes, string(id))
	if p == nil || err != nil {
		return nil, err
	}
	return p, q.open(ctx, p)
}

// Pushes gives a project's pushes, newest first, the ignored ones if they are asked for.
func (q *Queries) Pushes(ctx context.Context, project domain.ProjectID, ignored bool, page Page, at At) ([]Push, error) {
	found, err := list(ctx, q, at, timelineProjection, pushes,
		"project = $2 AND ($3 OR lookup <> $4) AND place < $5 ORDER BY place DESC LIMIT $6",
		project, ignored, ignoredPush, page.before(), page.limit())
	for i := range found {
		err = errors.Join(err, q.open(ctx, &found[i]))
	}
	return found, err
}

// LastPush gives a project's newest push that wasn't ignored.
func (q *Queries) LastPush(ctx context.Context, project domain.ProjectID, at At) (*Push, error) {
	return first(q.Pushes(ctx, project, false, Page{First: 1}, at))
}

// Timeline is a push with its entries, in order.
type Timeline struct {
	Push    Push
	Entries []Entry
}

// Timeline gives what became of a push, or of a project's last push that wasn't ignored when push is empty.
func (q *Queries) Timeline(ctx context.Context, project domain.ProjectID, push domain.PushID, at At) (*Timeline, error) {
	var p *Push
	var err error
	if push != "" {
		p, err = q.Push(ctx, push, at)
	} else {
		p, err = q.LastPush(ctx, project, at)
	}
	if p == nil || err != nil {
		return nil, err
	}
	told, err := list(ctx, q, at, timelineProjection, entries, "lookup = $2 ORDER BY place", p.ID)
	return &Timeline{Push: *p, Entries: told}, err
}

// open decrypts the personal fields of a push for a reader.
func (q *Queries) open(ctx context.Context, p *Push) error {
	for _, f := range []*Personal{&p.Pusher, &p.Author, &p.Message} {
		if f.Sealed == "" {
			continue
		}
		text, ok, err := q.p.config.Opener(ctx, f.Subject, f.EventID, f.Field, f.Sealed)
		if err != nil {
			return fmt.Errorf("open %s of push %s: %w", f.Field, p.ID, err)
		}
		if !ok {
			text = "(erased)"
		}
		f.Text = text
	}
	return nil
}

func (p Page) limit() int {
	if p.First <= 0 || p.First > MaxFirst {
		return MaxFirst
	}
	return p.First
}

func (p Page) before() int64 {
	if p.Before <= 0 {
		return 1 << 62
	}
	return p.Before
}

func one[T any](ctx context.Context, q *Queries, at At, from *projection, k kind[T], key string) (*T, error) {
	return first(list(ctx, q, at, from, k, "key = $2", key))
}

func first[T any](rows []T, err error) (*T, error) {
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	return &rows[0], nil
}

// list gives the rows that a condition picks, now or as of a position ($1).
//
// What a row is found by never changes, and no row ever goes: so the rows of any moment are those of now that had begun
// by then, found by the same indexes, each with what it said then. That stands in the history when it was changed since.
func list[T any](ctx context.Context, q *Queries, at At, from *projection, k kind[T], condition string, args ...any) ([]T, error) {
	if at.AsOf == nil || !slices.Contains(at.seen, from.name) {
		if err := q.wait(ctx, at, from); err != nil {
			return nil, err
		}
	}
	p, err := q.p.place(from.name)
	if err != nil {
		return nil, err
	}
	said, begun := "row", "$1::bigint IS NULL"
	var asOf *int64
	if at.AsOf != nil {
		asOf = &at.AsOf.Position
		said = "CASE WHEN from_position <= $1 THEN row ELSE (SELECT h.row FROM " + quoted(p.history(k.table)) +
			" h WHERE h.key = now_.key AND h.from_position <= $1 ORDER BY h.from_position DESC LIMIT 1) END"
		begun = "place <= $1"
	}
	found, err := q.p.config.Pool.Query(ctx, "SELECT "+said+" FROM "+quoted(p.table(k.table))+" now_ WHERE "+begun+" AND "+condition,
		append([]any{asOf}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", k.table, err)
	}
	out, err := pgx.CollectRows(found, func(row pgx.CollectableRow) (value T, err error) {
		var doc []byte
		if err := row.Scan(&doc); err != nil {
			return value, err
		}
		return value, json.Unmarshal(doc, &value)
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", k.table, err)
	}
	return out, nil
}

// wait returns when the projection has seen what the query is about.
func (q *Queries) wait(ctx context.Context, at At, from *projection) error {
	wanted, err := q.wanted(ctx, at)
	if err != nil {
		return err
	}
	p, err := q.p.place(from.name)
	if err != nil {
		return err
	}
	patience, cancel := context.WithTimeoutCause(ctx, q.p.config.Patience, errImpatient)
	defer cancel()
	for {
		at, here, changed := q.p.marks.of(from.name)
		if here && q.reached(ctx, at, wanted) {
			return nil
		}
		known, err := q.p.checkpoints(ctx) // another process may be ahead of this one
		if err != nil {
			return err
		}
		status, there := known[p.checkpoint()]
		if there && q.reached(ctx, status.Cursor, wanted) {
			return nil
		}
		select {
		case <-patience.Done():
			if errors.Is(context.Cause(patience), errImpatient) {
				return &BehindError{from.name, status.Cursor.Position, wanted, status.StoppedError}
			}
			return context.Cause(patience)
		case <-changed:
		case <-time.After(time.Second):
		}
	}
}

// reached says whether a checkpoint has seen the position in the log that there is: after a restore of the log it may
// still have seen another one.
func (q *Queries) reached(ctx context.Context, checkpoint domain.Cursor, wanted int64) bool {
	return wanted == 0 || checkpoint.Position >= wanted && q.p.config.Store.Check(ctx, checkpoint) == nil
}

var errImpatient = errors.New("the read model did not catch up in time")

// wanted is the position that a query needs, 0 when it takes what there is.
func (q *Queries) wanted(ctx context.Context, at At) (position int64, err error) {
	position = at.AtLeast.Position
	cursors := []domain.Cursor{at.AtLeast}
	if at.AsOf != nil {
		cursors = append(cursors, *at.AsOf)
		position = max(position, at.AsOf.Position)
	}
	for _, c := range cursors {
		if c == (domain.Cursor{}) {
			continue
		}
		if err := q.p.config.Store.Check(ctx, c); err != nil {
			return 0, readable(err)
		}
	}
	return position, nil
}
