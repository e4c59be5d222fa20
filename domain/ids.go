package domain

import (
	"crypto/sha1" //nolint:gosec // UUIDv5 is defined over SHA-1 (RFC 9562); it names things here, it protects nothing.
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Ids are UUIDv7 in text form behind a prefix that says what they name. They
// are made outside the domain and come in with the command.
//
// A comment behind a type is what docs/events.md says of fields that have none of their own.
//
//nolint:revive // one comment for all
type (
	ProjectID     string // id of the project: "prj_" and a UUIDv7
	ServiceID     string // id of the service: "svc_" and a UUIDv7
	EnvironmentID string // id of the environment: "env_" and a UUIDv7
	PushID        string // id of the push, that is of one delivery: "psh_" and a UUIDv7
	BuildID       string // id of the build: "bld_" and a UUIDv7
	DeploymentID  string // id of the deployment: "dep_" and a UUIDv7
	WorkerID      string // id of the worker: "wrk_" and a UUIDv7
)

// AttemptID names one try at a build or a deployment: "<subject>.<n>", n from 1.
type AttemptID string // id of the attempt: "<build or deployment id>.<n>", n from 1

// NewAttemptID gives the id of the n-th attempt at subject (a build or deployment id).
func NewAttemptID(subject string, n int) AttemptID {
	return AttemptID(subject + "." + strconv.Itoa(n))
}

// Split gives back the subject and the number; an error for any other text.
func (a AttemptID) Split() (subject string, n int, err error) {
	subject, number, ok := strings.Cut(string(a), ".")
	if !ok || subject == "" {
		return "", 0, fmt.Errorf("attempt id %q: want <build or deployment id>.<number>", string(a))
	}
	n, err = strconv.Atoi(number)
	if err != nil || n < 1 || strconv.Itoa(n) != number {
		return "", 0, fmt.Errorf("attempt id %q: %q is not a number from 1", string(a), number)
	}
	return subject, n, nil
}

// Stream is the stream of the attempt's subject, a build or a deployment.
func (a AttemptID) Stream() Stream {
	subject, _, _ := strings.Cut(string(a), ".")
	if strings.HasPrefix(subject, "dep_") {
		return DeploymentStream(DeploymentID(subject))
	}
	return BuildStream(BuildID(subject))
}

// namespace of every UUIDv5 that PipeOps derives: UUIDv5(DNS, "pipeops.dev").
var namespace = deriveUUID([16]byte{
	0x6b, 0xa7, 0xb8, 0x10, 0x9d, 0xad, 0x11, 0xd1, 0x80, 0xb4, 0x00, 0xc0, 0x4f, 0xd4, 0x30, 0xc8,
}, "pipeops.dev")

func deriveUUID(space [16]byte, name string) [16]byte {
	h := sha1.New() //nolint:gosec // see the import
	h.Write(space[:])
	h.Write([]byte(name))
	var u [16]byte
	copy(u[:], h.Sum(nil))
	u[6] = u[6]&0x0f | 0x50
	u[8] = u[8]&0x3f | 0x80
	return u
}

// Derive gives the UUIDv5 of parts joined by "/": the same parts, the same id.
func Derive(parts ...string) string {
	u := deriveUUID(namespace, strings.Join(parts, "/"))
	s := hex.EncodeToString(u[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// EventID is the id of the index-th event (from 0) that a command decided.
func EventID(commandID string, index int) string {
	return Derive(commandID, strconv.Itoa(index))
}

// ReportCommandID is the command id of the sequence-th item (from 1) that an attempt reported.
func ReportCommandID(a AttemptID, sequence int64) string {
	return string(a) + "/" + strconv.FormatInt(sequence, 10)
}

// Stream is a name in the store, "<kind>/<rest>".
type Stream string

// Kind is the part before the first slash.
func (s Stream) Kind() string {
	kind, _, _ := strings.Cut(string(s), "/")
	return kind
}

// Stateless says that no decision depends on what stands in the stream.
func (s Stream) Stateless() bool { return s.Kind() == "operation" }

// ProjectStream holds a project's settings, services and environments.
func ProjectStream(id ProjectID) Stream { return Stream("project/" + string(id)) }

// ProjectNameStream makes a project's name unique: it can be claimed once.
func ProjectNameStream(name string) Stream { return Stream("project-name/" + name) }

// PushStream holds one delivery of one source ("github", "git") to a project.
func PushStream(p ProjectID, source, delivery string) Stream {
	return Stream("push/" + string(p) + "/" + source + "/" + delivery)
}

// RefStream holds where a ref of the project stands.
func RefStream(p ProjectID, ref string) Stream {
	return Stream("ref/" + string(p) + "/" + shortHash(ref, 32))
}

// BuildStream holds one build.
func BuildStream(id BuildID) Stream { return Stream("build/" + string(id)) }

// SlotStream holds who may deploy a service to an environment, and what is active there.
func SlotStream(e EnvironmentID, s ServiceID) Stream {
	return Stream("slot/" + string(e) + "/" + string(s))
}

// DeploymentStream holds one deployment.
func DeploymentStream(id DeploymentID) Stream { return Stream("deployment/" + string(id)) }

// WorkerStream holds the enrolment of a worker.
func WorkerStream(id WorkerID) Stream { return Stream("worker/" + string(id)) }

// OperationStream holds what people did to the system itself on one day (UTC).
func OperationStream(at time.Time) Stream {
	return Stream("operation/" + at.UTC().Format(time.DateOnly))
}

// Namespace is the Kubernetes namespace of an environment:
// "<project>-<environment>-<6 of the hash of the environment's id>".
func Namespace(project, environment string, id EnvironmentID) string {
	return clip(project, 28) + "-" + clip(environment, 26) + "-" + shortHash(string(id), 6)
}

func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.TrimRight(s, "-")
}

func shortHash(s string, n int) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])[:n]
}

// maxSlug leaves room for the environment and the hash in a namespace (63).
const maxSlug = 40

var errSlug = errors.New("use 1 to 40 lower-case letters, digits and hyphens, beginning with a letter, not ending with a hyphen (example: my-app)")

// CheckSlug says whether name can be a project's, service's or environment's name.
func CheckSlug(name string) error {
	if name == "" || len(name) > maxSlug || name[0] < 'a' || name[0] > 'z' || name[len(name)-1] == '-' {
		return errSlug
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return errSlug
		}
	}
	return nil
}
