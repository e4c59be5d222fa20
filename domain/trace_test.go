package domain

import "testing"

func TestTraceContextsAreTakenOnlyWhereTheyAreGood(t *testing.T) {
	t.Parallel()
	const good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for text, want := range map[string]string{
		good:                              good,
		" " + good:                        good,
		"01" + good[2:]:                   good,
		"cc" + good[2:] + "-what-will-be": good,
		"":                                "",
		"ff" + good[2:]:                   "",
		good + "-more":                    "",
		"cc" + good[2:] + ".what":         "",
		good[:54]:                         "",
		"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01": "",
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01": "",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01": "",
		"00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01": "",
	} {
		if got := Traceparent(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
	a, b := NewTrace("psh_1"), NewTrace("psh_2")
	if a == b || a != NewTrace("psh_1") || Traceparent(a) != a {
		t.Errorf("got %q and %q, want two that are good", a, b)
	}
}
