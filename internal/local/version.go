package local

import (
	"fmt"
	"os"
	"path/filepath"
)

// Versions of the tools that tools/install builds; a test compares them with tools/*/go.mod.
const (
	KubeVersion     = "1.37.2"
	EtcdVersion     = "3.7.3"
	BuildKitVersion = "0.34.2"
	LintVersion     = "2.15.0"
)

// tool returns the path of a binary that tools/install built, or a MissingError.
func (c Config) tool(name, version, binary string) (string, error) {
	path := filepath.Join(c.Cache, "tools", name, version, binary)
	if _, err := os.Stat(path); err != nil {
		return "", &MissingError{What: fmt.Sprintf("%s %s", binary, version), Fix: "tools/install " + name}
	}
	return path, nil
}
