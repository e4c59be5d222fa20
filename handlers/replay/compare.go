package replay

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/pipeops/pipeops/domain"
)

// compare tells in what a decision differs from the recorded one: event by event, field by field. Personal fields are
// compared by what they say, where that isn't erased. subject names the decision where nothing of it was recorded.
func (r *Replays) compare(ctx context.Context, subject string, was []domain.Recorded, would []domain.Change) (out []Difference, err error) {
	for i := range max(len(was), len(would)) {
		switch {
		case i >= len(was):
			name := domain.TypeOf(would[i].Event)
			out = append(out, Difference{Subject: subject, What: name + " would be recorded, and was not", Would: quoted(name)})
		case i >= len(would):
			out = append(out, Difference{Subject: was[i].ID, What: was[i].Type + " was recorded, and would not be", Was: quoted(was[i].Type)})
		case was[i].Type != domain.TypeOf(would[i].Event):
			name := domain.TypeOf(would[i].Event)
			out = append(out, Difference{Subject: was[i].ID, What: name + " instead of " + was[i].Type, Was: quoted(was[i].Type), Would: quoted(name)})
		case was[i].Stream != would[i].Stream:
			out = append(out, Difference{Subject: was[i].ID, What: was[i].Type + " in another stream", Was: quoted(string(was[i].Stream)), Would: quoted(string(would[i].Stream))})
		default:
			fields, err := r.fields(ctx, was[i], would[i].Event)
			if err != nil {
				return nil, err
			}
			out = append(out, fields...)
		}
	}
	return out, nil
}

func quoted(text string) string {
	b, _ := json.Marshal(text) //nolint:errchkjson // a string
	return string(b)
}

// fields compares two events of one type.
func (r *Replays) fields(ctx context.Context, was domain.Recorded, would domain.Event) (out []Difference, err error) {
	plain := func(_, _, _, text string) (string, error) { return text, nil }
	body, err := domain.Encode(would, was.ID, plain)
	if err != nil {
		return nil, err
	}
	var before, after map[string]any
	if err := json.Unmarshal(was.Body, &before); err != nil {
		return nil, fmt.Errorf("read event %s: %w", was.ID, err)
	}
	if err := json.Unmarshal(body, &after); err != nil {
		return nil, fmt.Errorf("read what would be event %s: %w", was.ID, err)
	}
	names := map[string]bool{}
	for name := range maps.Keys(before) {
		names[name] = true
	}
	for name := range maps.Keys(after) {
		names[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		d := Difference{Subject: was.ID, What: was.Type + "." + name}
		if personal, isPersonal := before[name].(map[string]any); isPersonal && isSealed(personal) {
			same, err := r.saysTheSame(ctx, was.ID, name, personal, after[name])
			if err != nil {
				return nil, err
			}
			if !same {
				out = append(out, d)
			}
			continue
		}
		if reflect.DeepEqual(before[name], after[name]) {
			continue
		}
		d.Was, d.Would = text(before, name), text(after, name)
		out = append(out, d)
	}
	return out, nil
}

func isSealed(field map[string]any) bool {
	_, enc := field["enc"]
	_, sub := field["sub"]
	return enc && sub && len(field) == 2
}

// saysTheSame opens a sealed field and compares it with a plain one, or with the same sealed one.
func (r *Replays) saysTheSame(ctx context.Context, event, name string, was map[string]any, would any) (bool, error) {
	if reflect.DeepEqual(any(was), would) {
		return true, nil
	}
	enc, _ := was["enc"].(string)
	sub, _ := was["sub"].(string)
	now, _ := would.(map[string]any)
	if enc == "" || now["sub"] != sub {
		return false, nil
	}
	said, there, err := r.cfg.Opener(ctx, sub, event, name, enc)
	if err != nil {
		return false, fmt.Errorf("open %s of event %s: %w", name, event, err)
	}
	return !there || now["enc"] == said, nil // what is erased can't be compared
}

// text gives a field as JSON; empty: it isn't there.
func text(of map[string]any, name string) string {
	value, there := of[name]
	if !there {
		return ""
	}
	b, err := json.Marshal(value)
	if err != nil {
		return ""
	}
	return string(b)
}
