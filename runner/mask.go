package runner

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// shortest secret that is masked: shorter ones stand in ordinary words too.
const shortest = 6

// hidden adds the parts of secrets that show by themselves: the token of "user:token".
func hidden(secrets map[string]string) map[string]string {
	all := maps.Clone(secrets)
	if _, token, ok := strings.Cut(secrets[GitCredential], ":"); ok {
		all["token of "+GitCredential] = token
	}
	return all
}

// newMask gives a function that hides secrets, also as base64, in URLs and in JSON, in a line of text. Secrets of
// several lines are hidden line by line.
func newMask(secrets map[string]string) func(string) string {
	var forms []string
	for _, secret := range secrets {
		for line := range strings.SplitSeq(secret, "\n") {
			if line = strings.TrimSpace(line); len(line) >= shortest {
				forms = append(forms, variants(line)...)
			}
		}
	}
	// Longer ones first: one may begin another.
	slices.SortFunc(forms, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	pairs := make([]string, 0, 2*len(forms))
	for _, form := range slices.Compact(forms) {
		pairs = append(pairs, form, "***")
	}
	return strings.NewReplacer(pairs...).Replace
}

func variants(secret string) []string {
	out := []string{secret, url.QueryEscape(secret), url.PathEscape(secret)}
	for _, prefix := range []string{"", "x-access-token:"} {
		out = append(out, base64.StdEncoding.EncodeToString([]byte(prefix+secret)), base64.RawURLEncoding.EncodeToString([]byte(prefix+secret)))
	}
	if quoted, err := json.Marshal(secret); err == nil {
		out = append(out, strings.Trim(string(quoted), `"`))
	}
	return out
}
