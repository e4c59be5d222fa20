// Command summary receives the output of `go test -json` on stdin and hands on
// a line per package, the whole output of what failed, then once more the last
// lines that each failed test wrote itself, and as its last line "N passed, N failed, N
// skipped"; effects. It exits 1 unless something passed and nothing failed or
// was skipped: a skipped test proves nothing.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
)

type event struct {
	Action  string  `json:"Action"`
	Package string  `json:"Package"`
	Test    string  `json:"Test"`
	Output  string  `json:"Output"`
	Elapsed float64 `json:"Elapsed"`
}

type key struct{ pkg, test string }

func main() {
	counts, output := map[string]int{}, map[key][]string{}
	failedPackages := map[string]bool{}
	var said []string // by failed tests: in the whole output the logs of processes drown it
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil || e.Action == "" {
			fmt.Println(lines.Text())
			continue
		}
		k := key{e.Package, e.Test}
		switch e.Action {
		case "output", "build-output":
			output[k] = append(output[k], e.Output)
		case "pass", "fail", "skip":
			if e.Action == "fail" && e.Test != "" {
				said = append(said, words(e, output[k])...)
			}
			finish(e, k, counts, output, failedPackages)
		case "build-fail":
			fmt.Print(strings.Join(output[k], ""))
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, "summary:", err)
		os.Exit(1)
	}
	failed := counts["fail"]
	if failed == 0 {
		failed = len(failedPackages) // a package that didn't build, or died outside a test
	}
	fmt.Print(strings.Join(said, ""))
	fmt.Printf("%d passed, %d failed, %d skipped\n", counts["pass"], failed, counts["skip"])
	if failed > 0 || counts["skip"] > 0 || counts["pass"] == 0 {
		os.Exit(1)
	}
}

func finish(e event, k key, counts map[string]int, output map[key][]string, failedPackages map[string]bool) {
	if e.Test == "" {
		if e.Action == "fail" {
			failedPackages[e.Package] = true
			fmt.Print(strings.Join(output[k], ""))
		}
		if e.Action != "skip" { // "no test files"
			fmt.Printf("%-5s %-60s %6.1fs\n", e.Action, e.Package, e.Elapsed)
		}
		delete(output, k)
		return
	}
	counts[e.Action]++
	if e.Action != "pass" {
		fmt.Printf("--- %s %s %s (%.1fs)\n%s", strings.ToUpper(e.Action), e.Package, e.Test, e.Elapsed, strings.Join(output[k], ""))
	}
	delete(output, k)
}

// byTest is a line that a test wrote, not one of what it ran.
var byTest = regexp.MustCompile(`^\s+\w+_test\.go:\d+: `)

// words are the last lines that a test wrote by itself.
func words(e event, output []string) []string {
	const most, longest = 8, 2000
	lines := []string{fmt.Sprintf("--- %s %s %s\n", strings.ToUpper(e.Action), e.Package, e.Test)}
	for _, line := range output {
		if byTest.MatchString(line) {
			lines = append(lines, strings.TrimSuffix(line[:min(len(line), longest)], "\n")+"\n")
		}
	}
	return append(lines[:1], lines[max(1, len(lines)-most):]...)
}
