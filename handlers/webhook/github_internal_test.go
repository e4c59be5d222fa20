package webhook

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf8"
)

func FuzzGitHubParse(f *testing.F) {
	paths, err := filepath.Glob("testdata/deliveries/github/*.json")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no recorded deliveries: %v", err)
	}
	for _, path := range paths {
		body, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add("push", "application/json", body)
	}
	f.Add("ping", "application/x-www-form-urlencoded", []byte("payload=%7B%22ref%22%3A1%7D"))
	f.Fuzz(func(t *testing.T, event, contentType string, body []byte) {
		d, err := github{}.Parse(http.Header{"X-Github-Event": {event}, "Content-Type": {contentType}}, body)
		if err != nil {
			return
		}
		for _, text := range []string{d.Kind, d.Ref, d.Sender.Login, d.Sender.Name, d.Sender.Email, d.Author.Name, d.Author.Email, d.Author.Login, d.Message} {
			if !utf8.ValidString(text) || len(text) > maxMessage {
				t.Errorf("a text of %d bytes that isn't bounded UTF-8: %q", len(text), text)
			}
		}
		if d.Kind == "push" && d.check() != nil {
			t.Errorf("a push came through that is none: %+v", d)
		}
		if d.Kind != "push" && d.Ref != "" {
			t.Errorf("a %s with a ref", d.Kind)
		}
	})
}
