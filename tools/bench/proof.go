package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/verify"
	"github.com/pipeops/pipeops/handlers/audit"
)

// measureProof signs a log that grows to a million events, exports it, and verifies the export offline.
func measureProof(ctx context.Context, b *bench) error {
	l, err := b.openLog(ctx, "proof")
	if err != nil {
		return err
	}
	defer l.close()
	x, err := l.openExporter(ctx)
	if err != nil {
		return err
	}
	defer x.close()
	const events, parts = 1_000_000, 5
	var rates []float64
	var size int64
	for part := range parts {
		if err := l.simulate(ctx, 1+part, 200, events/parts*(part+1), nil); err != nil {
			return err
		}
		began := time.Now()
		head, err := x.signer.Sign(ctx)
		if err != nil {
			return err
		}
		rates = append(rates, float64(head.Size-size)/time.Since(began).Seconds())
		size = head.Size
	}
	b.atLeast("tree over the log: read, hashed, tiles stored, head signed", rates, "events/s", 100_000)
	dir := filepath.Join(b.home, "export")
	if err := x.write(ctx, dir); err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // the folder that it is in goes too
	var took []float64
	for range b.rounds {
		t, err := verifyExport(dir, size)
		if err != nil {
			return err
		}
		took = append(took, t.Seconds()*events/float64(size))
	}
	b.under("offline verification of an export, 1,000,000 events", median(took), "s", 10)
	return nil
}

// verifyExport is `pipeops audit verify`.
func verifyExport(dir string, size int64) (time.Duration, error) {
	began := time.Now()
	report, err := verify.Export(os.DirFS(dir), verify.Options{})
	if err == nil && report.Events != size {
		err = fmt.Errorf("the export holds %d events, want %d", report.Events, size)
	}
	return time.Since(began), err
}

// keys signs tree heads with a key that nobody else has.
type keys struct{ private ed25519.PrivateKey }

func (k keys) HeadSigner(context.Context) ([]ed25519.PublicKey, func([]byte) ([]byte, error), error) {
	public, _ := k.private.Public().(ed25519.PublicKey)
	return []ed25519.PublicKey{public}, func(text []byte) ([]byte, error) { return ed25519.Sign(k.private, text), nil }, nil
}

type anyToken struct{}

func (anyToken) Verify(context.Context, string) (string, bool, error) { return "act_1", true, nil }

// exporter serves what `pipeops audit export` asks for, over HTTP as `pipeops serve` does.
type exporter struct {
	signer *eventstore.Signer
	server *http.Server
	url    string
}

func (l *log) openExporter(ctx context.Context) (*exporter, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	x := &exporter{}
	if x.signer, err = eventstore.NewSigner(eventstore.SignerConfig{Store: l.store, Keys: keys{private}, Log: slog.Default()}); err != nil {
		return nil, err
	}
	handler, err := audit.New(audit.Config{
		Store: l.store, Signer: x.signer, Keys: keys{private}, Tokens: anyToken{}, Log: slog.Default(),
		Project: func(context.Context, string) (domain.ProjectID, error) { return "", nil },
		Actors:  func(context.Context) (map[string]string, error) { return nil, nil },
	})
	if err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	x.url = "http://" + listener.Addr().String() + "/audit/"
	x.server = &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go x.server.Serve(listener) //nolint:errcheck // it ends with close
	return x, nil
}

func (x *exporter) close() { _ = x.server.Close() }

// write makes the folder of an export of what is signed.
func (x *exporter) write(ctx context.Context, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, verify.CheckpointFolder), 0o755); err != nil {
		return err
	}
	head, err := x.signer.Sign(ctx)
	if err != nil {
		return err
	}
	size := strconv.FormatInt(head.Size, 10)
	for file, path := range map[string]string{
		verify.KeyFile: "key.pub", verify.EventsFile: "events?" + url.Values{"until": {size}}.Encode(),
		verify.LeavesFile: "leaves?" + url.Values{"size": {size}}.Encode(),
	} {
		if err := x.copy(ctx, path, func(body io.Reader) error { return writeFile(filepath.Join(dir, file), body) }); err != nil {
			return err
		}
	}
	return x.copy(ctx, "checkpoints?"+url.Values{"size": {size}}.Encode(), func(body io.Reader) error {
		for lines := json.NewDecoder(body); ; {
			var signed audit.Signed
			if err := lines.Decode(&signed); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			file := filepath.Join(dir, verify.CheckpointFolder, signed.Name)
			if err := os.WriteFile(file, []byte(signed.Checkpoint), 0o644); err != nil { //nolint:gosec // public
				return err
			}
		}
	})
}

func (x *exporter) copy(ctx context.Context, path string, to func(io.Reader) error) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, x.url+path, http.NoBody)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer any")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close() //nolint:errcheck // it was read
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, response.Status)
	}
	if err := to(response.Body); err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	return nil
}

func writeFile(name string, from io.Reader) error {
	file, err := os.Create(name) //nolint:gosec // ours
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(file, 1<<20)
	_, err = io.Copy(w, from)
	return errors.Join(err, w.Flush(), file.Close())
}
