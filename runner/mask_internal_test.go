package runner

import (
	"strings"
	"testing"
)

func TestSecretsAreMaskedInTheFormsThatToolsGiveThem(t *testing.T) {
	t.Parallel()
	mask := newMask(map[string]string{"git-token": `s3cr3t/"x" +`, "key": "-----BEGIN-----\nabcdefgh\nxy\n", "short": "abc", "none": ""})
	for text, want := range map[string]string{
		`token s3cr3t/"x" + ends`:                    "token *** ends",
		"https://h/?t=s3cr3t%2F%22x%22+%2B":          "https://h/?t=***",
		`{"t":"s3cr3t/\"x\" +"}`:                     `{"t":"***"}`,
		"Basic eC1hY2Nlc3MtdG9rZW46czNjcjN0LyJ4IiAr": "Basic ***",
		"czNjcjN0LyJ4IiAr":                           "***",
		"of the key: abcdefgh":                       "of the key: ***",
		"abc is too short, and xy too":               "abc is too short, and xy too",
		"s3cr3t alone is no secret":                  "s3cr3t alone is no secret",
	} {
		if got := mask(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
	if text := strings.Repeat("a", 100); newMask(nil)(text) != text {
		t.Error("text without secrets is changed")
	}
}
