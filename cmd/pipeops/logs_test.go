package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestLogsGoThroughAllAttempts(t *testing.T) {
	t.Parallel()
	answers := map[string]string{
		"first 0":   `"attempt":"bld_1.1","text":"one\n","next":4,"done":false,"nextAttempt":""`,
		"bld_1.1 4": `"attempt":"bld_1.1","text":"","next":4,"done":true,"nextAttempt":"bld_1.2"`,
		"bld_1.2 0": `"attempt":"bld_1.2","text":"two\n","next":4,"done":false,"nextAttempt":""`,
		"bld_1.2 4": `"attempt":"bld_1.2","text":"end","next":7,"done":true,"nextAttempt":""`,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q struct {
			Variables struct {
				A     string
				After json.Number
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			t.Error(err)
		}
		if q.Variables.A == "" {
			q.Variables.A = "first"
		}
		_, _ = w.Write([]byte(`{"data":{"buildLog":{` + answers[q.Variables.A+" "+q.Variables.After.String()] + `}}}`))
	}))
	t.Cleanup(server.Close)
	var out strings.Builder
	if err := (&client{url: server.URL}).printLog(t.Context(), &out, "bld_1", true); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "one\ntwo\nend"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
