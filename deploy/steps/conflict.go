package steps

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	appsac "k8s.io/client-go/applyconfigurations/apps/v1"

	"github.com/pipeops/pipeops/deploy/manifests"
)

// conflict is a field that another manager owns, as a refused server-side apply names it.
type conflict struct {
	field   string // `.spec.template.spec.containers[name="app"].image`
	manager string // `"kubectl-edit" using apps/v1`
}

func conflictsOf(err error) []conflict {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		return nil
	}
	var out []conflict
	for _, c := range status.Status().Details.Causes {
		if c.Type == metav1.CauseTypeFieldManagerConflict {
			out = append(out, conflict{field: c.Field, manager: strings.TrimPrefix(c.Message, "conflict with ")})
		}
	}
	return out
}

const replicas = ".spec.replicas"

// settled is how to apply in spite of conflicts.
type settled struct {
	wanted *appsac.DeploymentApplyConfiguration
	force  bool
	notes  []string
}

// settle leaves the replicas to who owns them, and takes back what PipeOps set before. It is false when a conflict
// must stand; before nil means that nothing of ours serves, so that nobody is harmed by taking back all.
func settle(wanted *appsac.DeploymentApplyConfiguration, live *appsv1.Deployment, before *manifests.Objects, conflicts []conflict) (settled, bool, error) {
	out := settled{wanted: wanted}
	for _, c := range conflicts {
		switch {
		case c.field == replicas && live != nil:
			if live.Spec.Replicas != nil && *live.Spec.Replicas == 0 {
				return settled{}, false, &ZeroError{Manager: c.manager}
			}
			spec := *wanted.Spec
			spec.Replicas = nil
			object := *wanted
			object.Spec = &spec
			out.wanted = &object
			out.notes = append(out.notes, "the number of replicas is left to "+c.manager)
		case before == nil || sets(before.Workload, c.field):
			out.force = true
			out.notes = append(out.notes, takenBack(c))
		default:
			return settled{}, false, nil
		}
	}
	return out, true, nil
}

func allSet(object any, conflicts []conflict) bool {
	return !slices.ContainsFunc(conflicts, func(c conflict) bool { return !sets(object, c.field) })
}

func takenBack(c conflict) string {
	return fmt.Sprintf("%s was taken back from %s", c.field, c.manager)
}

// sets says whether an object, in its JSON form, has the field that a conflict names.
func sets(object any, field string) bool {
	data, err := json.Marshal(object)
	if err != nil {
		return false
	}
	var tree any
	return json.Unmarshal(data, &tree) == nil && has(tree, field)
}

// has walks a path such as `.metadata.labels.pipeops.dev/release` or `.spec.ports[port=80,protocol="TCP"].name`. Names
// may hold dots, so every key that fits is tried.
func has(tree any, path string) bool {
	if path == "" {
		return true
	}
	switch tree := tree.(type) {
	case map[string]any:
		rest, ok := strings.CutPrefix(path, ".")
		for name, inner := range tree {
			tail, fits := strings.CutPrefix(rest, name)
			if ok && fits && (tail == "" || tail[0] == '.' || tail[0] == '[') && has(inner, tail) {
				return true
			}
		}
	case []any:
		keys, tail, ok := element(path)
		for _, item := range tree {
			if ok && keyed(item, keys) && has(item, tail) {
				return true
			}
		}
	}
	return false
}

// element reads `[name="app"]…` into its keys and what follows.
func element(path string) (keys map[string]any, tail string, ok bool) {
	rest, ok := strings.CutPrefix(path, "[")
	keys = map[string]any{}
	for ok {
		var name string
		if name, rest, ok = strings.Cut(rest, "="); !ok {
			break
		}
		dec := json.NewDecoder(strings.NewReader(rest))
		var value any
		if dec.Decode(&value) != nil {
			return nil, "", false
		}
		keys[name] = value
		if rest = rest[dec.InputOffset():]; strings.HasPrefix(rest, "]") {
			return keys, rest[1:], true
		}
		rest, ok = strings.CutPrefix(rest, ",")
	}
	return nil, "", false
}

func keyed(item any, keys map[string]any) bool {
	object, ok := item.(map[string]any)
	for name, value := range keys {
		ok = ok && object[name] == value
	}
	return ok
}
