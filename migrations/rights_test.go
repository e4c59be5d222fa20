package migrations_test

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/migrations"
)

const oneEvent = `SELECT base FROM pipeops.append_one('build/1', -1, gen_random_uuid(), '', 'A', 1, '{"n": 1}', now(), '', '', '', '', 0, '')`

const (
	nextEvent = `SELECT pipeops.append_next_one(pg_postmaster_start_time(), 'build/2', 1, gen_random_uuid(), '', 'A', 1, '{"n": 1}', now(),
		'', '', '', '', 0, '')`
	nextEvents = `SELECT pipeops.append_next(pg_postmaster_start_time(), '{build/3,build/4}', '{1,1}', ARRAY[gen_random_uuid(), gen_random_uuid()],
		'{"",""}', '{A,A}', '{1,1}', ARRAY['{}'::bytea, '{}'::bytea], ARRAY[now(), now()], '{"",""}', '{"",""}', '{"",""}', '{"",""}', '{0,0}', '{"",""}')`
	knownEvent = `SELECT pipeops.append_known_one(pg_postmaster_start_time(), 1, 'build/5', 1, gen_random_uuid(), '', 'A', 1, '{"n": 1}', now(),
		'', '', '', '', 0, '')`
	knownEvents = `SELECT pipeops.append_known(pg_postmaster_start_time(), 1, '{build/6,build/7}', '{1,1}', ARRAY[gen_random_uuid(), gen_random_uuid()],
		'{"",""}', '{A,A}', '{1,1}', ARRAY['{}'::bytea, '{}'::bytea], ARRAY[now(), now()], '{"",""}', '{"",""}', '{"",""}', '{"",""}', '{0,0}', '{"",""}')`
)

// setup gives the schema with two events, and connections of its owner (a superuser here) and of the application.
func setup(t *testing.T) (owner, app *pgx.Conn) {
	t.Helper()
	ownerURL := testenv.Postgres(t)
	appURL, err := migrations.Up(t.Context(), ownerURL, quiet())
	if err != nil {
		t.Fatal(err)
	}
	owner, app = connect(t, ownerURL), connect(t, appURL)
	must(t, app, oneEvent)
	must(t, app, oneEvent)
	return owner, app
}

func must(t *testing.T, conn *pgx.Conn, statement string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// tamper is every way to change what is recorded.
var tamper = []string{
	"UPDATE pipeops.events SET body = '{}' WHERE position = 1",
	"UPDATE pipeops.events SET body = '{}' WHERE false",
	"DELETE FROM pipeops.events WHERE position = 2",
	"TRUNCATE pipeops.events",
	"TRUNCATE pipeops.events CASCADE",
	`INSERT INTO pipeops.events SELECT * FROM pipeops.events ON CONFLICT (position) DO UPDATE SET body = '{}'`,
	"UPDATE pipeops.log_epochs SET first_position = 2",
	"DELETE FROM pipeops.log_epochs",
	"TRUNCATE pipeops.log_epochs",
	"UPDATE pipeops.log_identity SET id = gen_random_uuid()",
	"DELETE FROM pipeops.tree_tiles",
	"TRUNCATE pipeops.tree_tiles",
	"UPDATE pipeops.tree_heads SET size = 1",
	"DELETE FROM pipeops.tree_heads",
	"TRUNCATE pipeops.tree_heads",
}

// insert is what the application has append for.
const insert = `INSERT INTO pipeops.events (position, log_epoch, stream, version, id, project_id, type, schema_version, body, occurred_at,
		recorded_at, actor, correlation_id, causation_id, attempt, attempt_seq, trace)
		VALUES (3, 1, 's', 1, gen_random_uuid(), '', 'A', 1, '', now(), now(), '', '', '', '', 0, '')`

func refused(t *testing.T, conn *pgx.Conn, who string, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		_, err := conn.Exec(t.Context(), statement)
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "42501" {
			t.Errorf("%s: %s: got %v, want insufficient_privilege", who, statement, err)
		}
	}
}

