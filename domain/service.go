package domain

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// ServiceSpec is how one service is built and run. It stands whole in the
// events that need it, so that a release can be run again exactly. Values are
// not secret.
type ServiceSpec struct {
	RootDir    string            `json:"rootDir"`             // folder within the repository, "." = its top
	Dockerfile string            `json:"dockerfile"`          // path relative to rootDir
	BuildArgs  map[string]string `json:"buildArgs,omitempty"` // build args by name; not secret

	Command   []string          `json:"command,omitempty"`   // words of the program that runs, instead of the image's own
	Variables map[string]string `json:"variables,omitempty"` // environment variables of the program, by name; not secret
	Port      int               `json:"port"`                // TCP port that the program listens on
	Replicas  int               `json:"replicas"`            // count of pods

	Health   Health   `json:"health"`   // how it is asked whether it is well
	Strategy Strategy `json:"strategy"` // how one release replaces another

	CPURequest    string `json:"cpuRequest,omitempty"`    // cores kept for each pod, a Kubernetes quantity: "100m"
	MemoryRequest string `json:"memoryRequest,omitempty"` // bytes kept for each pod, a Kubernetes quantity: "128Mi"
	CPULimit      string `json:"cpuLimit,omitempty"`      // cores that a pod may use, a Kubernetes quantity: "1"
	MemoryLimit   string `json:"memoryLimit,omitempty"`   // bytes that a pod may use, a Kubernetes quantity: "256Mi"
}

// Health is how Kubernetes asks the program whether it is well: GET Path on the port.
type Health struct {
	Path      string `json:"path"`      // "/health"; an answer from 200 to 399 is good
	Startup   Probe  `json:"startup"`   // asked first; until it is good the others wait
	Readiness Probe  `json:"readiness"` // whether the pod gets requests
	Liveness  Probe  `json:"liveness"`  // whether the container may go on; else it is started again
}

// Probe is when to ask, in seconds.
type Probe struct {
	InitialDelay Seconds `json:"initialDelay"` // from the container's start to the first question
	Period       Seconds `json:"period"`       // between two questions
	Timeout      Seconds `json:"timeout"`      // for an answer
	Failures     int     `json:"failures"`     // count of bad answers in a row until they count
}

// DefaultSpec is what a new service has.
func DefaultSpec() ServiceSpec {
	return ServiceSpec{
		RootDir: ".", Dockerfile: "Dockerfile", Port: 8080, Replicas: 1,
		Health: Health{
			Path:      "/health",
			Startup:   Probe{Period: 5, Timeout: 2, Failures: 24}, // up to 120 s
			Readiness: Probe{Period: 5, Timeout: 2, Failures: 3},
			Liveness:  Probe{InitialDelay: 20, Period: 15, Timeout: 2, Failures: 3},
		},
		Strategy:   Strategy{Kind: Rolling, MinReady: 10, Deadline: 300},
		CPURequest: "50m", MemoryRequest: "64Mi",
	}
}

// maxSpec bounds a spec in bytes: several events hold it whole, some of them
// twice, and what was configured must still fit when it is deployed.
const maxSpec = 32 << 10

// maxProbe bounds each number of a probe; seconds are up to an hour.
const maxProbe = 3600

