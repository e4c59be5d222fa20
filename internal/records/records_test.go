package records_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/internal/seal"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/migrations"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bundle is a database with the schema, seen through the application's login.
type bundle struct {
	pool   *pgxpool.Pool
	app    string
	owner  *pgxpool.Pool
	master *seal.Master
	keys   *seal.Keyring
}

func setup(t *testing.T) *bundle {
	t.Helper()
	url := testenv.Postgres(t)
	app, err := migrations.Up(t.Context(), url, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	b := &bundle{app: app, pool: pool(t, app), owner: pool(t, url)}
	if b.master, err = seal.LoadMaster(filepath.Join(t.TempDir(), "master.key")); err != nil {
		t.Fatal(err)
	}
	b.keys = b.open(t)
	return b
}

func pool(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	p, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// open gives a keyring as another process would.
func (b *bundle) open(t *testing.T) *seal.Keyring {
	t.Helper()
	keys, err := seal.Open(t.Context(), b.master, records.NewKeys(b.pool))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// stored gives all that lies in a table, as text, to look for what must not be there.
func (b *bundle) stored(t *testing.T, table string) string {
	t.Helper()
	var text string
	if err := b.owner.QueryRow(t.Context(), "SELECT coalesce(string_agg(t::text, ' '), '') FROM pipeops."+table+" t").Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestProcessesThatStartTogetherGetTheSameDataKeys(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.owner.Exec(t.Context(), "DELETE FROM pipeops.keys")
	ok(t, err)
	texts := make(chan string, 10)
	var group sync.WaitGroup
	for range cap(texts) {
		group.Go(func() {
			keys, err := seal.Open(t.Context(), b.master, records.NewKeys(b.pool))
			if err != nil {
				texts <- err.Error()
				return
			}
			texts <- keys.Actor("github", "octocat")
		})
	}
	group.Wait()
	want := b.open(t).Actor("github", "octocat")
	for range cap(texts) {
		if got := <-texts; got != want {
			t.Errorf("one process has %q, another %q", got, want)
		}
	}
}

func TestAnotherMasterKeyIsRefusedByName(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other, err := seal.LoadMaster(filepath.Join(t.TempDir(), "master.key"))
	ok(t, err)
	if _, err := seal.Open(t.Context(), other, records.NewKeys(b.pool)); err == nil || !strings.Contains(err.Error(), b.master.ID()) {
		t.Errorf("got %v, want it to name master key %s", err, b.master.ID())
	}
}

func TestPersonalFieldsAreDeterministicAndBoundToTheirPlace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	here, there := seal.NewSubjects(b.keys, records.NewSubjects(b.pool)), seal.NewSubjects(b.open(t), records.NewSubjects(b.pool))
	one, err := here.SealField(ctx, "act_1", "event-1", "name", "Ada Lovelace")
	ok(t, err)
	two, err := there.SealField(ctx, "act_1", "event-1", "name", "Ada Lovelace")
	ok(t, err)
	if one != two {
		t.Errorf("a retry in another process gives %s, not %s", two, one)
	}
	text, opened, err := there.OpenField(ctx, "act_1", "event-1", "name", one)
	if text != "Ada Lovelace" || !opened || err != nil {
		t.Errorf("opened %q, %v, %v", text, opened, err)
	}
	for _, place := range [][3]string{{"act_1", "event-2", "name"}, {"act_1", "event-1", "email"}} {
		if text, opened, err := here.OpenField(ctx, place[0], place[1], place[2], one); err == nil {
			t.Errorf("opened at %v: %q, %v", place, text, opened)
		}
	}
	if strings.Contains(b.stored(t, "subject_keys"), "Ada") {
		t.Error("plain text beside the keys")
	}
}

func TestErasingASubjectErasesTheirFieldsAndNobodyElses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	s := seal.NewSubjects(b.keys, records.NewSubjects(b.pool))
	ada, err := s.SealField(ctx, "act_ada", "event-1", "name", "Ada")
	ok(t, err)
	bob, err := s.SealField(ctx, "act_bob", "event-1", "name", "Bob")
	ok(t, err)
	for range 2 {
		keys, since, err := s.Erase(ctx, "act_ada")
		if keys != 1 || time.Since(since) > time.Hour || err != nil {
			t.Errorf("erased %d keys, the first from %s, %v", keys, since, err)
		}
	}
	if keys, _, err := s.Erase(ctx, "act_nobody"); keys != 0 || err != nil {
		t.Errorf("of nobody %d keys, %v", keys, err)
	}
	if text, opened, err := s.OpenField(ctx, "act_ada", "event-1", "name", ada); opened || text != "" || err != nil {
		t.Errorf("after the erasure: %q, %v, %v", text, opened, err)
	}
	if text, opened, err := s.OpenField(ctx, "act_bob", "event-1", "name", bob); !opened || text != "Bob" || err != nil {
		t.Errorf("of somebody else: %q, %v, %v", text, opened, err)
	}
	again, err := s.SealField(ctx, "act_ada", "event-2", "name", "Ada")
	ok(t, err)
	if text, opened, err := s.OpenField(ctx, "act_ada", "event-2", "name", again); !opened || text != "Ada" || err != nil {
		t.Errorf("who comes back after an erasure: %q, %v, %v", text, opened, err)
	}
	if _, opened, err := s.OpenField(ctx, "act_ada", "event-1", "name", ada); opened || err != nil {
		t.Errorf("a new key must not bring back the old fields: %v, %v", opened, err)
	}
}

func TestManyFirstFieldsOfOneSubjectMakeOneKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var group sync.WaitGroup
	sealed := make(chan string, 10)
	for range cap(sealed) {
		group.Go(func() {
			s := seal.NewSubjects(b.keys, records.NewSubjects(b.pool))
			text, err := s.SealField(t.Context(), "act_new", "event-1", "name", "Eve")
			if err != nil {
				text = err.Error()
			}
			sealed <- text
		})
	}
	group.Wait()
	first := <-sealed
	for range cap(sealed) - 1 {
		if next := <-sealed; next != first {
			t.Errorf("%s and %s", first, next)
		}
	}
}

func TestADeliveryComesBackByteForByteAndLiesSealed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := records.NewDeliveries(b.pool, b.keys)
	store, err := eventstore.Open(t.Context(), eventstore.Config{URL: b.app, Log: slog.New(slog.DiscardHandler)})
	ok(t, err)
	defer store.Close()
	raw := []byte("{\"sender\": \"ada@example.com\"}\r\n\x00\xff")
	keyID, sealed, err := deliveries.Seal("d1", raw)
	ok(t, err)
	id := domain.EventID("command", 0)
	_, err = store.Append(t.Context(), eventstore.Append{
		Writes: []eventstore.Write{{Stream: "push/p/github/d1", Events: []eventstore.NewEvent{{
			ID: id, Type: "PushReceived", SchemaVersion: 1, Body: []byte("{}"), ProjectID: "prj_1", OccurredAt: time.Now(),
		}}}},
		Attachments: []eventstore.Attachment{{ID: "d1", EventID: id, ProjectID: "prj_1", ContentType: "application/json", KeyID: keyID, Sealed: sealed}},
	})
	ok(t, err)
	got, err := deliveries.Get(t.Context(), "d1")
	ok(t, err)
	got.ReceivedAt = time.Time{}
	want := records.Delivery{ID: "d1", EventID: id, Project: "prj_1", ContentType: "application/json", Raw: raw}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want - got +\n%s", diff)
	}
	var missing *records.NotFoundError
	if _, err := deliveries.Get(t.Context(), "d2"); !errors.As(err, &missing) {
		t.Errorf("got %v, want a NotFoundError", err)
	}
	if strings.Contains(b.stored(t, "deliveries"), "616461406578616d706c65") { // ada@example in hex
		t.Error("a delivery lies in plain")
	}
}

