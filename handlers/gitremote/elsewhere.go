package gitremote

import (
	"net/http"
	"net/http/httputil"
	"net/url"
)

// passedOn marks a request that another server has passed on, so that two that
// both don't lead don't send it to and fro.
const passedOn = "Pipeops-Passed-On" //nolint:gosec // the name of a header

// passOn hands a request to the server that holds the repositories.
func (r *Remote) passOn(w http.ResponseWriter, req *http.Request) {
	address, err := r.cfg.Leader.Announced(req.Context(), leaderName)
	if err != nil {
		r.unavailable(req.Context(), w, err)
		return
	}
	to, err := url.Parse(address)
	if err != nil || address == "" || address == r.cfg.Self || req.Header.Get(passedOn) != "" {
		r.notYet(w)
		return
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(to)
			p.Out.Header.Set(passedOn, "1")
		},
		FlushInterval: -1, // git's progress is for people who wait
		ErrorHandler: func(w http.ResponseWriter, req *http.Request, err error) {
			r.cfg.Log.WarnContext(req.Context(), "git request could not be passed on", "err", err)
			r.notYet(w)
		},
	}
	proxy.ServeHTTP(w, req)
}

func (r *Remote) notYet(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "5")
	http.Error(w, "the git remote is being started, or moves to another server: try again in a few seconds", http.StatusServiceUnavailable)
}
