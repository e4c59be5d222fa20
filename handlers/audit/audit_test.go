package audit_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/pipeops/pipeops/eventstore/verify"
	"github.com/pipeops/pipeops/handlers/audit"
)

func TestNobodyReadsWithoutAToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, path := range []string{"checkpoint", "events", "key.pub", "leaves?size=1", "actors"} {
		for _, shown := range []string{"", "Bearer ", "Bearer bad", token} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.server.URL+"/audit/"+path, nil)
			must(t, err)
			r.Header.Set("Authorization", shown)
			resp, err := http.DefaultClient.Do(r)
			must(t, err)
			must(t, resp.Body.Close())
			if resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s with %q: %s", path, shown, resp.Status)
			}
		}
	}
}

func TestBadInputIsToldWithWhatToDo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if status, _ := w.get(http.MethodGet, "checkpoint"); status != http.StatusNotFound {
		t.Errorf("the checkpoint of an empty log: %d", status)
	}
	w.append(10)
	w.mustGet(http.MethodPost, "checkpoint")
	for path, says := range map[string]string{
		"leaves?size=x":                 "whole number",
		"leaves?size=9":                 "no checkpoint of so many",
		"leaves":                        "no checkpoint of so many",
		"checkpoints?size=-1":           "whole number",
		"events?after=x":                "not a cursor",
		"events?since=yesterday":        "RFC 3339",
		"events?type=Nothing":           "no such type",
		"events?project=none":           "no project none",
		"proofs?size=10&project=":       "no project",
		"consistency?from=1&to=10":      "no checkpoint of so many",
		"consistency?from=10&to=banana": "whole number",
	} {
		if status, body := w.get(http.MethodGet, path); status/100 != 4 || !strings.Contains(string(body), says) {
			t.Errorf("%s: %d %s, want %q", path, status, body, says)
		}
	}
}

// export gets all that an export holds.
func (w *world) export(project string) fstest.MapFS {
	w.t.Helper()
	signed := w.mustGet(http.MethodPost, "checkpoint")
	c, err := w.verifyKeys().Open(signed)
	must(w.t, err)
	files := fstest.MapFS{verify.KeyFile: {Data: w.mustGet(http.MethodGet, "key.pub")}}
	if project != "" {
		files[verify.EventsFile] = &fstest.MapFile{Data: w.mustGet(http.MethodGet, fmt.Sprintf("events?until=%d&project=%s", c.Size, project))}
		files[verify.ProofsFile] = &fstest.MapFile{Data: w.mustGet(http.MethodGet, fmt.Sprintf("proofs?size=%d&project=%s", c.Size, project))}
		w.checkpoints(files, fmt.Sprintf("checkpoints?size=%d&proofs=yes", c.Size))
		return files
	}
	files[verify.EventsFile] = &fstest.MapFile{Data: w.mustGet(http.MethodGet, fmt.Sprintf("events?until=%d", c.Size))}
	files[verify.LeavesFile] = &fstest.MapFile{Data: w.mustGet(http.MethodGet, fmt.Sprintf("leaves?size=%d", c.Size))}
	w.checkpoints(files, fmt.Sprintf("checkpoints?size=%d", c.Size))
	return files
}

// checkpoints adds those that the server lists, with their proofs.
func (w *world) checkpoints(files fstest.MapFS, path string) {
	w.t.Helper()
	for lines := json.NewDecoder(bytes.NewReader(w.mustGet(http.MethodGet, path))); ; {
		var line audit.Signed
		if err := lines.Decode(&line); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			w.t.Fatal(err)
		}
		files[verify.CheckpointFolder+"/"+line.Name] = &fstest.MapFile{Data: []byte(line.Checkpoint)}
		if len(line.Hashes) > 0 {
			c, err := w.verifyKeys().Open([]byte(line.Checkpoint))
			must(w.t, err)
			files[verify.ConsistencyFile(c.Size)] = &fstest.MapFile{Data: verify.AppendConsistency(nil, c.Size, line.Hashes)}
		}
	}
}

func TestAcceptance24_WhatTheServerGivesVerifiesOffline(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, n := range []int{10, 290, 400, 3} {
		w.append(n)
		w.mustGet(http.MethodPost, "checkpoint")
	}
	report, err := verify.Export(w.export(""), verify.Options{})
	if err != nil || report.Events != 703 || report.Checkpoints != 4 {
		t.Errorf("the log: %+v, %v", report, err)
	}
	report, err = verify.Export(w.export("one"), verify.Options{})
	if err != nil || report.Project != "prj_1" || report.Events != 234 || report.Size != 703 || report.Checkpoints != 4 {
		t.Errorf("a project: %+v, %v", report, err)
	}
	// Consistency between any two.
	keys := w.verifyKeys()
	heads := []verify.Checkpoint{}
	for name, file := range w.export("") {
		if strings.HasPrefix(name, verify.CheckpointFolder) {
			c, err := keys.Open(file.Data)
			must(t, err)
			heads = append(heads, c)
		}
	}
	for _, older := range heads {
		for _, newer := range heads {
			if older.Size > newer.Size {
				continue
			}
			var proof audit.Consistency
			must(t, json.Unmarshal(w.mustGet(http.MethodGet, fmt.Sprintf("consistency?from=%d&to=%d", older.Size, newer.Size)), &proof))
			if err := tlog.CheckTree(proof.Hashes, newer.Size, newer.Root, older.Size, older.Root); err != nil {
				t.Errorf("%s and %s: %v", older.Name(), newer.Name(), err)
			}
		}
	}
}