// Check gives every problem of the spec, nil when there is none.
func (s ServiceSpec) Check() []*Refusal {
	var out []*Refusal
	bad := func(field, message, fix string) {
		out = append(out, &Refusal{Code: "BAD_SETTING", Field: field, Message: message, Fix: fix})
	}
	if !inside(s.RootDir) {
		bad("rootDir", fmt.Sprintf("%q leaves the repository", s.RootDir), `use a relative path, for example "." or "services/api"`)
	}
	if s.Dockerfile == "" || !inside(path.Join(s.RootDir, s.Dockerfile)) {
		bad("dockerfile", fmt.Sprintf("%q isn't a file within the repository", s.Dockerfile), `use a path relative to the root directory, for example "Dockerfile"`)
	}
	for _, name := range sortedKeys(s.BuildArgs) {
		if !argName.MatchString(name) {
			bad("buildArgs", fmt.Sprintf("%q can't be the name of a build arg", name), "use letters, digits and _, not beginning with a digit")
		}
		if strings.HasPrefix(name, "BUILDKIT_") {
			bad("buildArgs", name+" steers the builder itself", "remove it: names beginning with BUILDKIT_ are reserved")
		}
	}
	for _, name := range sortedKeys(s.Variables) {
		if !variableName.MatchString(name) {
			bad("variables", fmt.Sprintf("%q can't be the name of a variable", name), "use letters, digits, _, - and ., not beginning with a digit, for example LOG_LEVEL")
		}
	}
	if b, err := json.Marshal(s); err != nil || len(b) > maxSpec {
		bad("variables", fmt.Sprintf("all settings together are over %d KiB", maxSpec>>10), "shorten the variables, build args or command")
	}
	if s.Port < 1 || s.Port > 65535 {
		bad("port", fmt.Sprintf("%d isn't a port", s.Port), "use 1 to 65535, for example 8080")
	}
	if s.Replicas < 1 || s.Replicas > 1000 {
		bad("replicas", fmt.Sprintf("%d replicas", s.Replicas), "use 1 to 1000")
	}
	if !strings.HasPrefix(s.Health.Path, "/") {
		bad("healthPath", fmt.Sprintf("%q isn't an absolute path", s.Health.Path), `begin it with a slash, for example "/health"`)
	}
	for name, p := range map[string]Probe{"startup": s.Health.Startup, "readiness": s.Health.Readiness, "liveness": s.Health.Liveness} {
		if p.Period < 1 || p.Timeout < 1 || p.Failures < 1 || p.InitialDelay < 0 {
			bad(name, "period, timeout and failures begin at 1", "for example a period of 5, a timeout of 2 and 3 failures")
		}
		if p.Period > maxProbe || p.Timeout > maxProbe || p.InitialDelay > maxProbe || p.Failures > maxProbe {
			bad(name, fmt.Sprintf("a number is over %d", maxProbe), "for example a period of 5, a timeout of 2 and 3 failures")
		}
	}
	out = append(out, amounts("cpu", s.CPURequest, s.CPULimit, "100m")...)
	out = append(out, amounts("memory", s.MemoryRequest, s.MemoryLimit, "128Mi")...)
	if err := s.Strategy.check(); err != nil {
		out = append(out, err)
	}
	return out
}

var (
	argName      = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	variableName = regexp.MustCompile(`^[A-Za-z_.-][A-Za-z0-9_.-]*$`) // as Kubernetes has it
	quantity     = regexp.MustCompile(`^([0-9]{1,12}(?:\.[0-9]{1,6})?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|)$`)
)

// sizes are what the letters behind a Kubernetes quantity stand for.
var sizes = map[string]float64{
	"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
	"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60,
}

// amounts checks what is asked for of a resource and its limit; empty is none.
func amounts(resource, request, limit, example string) (out []*Refusal) {
	bad := func(field, message, fix string) {
		out = append(out, &Refusal{Code: "BAD_SETTING", Field: resource + field, Message: message, Fix: fix})
	}
	size := func(field, text string) float64 {
		m := quantity.FindStringSubmatch(text)
		if m == nil {
			if text != "" {
				bad(field, fmt.Sprintf("%q isn't an amount", text), fmt.Sprintf("use a Kubernetes quantity, for example %q", example))
			}
			return 0
		}
		n, _ := strconv.ParseFloat(m[1], 64) // digits and one point at most
		if n == 0 {
			bad(field, "nothing of it is none", fmt.Sprintf("leave it empty, or use a Kubernetes quantity, for example %q", example))
		}
		return n * sizes[m[2]]
	}
	if asked, most := size("Request", request), size("Limit", limit); asked > most && most > 0 {
		bad("Limit", "the limit "+limit+" is below the request "+request, "raise the limit or lower the request")
	}
	return out
}

func inside(p string) bool {
	clean := path.Clean(p)
	return p != "" && !path.IsAbs(clean) && clean != ".." && !strings.HasPrefix(clean, "../")
}

// plan is what decides whether two services share an image.
func (s ServiceSpec) plan() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q", path.Clean(s.RootDir), path.Clean(s.Dockerfile))
	for _, k := range sortedKeys(s.BuildArgs) {
		fmt.Fprintf(&b, " %q=%q", k, s.BuildArgs[k])
	}
	return b.String()
}

// equal compares what would be stored: no variables and nil ones are the same.
func (s ServiceSpec) equal(o ServiceSpec) bool { return s.fingerprint() == o.fingerprint() }

// fingerprint is the same for specs that are stored alike. It stands in the ids
// of releases, for ever: a new field of ServiceSpec needs omitempty or omitzero.
func (s ServiceSpec) fingerprint() string {
	b, err := json.Marshal(s)
	if err != nil { // a struct of texts and numbers always encodes
		panic(err)
	}
	return shortHash(string(b), 32)
}
