package domain

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestAnErasureIsRecordedOnItsDayWithItsReason(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	at := time.Date(2026, 11, 24, 0, 30, 0, 0, time.FixedZone("elsewhere", 3600)) // still the 23rd in UTC
	erase := EraseSubject{Subject: "act_1", Reason: "request 4711", Keys: 2, At: at}
	changes, err := erase.Decide(s.state)
	if err != nil {
		t.Fatal(err)
	}
	want := Change{"operation/2026-11-23", SubjectErased{Subject: "act_1", Reason: "request 4711", Keys: 2}}
	if len(changes) != 1 || changes[0] != want || erase.Reads(s.state)[0] != want.Stream {
		t.Errorf("got %v, want %v", changes, want)
	}
	s.then(erase, "SubjectErased")
	s.then(erase, "SubjectErased") // whoever asks again is on the record again
}

func TestAnErasureOfNobodyOrWithoutAReasonIsRefused(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	s.refused(EraseSubject{Subject: "act_1", Reason: "r"}, "UNKNOWN_SUBJECT")
	s.refused(EraseSubject{Reason: "r", Keys: 1}, "UNKNOWN_SUBJECT")
	for _, reason := range []string{"", "a\nb", "a\x00", "\xff", strings.Repeat("x", 501)} {
		s.refused(EraseSubject{Subject: "act_1", Reason: reason, Keys: 1}, "BAD_REASON")
	}
}

func TestWhoMayComeInIsOnRecord(t *testing.T) {
	t.Parallel()
	s := newScenario(t)
	at := time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)
	for _, e := range []OperationEvent{TokenCreated{Token: "t", Name: "laptop"}, TokenRevoked{Token: "t", Name: "laptop"}, CheckpointKeyCreated{Key: "tree-heads/2"}} {
		s.then(RecordAccess{Event: e, At: at}, TypeOf(e))
	}
}

func TestARecordOfAReplaySaysWhyItEndedWithinBounds(t *testing.T) {
	t.Parallel()
	changes, err := RecordReplay{Replay: ReplayRun{Kind: "policy", Ended: "x" + strings.Repeat("é", maxEnded)}}.Decide(nil)
	if err != nil {
		t.Fatal(err)
	}
	got := changes[0].Event.(ReplayRun).Ended
	if len(got) != maxEnded-1 || !utf8.ValidString(got) { // no half letter
		t.Errorf("got %d bytes, %q", len(got), got)
	}
}

func TestAReplaysRecordOfEarlierVersionsStaysAsItIs(t *testing.T) {
	t.Parallel()
	const was = `{"kind":"projections","from":"0.0","to":"1.42","counts":[{"name":"rows","count":7}],"different":0}`
	e, err := Decode("ReplayRun", 1, []byte(was))
	if err != nil {
		t.Fatal(err)
	}
	body, err := Encode(e, "id", fakeSeal)
	if err != nil || string(body) != was {
		t.Errorf("got %s, %v, want %s", body, err, was)
	}
}