func TestSecretsAreNumberedAndSealed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	secrets := records.NewSecrets(b.pool, b.keys)
	for want, value := range []string{"hunter1", "hunter2"} {
		version, err := secrets.Set(ctx, "prj_1", "webhook", []byte(value))
		if version != want+1 || err != nil {
			t.Fatalf("version %d, %v; want %d", version, err, want+1)
		}
	}
	ok(t, secrets.Put(ctx, "prj_1", "webhook", 3, []byte("hunter3")))
	ok(t, secrets.Put(ctx, "prj_1", "webhook", 3, []byte("a retry changes nothing")))
	for version, want := range map[int]string{0: "hunter3", 1: "hunter1", 2: "hunter2"} {
		if value, _, err := secrets.Get(ctx, "prj_1", "webhook", version); string(value) != want || err != nil {
			t.Errorf("version %d: %q, %v; want %q", version, value, err, want)
		}
	}
	var missing *records.NotFoundError
	if _, _, err := secrets.Get(ctx, "prj_2", "webhook", 0); !errors.As(err, &missing) {
		t.Errorf("got %v, want a NotFoundError", err)
	}
	// A row moved to another project opens for nobody.
	_, err := b.owner.Exec(ctx, "UPDATE pipeops.secrets SET project_id = 'prj_2'")
	ok(t, err)
	if value, _, err := secrets.Get(ctx, "prj_2", "webhook", 0); err == nil {
		t.Errorf("another project reads %q", value)
	}
}

