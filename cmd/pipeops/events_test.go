package main

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/pipeops/pipeops/domain"
)

func TestEventsArePrintedWithTheirBodiesAsStored(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		`a && b <c> d`, `the text \u0026, not the letter`, `\\u003c twice`, "a\\&", "line\u2028end", `quote " and \`,
	} {
		body, err := domain.Encode(domain.AttemptLost{Attempt: "bld_1.1", Reason: text}, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		// As the server answers: Go's encoder escapes what is inside a raw message too.
		answer, err := json.Marshal(map[string]any{"events": []any{map[string]any{"position": "7", "data": json.RawMessage(body)}}})
		if err != nil {
			t.Fatal(err)
		}
		var got batch
		if err := json.Unmarshal(answer, &got); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := deliver(got, printer{w: &out, asJSON: true}.print); err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(out.Bytes(), append([]byte(`"data":`), body...)) {
			t.Errorf("%q: got %s, want the body %s in it", text, out.Bytes(), body)
		}
	}
}
