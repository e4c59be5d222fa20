package local

import (
	"os"
	"regexp"
	"testing"
)

func TestVersionsAreThoseOfTheToolsModules(t *testing.T) {
	t.Parallel()
	for tool, want := range map[string]struct{ module, version string }{
		"kube":     {"k8s.io/kubernetes", KubeVersion},
		"etcd":     {"go.etcd.io/etcd/server/v3", EtcdVersion},
		"buildkit": {"github.com/moby/buildkit", BuildKitVersion},
		"lint":     {"github.com/golangci/golangci-lint/v2", LintVersion},
	} {
		content, err := os.ReadFile("../../tools/" + tool + "/go.mod")
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(`(?m)^(?:require)?\s*` + regexp.QuoteMeta(want.module) + ` v(\S+)`).FindSubmatch(content)
		if found == nil || string(found[1]) != want.version {
			t.Errorf("tools/%s/go.mod requires %s %s, this package says %s", tool, want.module, found, want.version)
		}
	}
}