func TestAPartHasOnlyCheckpointsThatARestoreHasNotLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var kept [][]byte
	for range 3 {
		w.append(100)
		kept = append(kept, w.mustGet(http.MethodPost, "checkpoint"))
	}
	w.exec(`ALTER TABLE pipeops.events DISABLE TRIGGER USER; DELETE FROM pipeops.events WHERE position > 250;
		ALTER TABLE pipeops.events ENABLE TRIGGER USER; SELECT pipeops.raise_log_epoch()`)
	w.append(100)
	part := w.export("one")
	report, err := verify.Export(part, verify.Options{Checkpoints: kept[:2]})
	if err != nil || report.Size != 350 || report.Checkpoints != 5 { // 1.100, 1.200, 2.350 and the given ones
		t.Errorf("got %+v, %v", report, err)
	}
	var apart *verify.NotComparableError
	if _, err := verify.Export(part, verify.Options{Checkpoints: kept}); !errors.As(err, &apart) || apart.File != "the given checkpoint 3" {
		t.Errorf("a lost checkpoint: %v", err)
	}
}

func TestAcceptance24_AnEventThatWasChangedByForceIsNamed(t *testing.T) {
	t.Parallel()
	for name, tamper := range map[string]string{
		"body":   `UPDATE pipeops.events SET body = '{"build":"other"}' WHERE position = 42`,
		"actor":  `UPDATE pipeops.events SET actor = 'somebody' WHERE position = 42`,
		"order":  `UPDATE pipeops.events SET position = -1 WHERE position = 42; UPDATE pipeops.events SET position = 42 WHERE position = 43; UPDATE pipeops.events SET position = 43 WHERE position = -1`,
		"missed": `DELETE FROM pipeops.events WHERE position = 42`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.append(300)
			w.export("")
			w.exec("ALTER TABLE pipeops.events DISABLE TRIGGER USER") // as only the schema's owner can
			w.exec(tamper)
			w.append(300)
			var wrong *verify.Error
			if _, err := verify.Export(w.export(""), verify.Options{}); !errors.As(err, &wrong) || wrong.Position != 42 {
				t.Errorf("got %v, want position 42", err)
			}
		})
	}
}

func TestEventsArePickedByWhoWhatAndWhen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.append(30)
	middle := time.Now()
	w.append(30)
	for query, want := range map[string]int{
		"":                          60,
		"project=one":               20,
		"actor=token:1":             30,
		"project=two&actor=token:0": 10,
		"type=LayerBuilt":           60,
		"type=PushReceived":         0,
		"after=1.50":                10,
		"until=7":                   7,
		"reports=no":                60,
		"since=" + middle.UTC().Format("2006-01-02T15:04:05.000000Z"): 30,
	} {
		got := bytes.Count(w.mustGet(http.MethodGet, "events?"+query), []byte("\n"))
		if got != want {
			t.Errorf("%q: %d events, want %d", query, got, want)
		}
	}
	if names := w.mustGet(http.MethodGet, "actors"); !strings.Contains(string(names), `"token:1":"laptop"`) {
		t.Errorf("actors: %s", names)
	}
}

func TestAStreamThatCantBeFinishedIsCutAndNotEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.append(6000)
	w.mustGet(http.MethodPost, "checkpoint")
	w.exec("ALTER TABLE pipeops.tree_tiles DISABLE TRIGGER USER; DELETE FROM pipeops.tree_tiles WHERE level = 0 AND index = 20")
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.server.URL+"/audit/leaves?size=6000", nil)
	must(t, err)
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(r)
	must(t, err)
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err == nil || n == 0 {
		t.Errorf("%d bytes as if they were all, %v", n, err)
	}
}

func TestAReaderThatStandsStillIsCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.append(15_000)
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", w.server.Listener.Addr().String())
	must(t, err)
	defer conn.Close()
	must(t, conn.(*net.TCPConn).SetReadBuffer(4096))
	_, err = fmt.Fprintf(conn, "GET /audit/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", token)
	must(t, err)
	in := bufio.NewReader(conn)
	if _, err := in.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	// The server goes on without us: its handler ends, which Close of the server would wait for.
	done := make(chan struct{})
	go func() { w.server.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("the handler still waits for a reader that stands still")
	}
}

func TestExportsTakeConstantMemory(t *testing.T) {
	w := newWorld(t)
	w.append(30_000)
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.server.URL+"/audit/events", nil)
	must(t, err)
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(r)
	must(t, err)
	defer resp.Body.Close()
	var size, peak int64
	for piece := make([]byte, 1<<20); err == nil; {
		var n int
		n, err = io.ReadFull(resp.Body, piece)
		size += int64(n)
		runtime.ReadMemStats(&now)
		peak = max(peak, int64(now.HeapAlloc)-int64(before.HeapAlloc))
	}
	if peak > 8<<20 || size < 15<<20 {
		t.Errorf("%d MiB of memory for %d MiB of events, %v", peak>>20, size>>20, err)
	}
}
