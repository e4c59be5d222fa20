package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestMoreProjectsThanAPageHoldsAreAllListed(t *testing.T) {
	o := newOffice(t)
	const many = 2*pageOfProjects + 1
	for i := range many {
		o.project(fmt.Sprintf("app-%03d", i))
	}
	for _, command := range [][]string{{"project", "list"}, {"status"}} {
		out := o.run(command...)
		if n := strings.Count(out, "\n"); n != many+1 || !strings.Contains(out, "\napp-000 ") || !strings.Contains(out, fmt.Sprintf("\napp-%03d ", many-1)) {
			t.Errorf("%s gives %d lines", strings.Join(command, " "), n)
		}
		var all []map[string]any
		o.must(json.Unmarshal([]byte(o.run(append(command, "--json")...)), &all))
		if len(all) != many {
			t.Errorf("%s --json gives %d", strings.Join(command, " "), len(all))
		}
	}
	if out := o.run("status", "app-007"); strings.Count(out, "\n") != 2 {
		t.Errorf("of one project:\n%s", out)
	}
}
