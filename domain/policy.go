package domain

// NewID gives a fresh id with a prefix: "bld" → "bld_<UUIDv7>".
type NewID func(prefix string) string

// maxFanOut bounds how many builds a push, or deployments a build, can lead to;
// a project can't be configured beyond it.
const maxFanOut = 128

// Follow is what follows from an event by policy: a push is built, and what
// was built is deployed where its branch is followed. The second result says
// whether anything follows at all.
func Follow(r Recorded, e Event, newID NewID) (Command, bool) {
	switch e := e.(type) {
	case PushReceived:
		return RequestBuilds{Push: e, IDs: ids[BuildID](newID, "bld")}, true
	case BuildSucceeded:
		build := BuildID(string(r.Stream)[len("build/"):])
		return DeployBuild{Project: r.ProjectID, Build: build, IDs: ids[DeploymentID](newID, "dep")}, true
	}
	return nil, false
}

// Followed names the event types that Follow answers.
func Followed() []string { return []string{"PushReceived", "BuildSucceeded"} }

func ids[T ~string](newID NewID, prefix string) []T {
	out := make([]T, maxFanOut)
	for i := range out {
		out[i] = T(newID(prefix))
	}
	return out
}
