package web_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pipeops/pipeops/web"
)

func TestHandlerServesABuiltDashboard(t *testing.T) {
	t.Parallel()
	h := web.Handler(built(t))
	const page, script = "<title>PipeOps</title>", "console.log(1)"
	const kept, asked = "public, max-age=31536000, immutable", "no-cache"
	for _, row := range []struct {
		name, method, path string
		status             int
		body, cache        string
	}{
		{"the root is the index", "GET", "/", 200, page, asked},
		{"the index by its name", "GET", "/index.html", 200, page, asked},
		{"a page that the dashboard knows itself", "GET", "/projects/hello", 200, page, asked},
		{"a folder is no listing", "GET", "/assets/", 200, page, asked},
		{"a path that climbs stays inside", "GET", "/../../etc/passwd", 200, page, asked},
		{"the head of a page has no body", "HEAD", "/", 200, "", asked},
		{"a hashed asset is kept for ever", "GET", "/assets/index-a1b2.js", 200, script, kept},
		{"a file without a hash is asked for again", "GET", "/favicon.svg", 200, "<svg/>", asked},
		{"an unknown asset", "GET", "/assets/index-old.js", 404, "404 page not found", ""},
		{"an unknown file", "GET", "/robots.txt", 404, "404 page not found", ""},
		{"a hidden file", "GET", "/.keep", 404, "404 page not found", ""},
		{"a method that changes things", "POST", "/", 405, "method not allowed", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			got := ask(h, row.method, row.path)
			defer got.Body.Close()
			body, err := io.ReadAll(got.Body)
			if err != nil {
				t.Fatal(err)
			}
			if got.StatusCode != row.status || strings.TrimSpace(string(body)) != row.body || got.Header.Get("Cache-Control") != row.cache {
				t.Errorf("%s %s: status %d, Cache-Control %q, body %q; want %d, %q, %q", row.method, row.path,
					got.StatusCode, got.Header.Get("Cache-Control"), body, row.status, row.cache, row.body)
			}
		})
	}
}

func TestIndexMayLoadFromItsOwnOriginOnly(t *testing.T) {
	t.Parallel()
	got := ask(web.Handler(built(t)), "GET", "/")
	defer got.Body.Close()
	policy := got.Header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("content security policy %q lacks %q", policy, want)
		}
	}
	if strings.Contains(policy, "unsafe") {
		t.Errorf("content security policy %q allows what is unsafe", policy)
	}
}

func TestWrongMethodNamesTheRightOnes(t *testing.T) {
	t.Parallel()
	got := ask(web.Handler(built(t)), "DELETE", "/favicon.svg")
	defer got.Body.Close()
	if allow := got.Header.Get("Allow"); allow != "GET, HEAD" {
		t.Errorf("Allow = %q, want GET, HEAD", allow)
	}
}

func TestWithoutABuildThePageSaysWhatToRun(t *testing.T) {
	t.Parallel()
	got := ask(web.Handler(t.TempDir()), "GET", "/")
	defer got.Body.Close()
	body, err := io.ReadAll(got.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), "dashboard not built: run <code>make web</code>") {
		t.Errorf("status %d, body %q", got.StatusCode, body)
	}
}

func TestTheProgramCarriesADashboardOrSaysThatItDoesNot(t *testing.T) {
	t.Parallel()
	got := ask(web.Handler(""), "GET", "/")
	defer got.Body.Close()
	if got.StatusCode != http.StatusOK && got.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("status %d, want 200 when built, 503 when not", got.StatusCode)
	}
}

// built makes a folder as `make web` leaves it.
func built(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		".keep": "", "index.html": "<title>PipeOps</title>", "favicon.svg": "<svg/>", "assets/index-a1b2.js": "console.log(1)",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func ask(h http.Handler, method, path string) *http.Response {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w.Result()
}
