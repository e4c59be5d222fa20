package diagnose

import (
	"slices"
	"strings"
	"time"
)

// row is one signature: where it is seen, by which word of Kubernetes and which words of the tool, and when it is
// final. The first row that matches wins, so the order is from the cluster's trouble to the program's.
type row struct {
	*advice

	in      where    // any of
	reasons []string // any of; nil = every one
	says    []string // lower-case parts of the message, any of; nil = every message
	exits   []int32  // any of; nil = every code

	lasts    time.Duration // how long it must have been seen; never = only the deadline ends it
	restarts int32         // and how often the container must have been restarted

	place int // in the table
}

const never = time.Duration(-1)

func (r *row) matches(f fact, image string) bool {
	if r.in&f.where == 0 || r.reasons != nil && !slices.Contains(r.reasons, f.reason) || r.exits != nil && !slices.Contains(r.exits, f.exit) {
		return false
	}
	if r.says == nil {
		return true
	}
	message := strings.ToLower(strings.ReplaceAll(f.message, image, "")) // a name mustn't look like a cause
	return slices.ContainsFunc(r.says, func(s string) bool { return strings.Contains(message, s) })
}

func (r *row) final(f fact, lasted time.Duration) bool {
	goesOn := f.where == ended && f.running // it was started again, and may do better this time
	return r.lasts != never && lasted >= r.lasts && f.restarts >= r.restarts && !goesOn
}

var (
	pullReasons  = []string{"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"}
	startReasons = []string{"RunContainerError", "StartError", "ContainerCannotRun"}
)

// secondPull is when the second try at an image has failed too: the node waits 10 s after the first.
const secondPull = 15 * time.Second

// rows is the table. Times and counts: notes of the reference cluster (Kubernetes 1.37, containerd).
var rows = placed([]row{
	{advice: &nodeProblem, in: node, lasts: never},

	{advice: &quota, in: creation, says: []string{"exceeded quota"}, lasts: time.Minute},
	{advice: &serviceAccount, in: creation, says: []string{"error looking up service account"}, lasts: 15 * time.Second},
	{advice: &webhookDown, in: creation, says: []string{"failed calling webhook"}, lasts: 2 * time.Minute},
	{advice: &policyRefused, in: creation, says: []string{"violates podsecurity", "denied the request", "admission webhook"}, lasts: 10 * time.Second},
	{advice: &createRefused, in: creation, lasts: 30 * time.Second},

	{advice: &noVolume, in: schedule, says: []string{"unbound immediate persistentvolumeclaims", "persistentvolume's node affinity", "volume node affinity conflict", "exceed max volume count"}, lasts: 2 * time.Minute},
	{advice: &noRoom, in: schedule, reasons: []string{"TriggeredScaleUp"}, lasts: 5 * time.Minute},
	{advice: &noRoom, in: schedule, says: []string{"insufficient ", "too many pods"}, lasts: time.Minute},
	{advice: &noNodeAllowed, in: schedule, says: []string{"taint", "node affinity/selector", "node selector", "pod affinity rules", "anti-affinity rules", "topology spread constraints", "unschedulable", "no nodes available"}, lasts: time.Minute},
	{advice: &notScheduled, in: schedule, lasts: time.Minute},

	{advice: &mount, in: sandbox, reasons: []string{"FailedMount"}, says: []string{"not found"}, lasts: 30 * time.Second},
	{advice: &mount, in: sandbox, reasons: []string{"FailedMount", "FailedAttachVolume"}, lasts: 6 * time.Minute},
	{advice: &network, in: sandbox, lasts: 3 * time.Minute},

	{advice: &imageName, in: waits, reasons: []string{"InvalidImageName"}},
	{advice: &imageNeverPulled, in: waits, reasons: []string{"ErrImageNeverPull"}},
	{advice: &imageSignature, in: waits, reasons: []string{"SignatureValidationFailed"}},
	{advice: &imageStore, in: waits, reasons: []string{"ImageInspectError"}, lasts: 2 * time.Minute},
	{advice: &imagePlatform, in: waits, reasons: pullReasons, says: []string{"no match for platform", "no matching manifest"}},
	{advice: &registryTLS, in: waits, reasons: pullReasons, says: []string{"x509", "unknown authority", "tls: ", "http response to https client"}, lasts: secondPull},
	{advice: &registryLimit, in: waits, reasons: pullReasons, says: []string{"toomanyrequests", "too many requests", "rate limit"}, lasts: never},
	{advice: &registryAway, in: waits, reasons: pullReasons, says: []string{"no such host", "i/o timeout", "connection refused", "server misbehaving", "no route to host", "deadline exceeded"}, lasts: never},
	{advice: &imageMissing, in: waits, reasons: pullReasons, says: []string{"not found", "manifest unknown", "repository does not exist", "name unknown"}, lasts: secondPull},
	{advice: &imageAuth, in: waits, reasons: pullReasons, says: []string{"unauthorized", "authentication required", "no basic auth", "403 forbidden", "access denied", "denied:", "authorization failed"}, lasts: secondPull},
	{advice: &imagePull, in: waits, reasons: pullReasons, lasts: never},

	{advice: &runsAsRoot, in: waits, reasons: []string{"CreateContainerConfigError"}, says: []string{"runasnonroot", "non-numeric user"}, lasts: 10 * time.Second},
	{advice: &configMissing, in: waits, reasons: []string{"CreateContainerConfigError"}, lasts: time.Minute},
	{advice: &noCommand, in: waits, reasons: []string{"CreateContainerError"}, says: []string{"no command specified"}},
	{advice: &containerRefused, in: waits, reasons: []string{"CreateContainerError"}, lasts: 2 * time.Minute},

	{advice: &otherCPU, in: waits | ended, says: []string{"exec format error"}, restarts: 2},
	{advice: &notExecutable, in: waits | ended, reasons: startReasons, says: []string{"permission denied"}, restarts: 1},
	{advice: &startCommand, in: waits | ended, reasons: startReasons, restarts: 1},

	{advice: &healthPath, in: killed | probed, says: []string{"statuscode: 404"}, lasts: 30 * time.Second},
	{advice: &portSilent, in: killed, reasons: []string{"Startup"}, says: []string{"connection refused"}},
	{advice: &portSilent, in: killed, reasons: []string{"Liveness"}, says: []string{"connection refused"}, restarts: 3},
	{advice: &unhealthy, in: killed, reasons: []string{"Startup"}},
	{advice: &unhealthy, in: killed, reasons: []string{"Liveness"}, restarts: 3},

	{advice: &outOfMemory, in: ended, reasons: []string{"OOMKilled"}, restarts: 1},
	{advice: &endedNormally, in: ended, exits: []int32{0}, restarts: 3},
	{advice: &notExecutable, in: ended, exits: []int32{126}, restarts: 2},
	{advice: &commandMissing, in: ended, exits: []int32{127}, restarts: 2},
	{advice: &nativeCrash, in: ended, exits: []int32{132, 134, 139}, restarts: 3},
	{advice: &sigkill, in: ended, exits: []int32{137}, restarts: 3},
	{advice: &sigterm, in: ended, exits: []int32{143}, lasts: never},
	{advice: &crashed, in: ended, restarts: 3},

	{advice: &portSilent, in: probed, says: []string{"connection refused"}, lasts: never},
	{advice: &unhealthy, in: probed | killed, lasts: never},
	{advice: &gate, in: gated, lasts: never},
	{advice: &pullSlow, in: pulling, lasts: never},
	{advice: &notStarted, in: waits, lasts: never},
})

func placed(all []row) []row {
	for i := range all {
		all[i].place = i
	}
	return all
}