func TestAcceptance12_NobodyChangesWhatIsRecorded(t *testing.T) {
	t.Parallel()
	owner, app := setup(t)
	look := func() (text string) {
		if err := owner.QueryRow(t.Context(), "SELECT string_agg(e::text, ' ' ORDER BY position) FROM pipeops.events e").Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}
	before := look()
	refused(t, app, "the application", tamper...)
	refused(t, owner, "the owner", tamper...)
	must(t, owner, "SET session_replication_role = replica")
	refused(t, owner, "the owner as a replica", tamper...)
	if diff := cmp.Diff(before, look()); diff != "" {
		t.Errorf("before - after +\n%s", diff)
	}
}

func TestAcceptance13_TheApplicationMayAppendAndReadAndNothingElse(t *testing.T) {
	t.Parallel()
	_, app := setup(t)
	refused(t, app, "the application",
		insert,
		"SET session_replication_role = replica",
		"ALTER TABLE pipeops.events DISABLE TRIGGER never_changes",
		"DROP TRIGGER never_changes ON pipeops.events",
		"DROP TABLE pipeops.events",
		"CREATE TABLE pipeops.mine ()",
		"CREATE SCHEMA mine",
		"INSERT INTO pipeops.log_epochs VALUES (2, 3)",
		"SELECT pipeops.raise_log_epoch()",
		"SELECT setval('pipeops.newest_epoch', 1)",
		"INSERT INTO pipeops.tree_tiles VALUES (0, 0, 1, '')",
		"INSERT INTO pipeops.tree_heads VALUES (1, 1, '', '')",
		"INSERT INTO pipeops.log_identity VALUES (gen_random_uuid(), false)",
		"INSERT INTO pipeops.cursors VALUES ('c', 1, 1)",
		"UPDATE pipeops.cursors SET position = 0",
		"INSERT INTO pipeops.deliveries VALUES ('d', gen_random_uuid(), '', '', '', '')",
		"UPDATE pipeops.deliveries SET sealed = ''",
		"DELETE FROM pipeops.keys",
		"DELETE FROM pipeops.event_blocks",
		"UPDATE pipeops.event_blocks_head SET next = 0",
		"DELETE FROM pipeops.subject_keys",
		"UPDATE pipeops.secrets SET sealed = ''",
		"UPDATE pipeops.build_log_chunks SET packed = ''",
		"UPDATE pipeops.schema_versions SET version_id = 0",
	)
	for _, table := range []string{
		"events", "events_json", "log_epochs", "cursors", "deliveries", "keys", "subject_keys", "secrets",
		"tokens", "build_log_chunks", "claims", "claim_attempts", "schema_versions", "log_identity", "tree_tiles", "tree_heads",
		"event_blocks", "event_blocks_head",
	} {
		must(t, app, "SELECT * FROM pipeops."+table)
	}
	must(t, app, "CREATE TABLE projections.builds_1 (id text PRIMARY KEY)")
	must(t, app, "DROP TABLE projections.builds_1")
}

func TestAHeadIsNeverAheadAndNeverGoesBack(t *testing.T) {
	t.Parallel()
	owner, app := setup(t)
	for statement, code := range map[string]string{
		"SELECT pipeops.add_head(1, 3, sha256(''), 'note')":                                       "23514", // the log has two events
		"SELECT pipeops.add_head(2, 1, sha256(''), 'note')":                                       "55000",
		"SELECT pipeops.add_head(1, 0, sha256(''), 'note')":                                       "23514",
		"SELECT pipeops.add_tiles(1, '{0}', '{0}', ARRAY[convert_to(repeat('x', 8192), 'UTF8')])": "23514",
	} {
		_, err := app.Exec(t.Context(), statement)
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != code {
			t.Errorf("%s: got %v, want %s", statement, err, code)
		}
	}
	for _, c := range []struct {
		size  int
		added bool
	}{{2, true}, {2, false}, {1, false}} {
		var added bool
		err := app.QueryRow(t.Context(), "SELECT pipeops.add_head(1, $1, sha256(''), 'note')", c.size).Scan(&added)
		if err != nil || added != c.added {
			t.Errorf("a head of %d events: added %v, %v", c.size, added, err)
		}
	}
	must(t, owner, "SELECT pipeops.raise_log_epoch()")
	must(t, app, "SELECT pipeops.add_head(2, 2, sha256(''), 'note')")
}

