// Package storetest receives a way to open event stores on a fresh log from the tests of an implementation, and checks
// that they keep the contract of package eventstore; effects (those of the stores).
//
// What it checks: one dense order of positions in which no reader misses or reorders anything; expected versions;
// the same append twice is once, from any process; cursors that fence; reading by position, stream, project, type and
// correlation; subscriptions that replay and follow without gap or double; bad input by typed errors. What depends on
// how a store keeps things (crashes, rights, restores, memory) is for the implementation's own tests.
//
//	func TestStore(t *testing.T) {
//		storetest.Run(t, func(t *testing.T) func() storetest.Store {
//			log := newLog(t)
//			return func() storetest.Store { return log.open(t) }
//		})
//	}
package storetest

import (
	"context"
	"iter"
	"testing"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// Store is what the suite checks; *eventstore.Store says what each method promises.
type Store interface {
	Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error)
	Read(ctx context.Context, q eventstore.Query) iter.Seq2[domain.Recorded, error]
	ReadStream(ctx context.Context, stream domain.Stream, afterVersion int64) iter.Seq2[domain.Recorded, error]
	Find(ctx context.Context, ids ...string) ([]domain.Recorded, error)
	Head(ctx context.Context) (domain.Cursor, error)
	Check(ctx context.Context, cursor domain.Cursor) error
	LoadCursor(ctx context.Context, name string) (domain.Cursor, error)
	Subscribe(ctx context.Context, after domain.Cursor, filter eventstore.Filter) iter.Seq2[eventstore.Batch, error]
	Wait(ctx context.Context, after domain.Cursor) (head domain.Cursor, err error)
}

var _ Store = (*eventstore.Store)(nil)

// contract is the suite. A number is that of the acceptance test of an event store that it stands for.
var contract = []struct {
	name string
	test func(*testing.T, func() Store)
}{
	{"Append keeps the whole envelope and the exact bytes", appendKeepsTheWholeEnvelopeAndTheExactBytes},
	{"Append to several streams is all or nothing", appendToSeveralStreamsIsAllOrNothing},
	{"Append of many events is one order", anAppendOfManyEventsIsOneOrder},
	{"Append that can never be written is named", appendsThatCanNeverBeWrittenAreNamed},
	{"Acceptance02 positions are dense and no reader misses or reorders", positionsAreDenseAndNoReaderEverMissesOrReorders},
	{"Acceptance03 of many writers at the same version one wins", ofManyWritersAtTheSameVersionOneWins},
	{"Acceptance04 writers who take any version all get their own", writersWhoTakeAnyVersionAllGetTheirOwn},
	{"Acceptance05 the same append twice is once", theSameAppendTwiceIsOnce},
	{"Acceptance05 the same append from many at once is once", theSameAppendFromManyAtOnceIsOnce},
	{"Acceptance06 an id with another meaning is refused and nothing written", anIDWithAnotherMeaningIsRefusedAndNothingWritten},
	{"Cursor fences a second leader", aCursorFencesASecondLeader},
	{"Read picks by project, type, stream and correlation", readPicksByProjectTypeStreamAndCorrelation},
	{"Find gives what is recorded, in order", findGivesWhatIsRecordedInOrder},
	{"Subscribe replays and then follows", aSubscriptionReplaysAndThenFollows},
	{"Subscribe moves its cursor where the filter lets nothing through", theCursorGoesOnWhereTheFilterLetsNothingThrough},
	{"Acceptance21 a subscription cut at random sees exactly the filtered log", aSubscriptionCutAtRandomSeesExactlyTheFilteredLog},
	{"Wait wakes up or ends with its context", waitWakesUpOrEndsWithItsContext},
	{"Check tells a cursor ahead of the log", checkTellsACursorAheadOfTheLog},
}

// Run checks an implementation. fresh makes an empty log and gives what opens one more store on it, as one more process
// would have, that follows the log and is closed when the test ends.
func Run(t *testing.T, fresh func(t *testing.T) (open func() Store)) {
	t.Helper()
	for _, c := range contract {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, fresh(t))
		})
	}
}
