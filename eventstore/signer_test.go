package eventstore_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/storetest"
	"github.com/pipeops/pipeops/eventstore/verify"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/internal/seal"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/migrations"
)

// signing is a database whose tree heads can be signed.
type signing struct {
	*bundle

	t      testing.TB
	master *seal.Master
	keys   *seal.Keyring
}

func setupSigning(t testing.TB) *signing {
	t.Helper()
	b := setup(t)
	master, err := seal.LoadMaster(filepath.Join(t.TempDir(), "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := seal.Open(t.Context(), master, records.NewKeys(b.Pool()))
	if err != nil {
		t.Fatal(err)
	}
	return &signing{b, t, master, keys}
}

// signer gives one as another process would have it.
func (s *signing) signer(store *eventstore.Store, change ...func(*eventstore.SignerConfig)) *eventstore.Signer {
	s.t.Helper()
	config := eventstore.SignerConfig{Store: store, Keys: s.keys, Leader: records.NewLeaders(store.Pool(), quiet()), Log: quiet()}
	for _, f := range change {
		f(&config)
	}
	signer, err := eventstore.NewSigner(config)
	if err != nil {
		s.t.Fatal(err)
	}
	return signer
}

func (s *signing) append(n int) {
	s.t.Helper()
	for ; n > 0; n -= 500 {
		storetest.MustAppend(s.t, s.Store, storetest.One("build/1", eventstore.AnyVersion, storetest.NewEvents(min(n, 500), "A")...))
	}
}

func (s *signing) mustSign(signer *eventstore.Signer) eventstore.Head {
	s.t.Helper()
	head, err := signer.Sign(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return head
}

// check sees to it that every head is good: signed, the root of what is recorded, and consistent with each other.
func (s *signing) check() (heads []eventstore.Head) {
	s.t.Helper()
	ctx := s.t.Context()
	id, err := s.LogID(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	public, _, err := s.keys.HeadSigner(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	for head, err := range s.Heads(ctx, 1<<60, 1<<30) {
		if err != nil {
			s.t.Fatal(err)
		}
		if !head.Holds {
			continue
		}
		heads = append(heads, head)
	}
	tree, next := verify.Tree{}, 0
	for e, err := range s.Read(ctx, eventstore.Query{}) {
		if err != nil {
			s.t.Fatal(err)
		}
		tree.Add(verify.LeafHash(e))
		for ; next < len(heads) && heads[next].Size <= tree.Size(); next++ {
			h := heads[next]
			c, err := verify.Keys{LogID: id, Public: public}.Open([]byte(h.Checkpoint))
			want := verify.Checkpoint{LogID: id, Epoch: h.Epoch, Size: tree.Size(), Root: tree.Root()}
			if err != nil || c != want || h.Root != want.Root {
				s.t.Fatalf("head %d of %d is %+v, want %+v, %v", next, len(heads), c, want, err)
			}
		}
	}
	for i := 1; i < len(heads); i++ {
		older, newer := heads[i-1], heads[i]
		proof, err := tlog.ProveTree(newer.Size, older.Size, s.Tree(ctx, newer.Size))
		if err == nil {
			err = tlog.CheckTree(proof, newer.Size, newer.Root, older.Size, older.Root)
		}
		if err != nil {
			s.t.Fatalf("heads of %d and %d events: %v", older.Size, newer.Size, err)
		}
	}
	return heads
}

func TestHeadsAreSignedOverTheWholeLogAndCanBeTakenUpByAnyProcess(t *testing.T) {
	t.Parallel()
	s := setupSigning(t)
	signer := s.signer(s.Store)
	if head := s.mustSign(signer); head.Size != 0 {
		t.Errorf("the empty log has a head of %d events", head.Size)
	}
	for i, n := range []int{1, 254, 1, 1, 300, 700} {
		s.append(n)
		if i%2 == 1 {
			signer = s.signer(s.Store) // after a restart
		}
		head := s.mustSign(signer)
		if head.Size != storetest.Count(t, s.Store) || !head.Holds || head.Epoch != 1 {
			t.Errorf("got %+v", head)
		}
		if again := s.mustSign(signer); again != head {
			t.Errorf("nothing is new, and it was signed again: %+v", again)
		}
	}
	heads := s.check()
	if len(heads) != 6 {
		t.Errorf("%d heads, want 6", len(heads))
	}
	// Each event can be proven, also by a tree that is read anew.
	newest := heads[5]
	events := storetest.Collect(t, s.Read(t.Context(), eventstore.Query{}))
	for _, n := range []int64{0, 1, 255, 256, 511, 1000, newest.Size - 1} {
		proof, err := tlog.ProveRecord(newest.Size, n, s.Tree(t.Context(), newest.Size))
		if err == nil {
			err = tlog.CheckRecord(proof, newest.Size, newest.Root, n, verify.LeafHash(events[n]))
		}
		if err != nil {
			t.Errorf("event %d: %v", n, err)
		}
	}
	var leaves []tlog.Hash
	for some, err := range s.Leaves(t.Context(), newest.Size) {
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, some...)
	}
	for i, e := range events {
		if leaves[i] != verify.LeafHash(e) {
			t.Fatalf("leaf %d is another", i)
		}
	}
}

func TestAKeyIsReplacedAndOldHeadsStayGood(t *testing.T) {
	t.Parallel()
	s := setupSigning(t)
	signer := s.signer(s.Store)
	s.append(3)
	first := s.mustSign(signer)
	if id, err := s.keys.Rotate(t.Context(), seal.TreeHeads); id != "tree-heads/2" || err != nil {
		t.Fatalf("%s, %v", id, err)
	}
	s.append(3)
	second := s.mustSign(signer)
	if len(s.check()) != 2 {
		t.Error("a head is missing")
	}
	id, err := s.LogID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	public, _, err := s.keys.HeadSigner(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, head := range []eventstore.Head{first, second} {
		if _, err := (verify.Keys{LogID: id, Public: public[i : i+1]}).Open([]byte(head.Checkpoint)); err != nil {
			t.Errorf("head %d isn't signed with key %d: %v", i+1, i+1, err)
		}
	}
}

var errKilled = errors.New("killed")

// dying signs with a process that dies there: before it signs, or after it has signed and before the head is kept.
type dying struct {
	eventstore.HeadKeys

	step int
	kill context.CancelCauseFunc
}

func (d dying) HeadSigner(ctx context.Context) ([]ed25519.PublicKey, func([]byte) ([]byte, error), error) {
	if d.step == 0 {
		d.kill(errKilled)
	}
	public, sign, err := d.HeadKeys.HeadSigner(ctx)
	return public, func(text []byte) ([]byte, error) {
		d.kill(errKilled)
		return sign(text)
	}, err
}

func TestASignerKilledAtAnyStepLosesNothing(t *testing.T) {
	t.Parallel()
	s := setupSigning(t)
	for step := range 2 {
		s.append(600)
		ctx, kill := context.WithCancelCause(t.Context())
		dies := s.signer(s.Store, func(c *eventstore.SignerConfig) { c.Keys = dying{s.keys, step, kill} })
		if head, err := dies.Sign(ctx); err == nil {
			t.Fatalf("step %d: it lives and has signed %+v", step, head)
		}
		if tiles := s.number("SELECT count(*) FROM pipeops.tree_tiles"); tiles == 0 {
			t.Errorf("step %d: there is no tile", step)
		}
		if head := s.mustSign(s.signer(s.Store)); head.Size != storetest.Count(t, s.Store) {
			t.Errorf("step %d: the next one has signed %+v", step, head)
		}
		s.check()
	}
	// While tiles are stored: the third one is refused for a time.
	s.exec(`CREATE FUNCTION pipeops.fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'fault'; END $$;
		CREATE TRIGGER fault BEFORE INSERT ON pipeops.tree_tiles FOR EACH ROW WHEN (NEW.index = 6) EXECUTE FUNCTION pipeops.fault()`)
	s.append(1500)
	signer := s.signer(s.Store)
	if head, err := signer.Sign(t.Context()); err == nil {
		t.Fatalf("it has signed %+v without a tile", head)
	}
	s.exec("DROP TRIGGER fault ON pipeops.tree_tiles")
	s.mustSign(signer)
	// At any moment.
	for range 40 {
		s.append(100)
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Duration(rand.IntN(6000))*time.Microsecond, errKilled)
		_, _ = s.signer(s.Store).Sign(ctx)
		cancel()
	}
	s.mustSign(s.signer(s.Store))
	s.check()
}

func (s *signing) exec(statement string) {
	s.t.Helper()
	if _, err := s.owner.Exec(s.t.Context(), statement); err != nil {
		s.t.Fatal(err)
	}
}

func (s *signing) number(query string) (n int64) {
	s.t.Helper()
	if err := s.owner.QueryRow(s.t.Context(), query).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

func TestTwoSignersAtOnceNeverContradictEachOther(t *testing.T) {
	t.Parallel()
	s := setupSigning(t)
	stores := []*eventstore.Store{s.Store, s.open(t, eventstore.Config{})}
	var group sync.WaitGroup
	for _, store := range stores {
		signer := s.signer(store)
		group.Go(func() {
			for range 30 {
				if _, err := store.Append(t.Context(), storetest.One(domain.Stream(fmt.Sprintf("build/%p", store)), eventstore.AnyVersion, storetest.NewEvents(37, "A")...)); err != nil {
					t.Error(err)
				}
				if _, err := signer.Sign(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if heads := s.check(); len(heads) < 30 {
		t.Errorf("%d heads", len(heads))
	}
}

func TestALogThatContradictsASignedHeadIsNotSigned(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		tamper   string
		position int64
	}{
		"the tail is lost":   {"DELETE FROM pipeops.events WHERE position > 580", 581},
		"a gap":              {"DELETE FROM pipeops.events WHERE position = 590", 590},
		"the tail is others": {"UPDATE pipeops.events SET actor = 'somebody' WHERE position = 590", 0},
		"a tile is others":   {"UPDATE pipeops.tree_tiles SET hashes = reverse(hashes::text)::bytea WHERE false; UPDATE pipeops.tree_tiles SET hashes = sha256('')||substr(hashes, 33)", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := setupSigning(t)
			s.append(600)
			s.mustSign(s.signer(s.Store))
			s.exec("ALTER TABLE pipeops.events DISABLE TRIGGER USER; ALTER TABLE pipeops.tree_tiles DISABLE TRIGGER USER")
			s.exec(c.tamper)
			_, err := s.signer(s.Store).Sign(t.Context())
			var conflict *eventstore.HeadConflictError
			if !errors.As(err, &conflict) || conflict.Position != c.position || conflict.Size != 600 {
				t.Fatalf("got %v, want a conflict at position %d", err, c.position)
			}
			if n := s.number("SELECT count(*) FROM pipeops.tree_heads"); n != 1 {
				t.Errorf("%d heads", n)
			}
		})
	}
}

func TestAfterADeclaredRestoreHeadsAreSignedInANewEpoch(t *testing.T) {
	t.Parallel()
	s := setupSigning(t)
	signer := s.signer(s.Store)
	s.append(400)
	s.mustSign(signer)
	s.append(400)
	s.mustSign(signer)
	s.exec("ALTER TABLE pipeops.events DISABLE TRIGGER USER; DELETE FROM pipeops.events WHERE position > 700; ALTER TABLE pipeops.events ENABLE TRIGGER USER")
	if _, err := signer.Sign(t.Context()); err == nil {
		t.Fatal("a lost tail was signed")
	}
	s.exec("SELECT pipeops.raise_log_epoch()")
	head := s.mustSign(signer)
	if head.Epoch != 2 || head.Size != 700 {
		t.Errorf("got %+v, want one of epoch 2 before anything new", head)
	}
	s.append(400)
	if head = s.mustSign(signer); head.Epoch != 2 || head.Size != 1100 {
		t.Errorf("got %+v", head)
	}
	if heads := s.check(); len(heads) != 3 {
		t.Errorf("%d heads hold, want 3", len(heads))
	}
	if held := s.mustSign(s.signer(s.open(t, eventstore.Config{}))); held != head {
		t.Errorf("another process has %+v", held)
	}
}

// What a failover has lost: the end of the log, and the newest head with it.
func TestALogThatLostASignedHeadAndGrewAgainIsNotSigned(t *testing.T) {
	t.Parallel()
	s := setupSigning(t)
	signer := s.signer(s.Store)
	s.append(50)
	s.mustSign(signer)
	s.append(50)
	s.mustSign(signer)
	lose := func(position int) {
		s.exec(fmt.Sprintf(`ALTER TABLE pipeops.events DISABLE TRIGGER USER; ALTER TABLE pipeops.tree_heads DISABLE TRIGGER USER;
			DELETE FROM pipeops.events WHERE position > %d; DELETE FROM pipeops.tree_heads WHERE size > %d;
			ALTER TABLE pipeops.events ENABLE TRIGGER USER; ALTER TABLE pipeops.tree_heads ENABLE TRIGGER USER`, position, position))
	}
	refuses := func(what string) {
		t.Helper()
		_, err := signer.Sign(t.Context())
		if conflict := new(eventstore.HeadConflictError); !errors.As(err, &conflict) || conflict.Size != 100 {
			t.Errorf("%s: %v", what, err)
		}
		if head, err := s.NewestHead(t.Context()); err != nil || head.Size != 50 {
			t.Errorf("%s: the newest head has %d events, %v", what, head.Size, err)
		}
	}
	lose(50)
	refuses("cut")
	s.append(5)
	refuses("grown a little")
	s.append(95)
	refuses("grown further than it was")
	s.exec("SELECT pipeops.raise_log_epoch()")
	if head := s.mustSign(signer); head.Epoch != 2 || head.Size != 150 {
		t.Errorf("after it was declared: %+v", head)
	}
}

func TestALostTileIsMadeAnewFromTheLog(t *testing.T) {
	t.Parallel()
	s := setupSigning(t)
	s.append(800)
	s.mustSign(s.signer(s.Store))
	s.exec("ALTER TABLE pipeops.tree_tiles DISABLE TRIGGER USER; DELETE FROM pipeops.tree_tiles WHERE index = 1")
	s.append(1)
	s.mustSign(s.signer(s.Store))
	s.check()
	if n := s.number("SELECT count(*) FROM pipeops.tree_tiles"); n != 3 {
		t.Errorf("%d tiles", n)
	}
}

func TestTheRootOfAnySizeIsThatOfTheEventsAndStoresNothing(t *testing.T) {
	t.Parallel()
	s := setupSigning(t)
	s.append(700)
	s.mustSign(s.signer(s.Store))
	s.append(900) // not signed: there are neither tiles nor a head
	roots, tree := []tlog.Hash{(&verify.Tree{}).Root()}, verify.Tree{}
	for e, err := range s.Read(t.Context(), eventstore.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		tree.Add(verify.LeafHash(e))
		roots = append(roots, tree.Root())
	}
	check := func() {
		t.Helper()
		for _, size := range []int64{0, 1, 255, 256, 600, 699, 700, 701, 1024, 1600} {
			if root, err := s.RootAt(t.Context(), size); err != nil || root != roots[size] {
				t.Errorf("of %d events: %s, %v, want %s", size, root, err, roots[size])
			}
		}
	}
	check()
	if tiles, heads := s.number("SELECT count(*) FROM pipeops.tree_tiles"), s.number("SELECT count(*) FROM pipeops.tree_heads"); tiles != 2 || heads != 1 {
		t.Errorf("%d tiles and %d heads, want 2 and 1", tiles, heads)
	}
	_, err := s.RootAt(t.Context(), 1601)
	if conflict, ok := errors.AsType[*eventstore.HeadConflictError](err); !ok || conflict.Position != 1601 {
		t.Errorf("of more than there are: %v", err)
	}
	s.exec("ALTER TABLE pipeops.tree_tiles DISABLE TRIGGER USER; DELETE FROM pipeops.tree_tiles WHERE index = 1")
	check()
}

func TestRunSignsWhatIsNewSoonAndTakesOver(t *testing.T) {
	t.Parallel()
	s := setupSigning(t)
	stores := []*eventstore.Store{s.Store, s.open(t, eventstore.Config{PollInterval: 20 * time.Millisecond})}
	var ends []context.CancelCauseFunc
	var group sync.WaitGroup
	for _, store := range stores {
		run(t, store)
		signer := s.signer(store, func(c *eventstore.SignerConfig) { c.Interval, c.Events = time.Hour, 100 })
		ctx, end := context.WithCancelCause(t.Context())
		ends = append(ends, end)
		group.Go(func() {
			if err := signer.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	defer group.Wait()
	defer ends[1](nil)
	s.append(1)
	wait := func(size int64) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; {
			head, err := s.NewestHead(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if head.Size >= size {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the newest head has %d events, want %d", head.Size, size)
			}
			select {
			case <-t.Context().Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	s.append(150)
	wait(101)
	ends[0](nil)
	s.append(150)
	wait(201)
	s.check()
}

// Acceptance test 10, as far as proofs go.
func TestAcceptance10_AfterADumpIntoANewDatabaseProofsGoOn(t *testing.T) {
	t.Parallel()
	s := setupSigning(t)
	s.append(300)
	s.mustSign(s.signer(s.Store))
	s.append(400)
	kept := s.mustSign(s.signer(s.Store))
	fresh := testenv.Postgres(t)
	copyDatabase(t, s.owner.Config().ConnString(), fresh)
	app, err := migrations.Up(t.Context(), fresh, quiet())
	if err != nil {
		t.Fatal(err)
	}
	owner, err := pgxpool.New(t.Context(), fresh)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(owner.Close)
	restored := &signing{bundle: &bundle{app: app, owner: owner}, t: t, master: s.master}
	restored.Store = restored.open(t, eventstore.Config{})
	if restored.keys, err = seal.Open(t.Context(), s.master, records.NewKeys(restored.Pool())); err != nil {
		t.Fatal(err)
	}
	signer := restored.signer(restored.Store)
	if head := restored.mustSign(signer); head.Checkpoint != kept.Checkpoint || !head.Holds {
		t.Errorf("the newest head is %+v, want %+v", head, kept)
	}
	restored.append(100)
	head := restored.mustSign(signer)
	proof, err := tlog.ProveTree(head.Size, kept.Size, restored.Tree(t.Context(), head.Size))
	if err == nil {
		err = tlog.CheckTree(proof, head.Size, head.Root, kept.Size, kept.Root)
	}
	if err != nil || head.Size != 800 {
		t.Errorf("a head of %d events: %v", head.Size, err)
	}
	if len(restored.check()) != 3 {
		t.Error("a head is missing")
	}
	_, err = restored.owner.Exec(t.Context(), "DELETE FROM pipeops.tree_heads")
	if err == nil {
		t.Error("after the restore heads can be deleted")
	}
}

// copyDatabase dumps one into another, empty one.
func copyDatabase(t *testing.T, from, to string) {
	t.Helper()
	folders, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	tool := func(name string) string {
		if len(folders) == 0 {
			return name
		}
		return filepath.Join(folders[len(folders)-1], name)
	}
	dump := exec.CommandContext(t.Context(), tool("pg_dump"), "--dbname="+from)
	restore := exec.CommandContext(t.Context(), tool("psql"), "--dbname="+to, "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null")
	var dumped, restored bytes.Buffer
	dump.Stderr, restore.Stderr = &dumped, &restored
	pipe, err := dump.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	restore.Stdin = pipe
	if err := errors.Join(dump.Start(), restore.Run(), dump.Wait()); err != nil {
		t.Fatalf("%v\n%s%s", err, dumped.String(), restored.String())
	}
}

func BenchmarkSign(b *testing.B) {
	const n = 100_000
	s := setupSigning(b)
	for range n / 2000 {
		storetest.MustAppend(b, s.Store, storetest.One("build/1", eventstore.AnyVersion, storetest.NewEvents(2000, "LayerBuilt")...))
	}
	for b.Loop() {
		b.StopTimer()
		s.exec(`ALTER TABLE pipeops.tree_tiles DISABLE TRIGGER USER; ALTER TABLE pipeops.tree_heads DISABLE TRIGGER USER;
			DELETE FROM pipeops.tree_tiles; DELETE FROM pipeops.tree_heads`)
		signer := s.signer(s.Store)
		b.StartTimer()
		s.mustSign(signer)
	}
	b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