func TestAFunctionOfTheSameNameElsewhereIsNotCalledByAppend(t *testing.T) {
	t.Parallel()
	owner, app := setup(t)
	must(t, owner, `CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;
		CREATE FUNCTION evil.lock_log() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil'; END $$;
		CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil'; END $$`)
	must(t, app, "SET search_path = evil, pipeops, pg_catalog")
	must(t, app, "CREATE TEMPORARY TABLE events (position bigint, log_epoch bigint, stream text, version bigint, id uuid)")
	must(t, app, oneEvent)
	must(t, app, nextEvent)
	must(t, app, nextEvents)
	must(t, app, knownEvent)
	must(t, app, knownEvents)
}

// A variable's type is found by the path as well, and a domain runs code: its CHECK.
func TestATypeOfTheSameNameElsewhereIsNotUsedByAppend(t *testing.T) {
	t.Parallel()
	for _, call := range []string{oneEvent, nextEvent, nextEvents, knownEvent, knownEvents} {
		_, app := setup(t)
		must(t, app, `CREATE FUNCTION pg_temp.evil(v pg_catalog.anyelement) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'evil'; END $$;
			CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (pg_temp.evil(VALUE));
			CREATE DOMAIN pg_temp.timestamptz AS pg_catalog.timestamptz CHECK (pg_temp.evil(VALUE));
			CREATE DOMAIN pg_temp.int8 AS pg_catalog.int8 CHECK (pg_temp.evil(VALUE));
			SET search_path = pg_temp, projections, pg_catalog`)
		must(t, app, call)
	}
}

