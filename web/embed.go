// Package web receives GET requests for the dashboard from the HTTP server of
// serve, hands out the files that `make web` built; effects: reads those files.
//
// What has a content hash in its name (below assets/) may be kept for ever, all
// else is asked for again each time. A path without an extension is a page of
// the dashboard, which finds its own way from index.html.
package web

import (
	"embed"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strings"
)

//go:embed all:dist
var embedded embed.FS

// policy lets the page load and talk to its own origin only: nothing inline,
// nothing from elsewhere, in nobody's frame.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

const notBuilt = `<!doctype html><html lang="en"><meta charset="utf-8"><title>PipeOps</title>` +
	"<h1>dashboard not built: run <code>make web</code></h1>" +
	"<p>Everything else works: <code>pipeops status</code>, <code>pipeops events --follow</code>.</p></html>\n"

// Handler serves the dashboard at the root. With a dir it serves the files of
// that folder as they are at the time of each request (for development), with
// "" the ones built into the program. It may be called concurrently.
func Handler(dir string) http.Handler {
	if dir != "" {
		return handler{os.DirFS(dir)}
	}
	dist, err := fs.Sub(embedded, "dist")
	if err != nil { // the folder's name is a constant and valid
		panic(err)
	}
	return handler{dist}
}

type handler struct{ files fs.FS }

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	name := strings.TrimPrefix(path.Clean("/"+r.URL.Path), "/")
	switch {
	case name == "index.html" || path.Ext(name) == "":
		h.index(w, r)
	case h.has(name):
		w.Header().Set("Cache-Control", lifetime(name))
		http.ServeFileFS(w, r, h.files, name)
	default:
		http.NotFound(w, r)
	}
}

func (h handler) index(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("Content-Security-Policy", policy)
	w.Header().Set("Referrer-Policy", "same-origin")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	page, err := fs.ReadFile(h.files, "index.html")
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		page = []byte(notBuilt)
	}
	if r.Method == http.MethodGet {
		_, _ = w.Write(page) // who doesn't read on has left
	}
}

// has says whether name is a file to hand out; hidden ones, such as the placeholder of an empty dist, are not.
func (h handler) has(name string) bool {
	if strings.HasPrefix(path.Base(name), ".") {
		return false
	}
	found, err := fs.Stat(h.files, name)
	return err == nil && found.Mode().IsRegular()
}

func lifetime(name string) string {
	if strings.HasPrefix(name, "assets/") {
		return "public, max-age=31536000, immutable"
	}
	return "no-cache"
}