func TestTokensAreVerifiedAndRevokedWithoutBeingStored(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	tokens := records.NewTokens(b.pool, b.keys)
	secret, made, err := tokens.Create(ctx, "laptop")
	ok(t, err)
	again, err := tokens.Register(ctx, "laptop", secret)
	if again.ID != made.ID || err != nil {
		t.Errorf("registered again: %+v, %v; want %+v", again, err, made)
	}
	if made.LastUsed != nil || again.LastUsed != nil {
		t.Errorf("nobody has used it: %+v, %+v", made, again)
	}
	got, err := tokens.Verify(ctx, secret)
	if all, err := tokens.List(ctx); len(all) != 1 || all[0].LastUsed == nil || err != nil {
		t.Errorf("it was used: %+v, %v", all, err)
	}
	if got.ID != made.ID || got.Name != "laptop" || err != nil {
		t.Errorf("verified %+v, %v", got, err)
	}
	if text := b.stored(t, "tokens"); strings.Contains(text, secret) || strings.Contains(text, strings.TrimPrefix(secret, "pipeops_")) {
		t.Error("the token lies in the table")
	}
	ok(t, tokens.Revoke(ctx, made.ID))
	for _, wrong := range []string{secret, "", "pipeops_", secret + "x"} {
		if _, err := tokens.Verify(ctx, wrong); !errors.Is(err, records.ErrBadToken) {
			t.Errorf("%d characters: got %v, want ErrBadToken", len(wrong), err)
		}
	}
	if all, err := tokens.Revoked(ctx); len(all) != 1 || all[0].ID != made.ID || all[0].RevokedAt == nil || err != nil {
		t.Errorf("revoked: %+v, %v", all, err)
	}
	if _, err := tokens.Register(ctx, "laptop", secret); !errors.Is(err, records.ErrBadToken) {
		t.Errorf("a revoked token was registered again: %v", err)
	}
}

func TestLogChunksComeInOrderAndEachByteOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	chunks := records.NewLogChunks(b.pool)
	const attempt = domain.AttemptID("bld_1.1")
	read := func(from int64) string {
		var text strings.Builder
		for c, err := range chunks.Read(ctx, attempt, "build", from) {
			ok(t, err)
			text.Write(c.Bytes)
		}
		return text.String()
	}
	for _, c := range []struct {
		offset int64
		text   string
	}{{5, "56789"}, {0, "01234"}, {0, "01234"}, {3, "34567"}, {10, "abc"}, {11, "b"}, {10, "other"}} {
		ok(t, chunks.Append(ctx, attempt, "build", c.offset, []byte(c.text)))
	}
	ok(t, chunks.Append(ctx, "bld_1.2", "build", 0, []byte("another attempt")))
	for from, want := range map[int64]string{0: "0123456789abc", 4: "456789abc", 12: "c", 13: "", 99: ""} {
		if got := read(from); got != want {
			t.Errorf("from %d: %q, want %q", from, got, want)
		}
	}
	large := strings.Repeat("0123456789abcdef", 1<<16)
	for i := range 3 {
		ok(t, chunks.Append(ctx, "bld_2.1", "build", int64(i)<<20, []byte(large)))
	}
	var got int
	for c, err := range chunks.Read(ctx, "bld_2.1", "build", 1) {
		ok(t, err)
		got += len(c.Bytes)
	}
	if got != 3<<20-1 {
		t.Errorf("read %d bytes, want %d", got, 3<<20-1)
	}
	if err := chunks.Append(ctx, attempt, "build", 0, make([]byte, 1<<20+1)); err == nil {
		t.Error("a chunk over 1 MiB is kept")
	}
	if n, err := chunks.DropBefore(ctx, time.Now().Add(time.Hour)); n != 9 || err != nil {
		t.Errorf("dropped %d chunks, %v; want 9", n, err)
	}
}

