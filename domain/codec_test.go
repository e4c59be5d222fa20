package domain

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite golden files")

var updateReference = flag.Bool("update-reference", false, "rewrite docs/events.md")

func fakeSeal(subject, eventID, field, text string) (string, error) {
	return "sealed(" + subject + "," + eventID + "," + field + "," + text + ")", nil
}

// sample fills every field of an event with a value that tells its name.
func sample(t *testing.T, eventType string) Event {
	t.Helper()
	zero, err := Zero(eventType)
	if err != nil {
		t.Fatal(err)
	}
	v := reflect.New(reflect.TypeOf(zero)).Elem()
	fill(v, strings.ToLower(eventType))
	return v.Interface().(Event)
}

func fill(v reflect.Value, name string) {
	switch v.Type() {
	case reflect.TypeFor[Personal]():
		v.Set(reflect.ValueOf(Personal{Text: name, Subject: "sub_" + name}))
		return
	case reflect.TypeFor[Time]():
		v.Set(reflect.ValueOf(At(time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC))))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(name)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(len(name)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8:
		v.SetUint(uint64(len(name)))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), name)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), fmt.Sprintf("%s%d", name, i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		e := reflect.New(v.Type().Elem()).Elem()
		fill(e, name)
		v.SetMapIndex(reflect.ValueOf("key<&>").Convert(v.Type().Key()), e)
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				fill(v.Field(i), strings.ToLower(f.Name))
			}
		}
	}
}

func TestAcceptance18_EveryEventHasAGoldenFileThatStillDecodes(t *testing.T) {
	t.Parallel()
	for _, name := range Types() {
		want := sample(t, name)
		body, err := Encode(want, "00000000-0000-0000-0000-000000000001", fakeSeal)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", "events", fmt.Sprintf("%s.v%d.json", name, SchemaVersion(name)))
		if *update {
			if err := os.WriteFile(file, body, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(file)
		if err != nil {
			t.Fatalf("%v (a new event type needs a golden file: go test ./domain -update)", err)
		}
		if string(golden) != string(body) {
			t.Errorf("%s is written otherwise than before: events are for ever\ngot  %s\nwant %s", name, body, golden)
		}
	}
	files, _ := filepath.Glob("testdata/events/*.json")
	if len(files) < len(Types()) {
		t.Errorf("%d golden files for %d types", len(files), len(Types()))
	}
	for _, f := range files {
		var name string
		var version int
		base := strings.TrimSuffix(filepath.Base(f), ".json")
		i := strings.LastIndex(base, ".v")
		name = base[:i]
		if _, err := fmt.Sscanf(base[i:], ".v%d", &version); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		body, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		stored := slices.Clone(body)
		e, err := Decode(name, version, body)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		if !slices.Equal(stored, body) {
			t.Errorf("%s: its stored bytes were changed by reading", f)
		}
		again, err := Encode(e, "another", func(_, _, _, _ string) (string, error) { return "", errors.New("sealed again") })
		if err != nil || (version == SchemaVersion(name) && string(again) != string(body)) {
			t.Errorf("%s changes when read and written again: %s, %v", f, again, err)
		}
	}
}

func TestPersonalFieldsAreOnlyEverWrittenSealed(t *testing.T) {
	t.Parallel()
	e := PushReceived{Push: "psh_1", Pusher: Personal{Text: "Ada", Subject: "sub"}}
	body, err := Encode(e, "id", fakeSeal)
	if err != nil {
		t.Fatal(err)
	}
	if want := `"pusher":{"enc":"sealed(sub,id,pusher,Ada)","sub":"sub"}`; !strings.Contains(string(body), want) {
		t.Errorf("got %s, want %s in it", body, want)
	}
	got, err := Decode("PushReceived", 1, body)
	if err != nil {
		t.Fatal(err)
	}
	if text := got.(PushReceived).Pusher.Text; text != "" {
		t.Errorf("decoded personal text %q without its key", text)
	}
	opened, err := Open(got, "id", func(_, _, _, c string) (string, bool, error) { return "opened " + c, true, nil })
	if err != nil {
		t.Fatal(err)
	}
	if text := opened.(PushReceived).Pusher.Text; text != "opened sealed(sub,id,pusher,Ada)" {
		t.Errorf("opened %q", text)
	}
	if _, err := e.Pusher.MarshalJSON(); err == nil {
		t.Error("an unsealed personal field was written")
	}
}

func TestUnknownTypesAndVersionsAreTyped(t *testing.T) {
	t.Parallel()
	var unknown *UnknownTypeError
	if _, err := Decode("NeverHeardOf", 1, []byte(`{}`)); !errors.As(err, &unknown) || unknown.SchemaVersion != 0 {
		t.Errorf("got %v", err)
	}
	if _, err := Decode("BuildStarted", 99, []byte(`{}`)); !errors.As(err, &unknown) || unknown.SchemaVersion != 99 {
		t.Errorf("got %v", err)
	}
}

func FuzzParseCursor(f *testing.F) {
	for _, s := range []string{"", "1.1", "0.0", "01.1", "1.", ".1", "1.-1", "9223372036854775807.1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseCursor(s)
		if err == nil && s != "" && c.String() != s {
			t.Errorf("%q became %q", s, c)
		}
	})
}

func FuzzDecodeNeverPanics(f *testing.F) {
	f.Add("PushReceived", []byte(`{"pusher":{"enc":1}}`))
	f.Fuzz(func(_ *testing.T, name string, body []byte) {
		_, _ = Decode(name, 1, body)
	})
}
