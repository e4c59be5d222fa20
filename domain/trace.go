package domain

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// Traceparent gives a W3C trace context as it is recorded, in the form of
// version 00, and "" for what is none (section 3.2 of Trace Context): whoever
// pushes or asks with one finds all that follows in their own traces.
func Traceparent(text string) string {
	const size = len("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	text = strings.TrimSpace(text)
	if len(text) < size || text[2] != '-' || text[35] != '-' || text[52] != '-' {
		return ""
	}
	version, trace, parent, flags := text[:2], text[3:35], text[36:52], text[53:size]
	for _, part := range []string{version, trace, parent, flags} {
		if strings.Trim(part, "0123456789abcdef") != "" {
			return ""
		}
	}
	later := version != "00" && text[size:] != "" && text[size] == '-' // versions to come may say more
	if version == "ff" || text[size:] != "" && !later || strings.Trim(trace, "0") == "" || strings.Trim(parent, "0") == "" {
		return ""
	}
	return "00-" + trace + "-" + parent + "-" + flags
}

// NewTrace begins the trace of what follows from a first cause, "sampled". The
// same correlation id has the same trace.
func NewTrace(correlationID string) string {
	sum := sha256.Sum256([]byte("pipeops/trace/" + correlationID))
	sum[0] |= 1 // no id is all zeros
	sum[16] |= 1
	return "00-" + hex.EncodeToString(sum[:16]) + "-" + hex.EncodeToString(sum[16:24]) + "-01"
}