func TestTheEndOfOutputIsKept(t *testing.T) {
	t.Parallel()
	b := setup(t)
	logs := records.NewLogChunks(b.pool)
	ok(t, logs.Append(t.Context(), "bld_1.1", "build", 0, []byte("all\n")))
	if _, ended, err := logs.End(t.Context(), "bld_1.1", "build"); ended || err != nil {
		t.Errorf("ended %v, %v before its end was told", ended, err)
	}
	for range 2 { // delivered twice
		ok(t, logs.Append(t.Context(), "bld_1.1", "build", 4, nil))
	}
	if size, ended, err := logs.End(t.Context(), "bld_1.1", "build"); size != 4 || !ended || err != nil {
		t.Errorf("got %d, %v, %v, want 4 bytes", size, ended, err)
	}
	for c, err := range logs.Read(t.Context(), "bld_1.1", "build", 0) {
		if string(c.Bytes) != "all\n" || err != nil {
			t.Errorf("got %q, %v", c.Bytes, err)
		}
	}
}

func TestSlotsAreThoseOfLiveWorkers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	claims := records.NewClaims(b.pool)
	beat := func(worker domain.WorkerID, incarnation, class string, slots int, stopping bool) {
		t.Helper()
		_, err := claims.Beat(ctx, records.Beat{Worker: worker, Incarnation: incarnation, Class: class, Slots: slots, Stopping: stopping})
		ok(t, err)
	}
	beat("wrk_1", "a", "build", 2, false)
	beat("wrk_1", "b", "build", 4, false) // started again
	beat("wrk_2", "c", "build", 3, false)
	beat("wrk_3", "d", "deploy", 1, false)
	beat("wrk_4", "e", "build", 8, true)
	beat("wrk_5", "f", "build", 16, false)
	_, err := b.owner.Exec(ctx, "UPDATE pipeops.claims SET last_seen = last_seen - interval '11 s' WHERE worker = 'wrk_5'")
	ok(t, err)
	got, err := claims.Slots(ctx)
	ok(t, err)
	if diff := cmp.Diff(map[string]int{"build": 7, "deploy": 1}, got); diff != "" {
		t.Errorf("want - got +\n%s", diff)
	}
}

func TestLeasesAreRenewedByHeartbeatsAndLapseWithoutThem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	claims := records.NewClaims(b.pool)
	all := []domain.AttemptID{"bld_1.1", "bld_2.1", "bld_3.1"} // the third has no lease yet
	silent := func() []domain.AttemptID {
		t.Helper()
		got, err := claims.Silent(ctx, all, 15*time.Second)
		ok(t, err)
		return got
	}
	ok(t, claims.Grant(ctx, "bld_1.1", "wrk_1", "a"))
	ok(t, claims.Grant(ctx, "bld_2.1", "wrk_1", "a"))
	if got := silent(); len(got) != 0 {
		t.Errorf("silent at once: %v", got)
	}
	_, err := b.owner.Exec(ctx, "UPDATE pipeops.claim_attempts SET renewed_at = renewed_at - interval '16 s'")
	ok(t, err)
	orphans, err := claims.Beat(ctx, records.Beat{Worker: "wrk_1", Incarnation: "a", Class: "build", Slots: 2, Running: all[:1]})
	if len(orphans) != 0 || err != nil {
		t.Fatalf("orphans %v, %v", orphans, err)
	}
	if diff := cmp.Diff(all[1:], silent()); diff != "" {
		t.Errorf("want - got +\n%s", diff)
	}
}

