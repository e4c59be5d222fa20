package bus

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"

	"github.com/pipeops/pipeops/domain"
)

// WireVersion stands in the header "pipeops-version" of every message.
const WireVersion = "1"

// Kind says what a job is about.
type Kind string

// The two kinds of work; a worker's class is the kind that it does.
const (
	KindBuild  Kind = "build"
	KindDeploy Kind = "deploy"
)

// Job says that a subject wants a worker. It carries the whole context of the
// work except secrets. Sent on `pipeops.jobs`, key = kind.
type Job struct {
	Kind      Kind             `json:"kind"`
	Subject   string           `json:"subject"` // build or deployment id
	Project   domain.ProjectID `json:"project"`
	Context   json.RawMessage  `json:"context"`   // domain.BuildContext or domain.DeployContext
	Published domain.Time      `json:"published"` // when; a job older than its republish time is stale, yet harmless
}

// Claim asks for the work of a job before any effect. Sent on
// `pipeops.claims`, signed with the worker's enrolled key. The same ClaimID
// always gets the same grant.
type Claim struct {
	ClaimID      string          `json:"claimId"` // UUID
	Kind         Kind            `json:"kind"`
	Subject      string          `json:"subject"`
	Worker       domain.WorkerID `json:"worker"`
	Incarnation  string          `json:"incarnation"`  // new at each start of the worker; also names its reply queue
	EphemeralKey []byte          `json:"ephemeralKey"` // X25519 public key, 32 bytes; secrets are sealed to it
	At           domain.Time     `json:"at"`
}

// Signed is a claim with the Ed25519 signature over its exact bytes.
type Signed struct {
	Claim     json.RawMessage `json:"claim"`
	Signature []byte          `json:"signature"`
}

// Answer is what a worker's own reply queue carries: exactly one field is set.
// Sent on `pipeops.replies`, key = incarnation.
type Answer struct {
	Grant     *Grant           `json:"grant,omitempty"`
	Refusal   *Refusal         `json:"refusal,omitempty"`
	Heartbeat *HeartbeatAnswer `json:"heartbeat,omitempty"`
}

// Grant lets a worker begin.
type Grant struct {
	ClaimID      string           `json:"claimId"`
	Attempt      domain.AttemptID `json:"attempt"`
	FencingEpoch int64            `json:"fencingEpoch"`       // deployments only
	Token        string           `json:"token"`              // HMAC(server key, attempt, incarnation), hex
	Context      json.RawMessage  `json:"context"`            // as decided at the claim; newer than the job's
	Sealed       []byte           `json:"sealed,omitempty"`   // JSON map of secrets, sealed to the ephemeral key
	Digest       string           `json:"digest,omitempty"`   // of an earlier attempt's accepted image: tag it and end
	Sequence     int64            `json:"sequence"`           // last stored item of this attempt (0 for a new one)
	Rollback     bool             `json:"rollback,omitempty"` // an earlier attempt failed and its roll-back has begun: only finish that
}

// Refusal ends a claim. The job is acknowledged and dropped.
type Refusal struct {
	ClaimID string `json:"claimId"`
	Reason  string `json:"reason"`
}

// SignedHeartbeat is a heartbeat with the signature of the worker's enrolled
// key over it: a new incarnation ends the attempts of the one before.
type SignedHeartbeat struct {
	Heartbeat json.RawMessage `json:"heartbeat"`
	Signature []byte          `json:"signature"` // Ed25519, over "pipeops/heartbeat/1\n" and the exact bytes
}

// SignHeartbeat signs what a worker tells.
func SignHeartbeat(h Heartbeat, key ed25519.PrivateKey) (SignedHeartbeat, error) {
	text, err := json.Marshal(h)
	if err != nil {
		return SignedHeartbeat{}, fmt.Errorf("sign the heartbeat of %s: %w", h.Worker, err)
	}
	return SignedHeartbeat{Heartbeat: text, Signature: ed25519.Sign(key, heartbeatText(text))}, nil
}

// SignedBy says whether the key made the signature.
func (s SignedHeartbeat) SignedBy(key []byte) bool {
	return len(key) == ed25519.PublicKeySize && ed25519.Verify(key, heartbeatText(s.Heartbeat), s.Signature)
}

// heartbeatText is what is signed: nothing else that a worker signs can pass for a heartbeat.
func heartbeatText(text []byte) []byte { return append([]byte("pipeops/heartbeat/1\n"), text...) }

// Heartbeat keeps the leases of what a worker runs, and tells its free slots.
// Sent signed every 2 s on `pipeops.claims`, also when idle; not durable.
type Heartbeat struct {
	Worker      domain.WorkerID `json:"worker"`
	Incarnation string          `json:"incarnation"`
	Class       Kind            `json:"class"`
	Slots       int             `json:"slots"` // in all
	Running     []Running       `json:"running"`
	Beat        int64           `json:"beat"`               // number of this heartbeat, from 1; the answer names it
	Stopping    bool            `json:"stopping,omitempty"` // takes no new work
}

// Running is one attempt that a worker works on.
type Running struct {
	Attempt  domain.AttemptID `json:"attempt"`
	Token    string           `json:"token"`
	Sequence int64            `json:"sequence"` // last item that the worker made
}

// HeartbeatAnswer tells what is stored. It answers heartbeats, and every
// stored report at once. What a worker hears counts as contact from when the
// named heartbeat was sent, so that an old answer, read after a freeze, isn't
// taken for news.
type HeartbeatAnswer struct {
	Beat    int64    `json:"beat,omitempty"` // the heartbeat that is answered; 0: a report is
	Running []Stored `json:"running"`        // to a heartbeat: all attempts that it named and whose token holds
}

// Stored is how far one attempt is in the store.
type Stored struct {
	Attempt domain.AttemptID `json:"attempt"`
	Stored  int64            `json:"stored"`           // last stored sequence; the worker sends again what follows
	Cancel  string           `json:"cancel,omitempty"` // why the worker shall stop this attempt now
}

// Report carries steps of an attempt, numbered First, First+1, …. Sent on
// `pipeops.reports`, key `ingest.<hash of the subject's stream mod N>`.
type Report struct {
	Attempt     domain.AttemptID `json:"attempt"`
	Incarnation string           `json:"incarnation"`
	Token       string           `json:"token"`
	First       int64            `json:"first"`
	Items       []Item           `json:"items"`
}

// Item is one step: an event's type and body as the worker saw it.
type Item struct {
	Type string          `json:"type"`
	At   domain.Time     `json:"at"`
	Data json.RawMessage `json:"data"`
}

// LogChunk is a piece of a build's output. Sent on `pipeops.logs`; addressed
// by (attempt, stream, offset), so a repeat is harmless.
type LogChunk struct {
	Attempt     domain.AttemptID `json:"attempt"`
	Incarnation string           `json:"incarnation"`
	Token       string           `json:"token"`
	Stream      string           `json:"stream"` // "build"
	Offset      int64            `json:"offset"` // bytes before this chunk
	Bytes       []byte           `json:"bytes"`  // none: the output ends here
}