func TestEventsJSONShowsBodiesAndSurvivesAnyOfThem(t *testing.T) {
	t.Parallel()
	owner, app := setup(t)
	must(t, app, strings.Replace(oneEvent, `{"n": 1}`, `{"text": "a\\u0000b"}`, 1))
	rows, err := owner.Query(t.Context(), `SELECT coalesce(body ->> 'n', body #>> '{}') FROM pipeops.events_json ORDER BY position`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if diff := cmp.Diff([]string{"1", "1", `{"text": "a\u0000b"}`}, got); diff != "" || err != nil {
		t.Errorf("%v, want - got +\n%s", err, diff)
	}
}

func TestManyProcessesMayMigrateAtOnce(t *testing.T) {
	t.Parallel()
	owner := testenv.Postgres(t)
	var group sync.WaitGroup
	for range 10 {
		group.Go(func() {
			app, err := migrations.Up(t.Context(), owner, quiet())
			if err != nil {
				t.Error(err)
				return
			}
			conn, err := pgx.Connect(t.Context(), app)
			if err != nil {
				t.Error(err)
				return
			}
			if err := conn.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}

// as makes a login that is no superuser, with these rights, and gives its address.
func as(t *testing.T, ownerURL, name, rights string) string {
	t.Helper()
	owner := connect(t, ownerURL)
	u, err := url.Parse(ownerURL)
	if err != nil {
		t.Fatal(err)
	}
	name = strings.TrimPrefix(u.Path, "/") + "_" + name
	must(t, owner, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'pw' %s", name, rights))
	u.User = url.UserPassword(name, "pw")
	return u.String()
}

func TestAnOwnerWhoIsNoSuperuserSuffices(t *testing.T) {
	t.Parallel()
	super := testenv.Postgres(t)
	owner := as(t, super, "owner", "CREATEROLE")
	u, err := url.Parse(owner)
	if err != nil {
		t.Fatal(err)
	}
	database := strings.TrimPrefix(u.Path, "/")
	must(t, connect(t, super), fmt.Sprintf("ALTER DATABASE %s OWNER TO %s", database, u.User.Username()))
	app, err := migrations.Up(t.Context(), owner, quiet())
	if err != nil {
		t.Fatal(err)
	}
	must(t, connect(t, app), oneEvent)
	refused(t, connect(t, app), "the application", tamper...)
	refused(t, connect(t, owner), "the owner", tamper...)
	// A new password of the owner's gives the application a new one.
	must(t, connect(t, super), fmt.Sprintf("ALTER ROLE %s PASSWORD 'new'", u.User.Username()))
	u.User = url.UserPassword(u.User.Username(), "new")
	again, err := migrations.Up(t.Context(), u.String(), quiet())
	if err != nil || again == app {
		t.Fatalf("the same address %v, %v", again == app, err)
	}
	must(t, connect(t, again), oneEvent)
}

func TestALoginThatDoesNotOwnTheSchemaOnlyChecksIt(t *testing.T) {
	t.Parallel()
	owner := testenv.Postgres(t)
	other := as(t, owner, "other", "")
	var behind *migrations.BehindError
	if _, err := migrations.Up(t.Context(), other, quiet()); !errors.As(err, &behind) || behind.Have != 0 || behind.Need < 2 {
		t.Errorf("got %v, want a BehindError", err)
	}
	app, err := migrations.Up(t.Context(), owner, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := migrations.Up(t.Context(), app, quiet()); again != app || err != nil {
		t.Errorf("the application's own address: the same %v, %v", again == app, err)
	}
	// A newer schema than this binary knows is fine, an older one is not.
	must(t, connect(t, owner), "INSERT INTO pipeops.schema_versions (version_id, is_applied) VALUES (999, true)")
	if _, err := migrations.Up(t.Context(), app, quiet()); err != nil {
		t.Errorf("newer schema: %v", err)
	}
	must(t, connect(t, owner), "DELETE FROM pipeops.schema_versions WHERE version_id > 1")
	if _, err := migrations.Up(t.Context(), app, quiet()); !errors.As(err, &behind) || behind.Have != 1 {
		t.Errorf("got %v, want a BehindError at 1", err)
	}
}

func TestAGivenLoginKeepsItsPasswordAndGetsItsRights(t *testing.T) {
	t.Parallel()
	super := testenv.Postgres(t)
	owner := as(t, super, "owner", "") // may not make logins
	u, err := url.Parse(owner)
	if err != nil {
		t.Fatal(err)
	}
	must(t, connect(t, super), fmt.Sprintf("ALTER DATABASE %s OWNER TO %s", strings.TrimPrefix(u.Path, "/"), u.User.Username()))
	if _, err := migrations.Up(t.Context(), owner, quiet()); err == nil || !strings.Contains(err.Error(), "PIPEOPS_MIGRATE_URL") {
		t.Errorf("got %v, want what to do without the right to make logins", err)
	}
	byHand := as(t, super, "app", "")
	for range 2 {
		if err := migrations.UpFor(t.Context(), owner, byHand, quiet()); err != nil {
			t.Fatal(err)
		}
	}
	must(t, connect(t, byHand), oneEvent)
	refused(t, connect(t, byHand), "the application", tamper...)
	u.User = url.UserPassword(u.User.Username()+"_app2", `it's a \ "password" of one's own`)
	if err := migrations.UpFor(t.Context(), super, u.String(), quiet()); err != nil {
		t.Fatal(err)
	}
	must(t, connect(t, u.String()), oneEvent)
}

func TestAppLoginIsOfItsDatabase(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ü", 31)
	for database, want := range map[string]string{"pipeops": "pipeops_app", "ci": "pipeops_app_ci"} {
		if got := migrations.AppLogin(database); got != want {
			t.Errorf("%s: %s, want %s", database, got, want)
		}
	}
	if a, b := migrations.AppLogin(long+"a"), migrations.AppLogin(long+"b"); a == b || len(a) > 63 {
		t.Errorf("%s (%d bytes) and %s", a, len(a), b)
	}
}