// What was noted before the clock was set back lies ahead of it.
func TestALeaseIsRightAgainWithTheFirstHeartbeatAfterTheClockJumpedBack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	claims := records.NewClaims(b.pool)
	all := []domain.AttemptID{"bld_1.1", "bld_2.1"}
	for _, attempt := range all {
		ok(t, claims.Grant(ctx, attempt, "wrk_1", "a"))
	}
	turnClock := func(by string) {
		t.Helper()
		_, err := b.owner.Exec(ctx, "UPDATE pipeops.claim_attempts SET renewed_at = renewed_at - $1::text::interval", by)
		ok(t, err)
	}
	silent := func(want ...domain.AttemptID) {
		t.Helper()
		got, err := claims.Silent(ctx, all, 15*time.Second)
		ok(t, err)
		if !slices.Equal(got, want) {
			t.Errorf("silent are %v, want %v", got, want)
		}
	}
	turnClock("-1 hour")
	_, err := claims.Beat(ctx, records.Beat{Worker: "wrk_1", Incarnation: "a", Class: "build", Slots: 2, Running: all[:1]})
	ok(t, err)
	silent()
	turnClock("16 s")
	silent("bld_1.1") // the other one lapses an hour late
	turnClock("1 hour")
	silent(all...)
}

func TestAWorkerThatStartedAgainHasLostItsAttempts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	claims := records.NewClaims(b.pool)
	beat := func(incarnation string, running ...domain.AttemptID) []domain.AttemptID {
		t.Helper()
		orphans, err := claims.Beat(ctx, records.Beat{Worker: "wrk_1", Incarnation: incarnation, Class: "build", Slots: 2, Running: running})
		ok(t, err)
		return orphans
	}
	beat("a", "bld_1.1")
	ok(t, claims.Grant(ctx, "bld_2.1", "wrk_1", "a"))
	ok(t, claims.Grant(ctx, "bld_3.1", "wrk_2", "x"))
	ok(t, claims.Grant(ctx, "bld_4.1", "wrk_1", "b")) // claimed before its first heartbeat
	orphans := beat("b", "bld_4.1")
	if len(orphans) != 2 || orphans[0]+orphans[1] != "bld_1.1bld_2.1" && orphans[0]+orphans[1] != "bld_2.1bld_1.1" {
		t.Errorf("orphans are %v, want bld_1.1 and bld_2.1", orphans)
	}
	if again := beat("b", "bld_4.1"); len(again) != 0 {
		t.Errorf("orphans again: %v", again)
	}
	if late := beat("a"); len(late) != 0 { // the old one wakes up
		t.Errorf("an old incarnation takes over from a new one: %v", late)
	}
}

func TestOneLeadsAndTheNextFollowsAtOnceWhenItsConnectionIsLost(t *testing.T) {
	t.Parallel()
	b := setup(t)
	leaders := records.NewLeaders(b.pool, slog.New(slog.DiscardHandler))
	started := make(chan int, 2)
	ended := make(chan int, 2)
	ctx, cancel := context.WithCancelCause(t.Context())
	var group sync.WaitGroup
	for i := range 2 {
		group.Go(func() {
			err := leaders.Lead(ctx, "test", func(ctx context.Context) error {
				started <- i
				<-ctx.Done()
				ended <- i
				return context.Cause(ctx)
			})
			if err != nil {
				t.Errorf("leader %d: %v", i, err)
			}
		})
	}
	first := <-started
	select {
	case second := <-started:
		t.Fatalf("%d and %d lead together", first, second)
	default:
	}
	_, err := b.owner.Exec(t.Context(), `SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
		WHERE l.locktype = 'advisory' AND l.granted AND d.datname = current_database()`)
	ok(t, err)
	if second := <-started; second == first {
		t.Errorf("%d leads again, though the other one waited", first)
	}
	if got := <-ended; got != first {
		t.Errorf("%d was told to end, want %d", got, first)
	}
	cancel(nil)
	group.Wait()
}

func TestALeaderThatFailsLetsAnotherOneLeadAndTriesAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	leaders := records.NewLeaders(b.pool, slog.New(slog.DiscardHandler))
	var tries atomic.Int64
	stuck := make(chan error, 1)
	failed, done := make(chan struct{}), make(chan struct{})
	go func() {
		stuck <- leaders.Lead(t.Context(), "test", func(context.Context) error {
			if tries.Add(1) == 1 {
				close(failed)
				return errors.New("an event of a newer version")
			}
			return nil
		})
	}()
	<-failed
	ok(t, leaders.Lead(t.Context(), "test", func(context.Context) error {
		close(done)
		return nil
	}))
	<-done
	ok(t, <-stuck)
	if n := tries.Load(); n != 2 {
		t.Errorf("led %d times, want 2", n)
	}
}
