package domain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
)

// shipped is an event type with three schema versions: the second renamed a field, the third split one.
type shipped struct {
	fact

	Image  string   `json:"image"`
	Digest string   `json:"digest"`
	Names  []string `json:"names,omitempty"`
}

// shipping is a codec that knows shipped, and tells which upcasts it used.
func shipping(used *[]int) codec {
	renamed := func(body []byte) ([]byte, error) {
		*used = append(*used, 1)
		return bytes.Replace(body, []byte(`"ref":`), []byte(`"name":`), 1), nil
	}
	split := func(body []byte) ([]byte, error) {
		*used = append(*used, 2)
		var was struct {
			Name  string
			Names []string
		}
		err := json.Unmarshal(body, &was)
		copy(body, "not any more") // one that writes into what it was given
		image, digest, found := bytes.Cut([]byte(was.Name), []byte("@"))
		if err == nil && !found {
			err = fmt.Errorf("name %q has no digest", was.Name)
		}
		if err != nil {
			return nil, err
		}
		return json.Marshal(shipped{Image: string(image), Digest: string(digest), Names: was.Names})
	}
	return codec{"shipped": {reflect.TypeFor[shipped](), []upcast{renamed, split}}}
}

func TestAcceptance18_BodiesOfEverySchemaVersionAreReadAsTheNewest(t *testing.T) {
	t.Parallel()
	for version, c := range map[int]struct {
		stored string
		used   []int
	}{
		1: {`{"ref":"app@sha256:1","names":["a"]}`, []int{1, 2}},
		2: {`{"name":"app@sha256:1","names":["a"]}`, []int{2}},
		3: {`{"image":"app","digest":"sha256:1","names":["a"]}`, nil},
	} {
		var used []int
		body := []byte(c.stored)
		got, err := shipping(&used).decode("shipped", version, body)
		if want := (shipped{Image: "app", Digest: "sha256:1", Names: []string{"a"}}); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("version %d: got %+v, %v, want %+v", version, got, err, want)
		}
		if !slices.Equal(used, c.used) {
			t.Errorf("version %d: upcasts %v were used, want %v, each once", version, used, c.used)
		}
		if string(body) != c.stored {
			t.Errorf("version %d: its stored bytes were changed by reading: %s", version, body)
		}
	}
}

func TestAcceptance18_WhatIsNewerOrUnreadableIsATypedErrorAtOnce(t *testing.T) {
	t.Parallel()
	var used []int
	c := shipping(&used)
	for name, want := range map[string]UnknownTypeError{
		"a newer schema version": {"shipped", 4},
		"no schema version":      {"shipped", -1},
		"an unknown type":        {"scuttled", 0},
	} {
		var unknown *UnknownTypeError
		if _, err := c.decode(want.Type, want.SchemaVersion, []byte(`{}`)); !errors.As(err, &unknown) || *unknown != want {
			t.Errorf("%s: got %v, want %v", name, err, &want)
		}
	}
	if len(used) > 0 {
		t.Errorf("upcasts %v were used on what isn't known", used)
	}
	var unknown *UnknownTypeError
	_, err := c.decode("shipped", 1, []byte(`{"ref":"app"}`))
	if want := `read schema version 2 of shipped as 3: name "app" has no digest`; err == nil || err.Error() != want || errors.As(err, &unknown) {
		t.Errorf("got %v, want %s", err, want)
	}
	if !slices.Equal(used, []int{1, 2}) {
		t.Errorf("upcasts %v were used, want each once", used)
	}
}

func TestCursorTextsThatNobodyWroteAreRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"x", "1", "1.", ".1", "1.2.3", "-1.1", "1.-1", "01.1", "1.01", " 1.1", "1.1 ", "+1.1", "1,1", "1.x", "9223372036854775808.1", "1.9223372036854775808", "\xff"} {
		if c, err := ParseCursor(text); !errors.Is(err, ErrCursor) {
			t.Errorf("%q: got %v, %v, want ErrCursor", text, c, err)
		}
	}
}
