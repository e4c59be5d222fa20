package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/pipeops/pipeops/eventstore/verify"
	"github.com/pipeops/pipeops/handlers/audit"
)

func auditExport() *cobra.Command {
	var out, project string
	var kept []string
	cmd := &cobra.Command{
		Use: "export", Short: "Write the log, or a project's part, with what proves it", Args: cobra.NoArgs,
		Long: `Signs what is new, then writes into the folder of --out: events.jsonl, leaves (hashes), checkpoints/ and key.pub; for a
project, proofs.jsonl instead of leaves, and consistency/, which proves that the log begins with what each of the earlier
checkpoints saw. Of many checkpoints about a thousand are taken: give one that you keep elsewhere with --checkpoint, so
that verify can hold it against the part. The folder appears when all is there; one that exists is never touched.
Personal fields are ciphertext in it.

Exit codes: 0 done, 3 refused, 4 the log does not begin with what a checkpoint of --checkpoint saw.`,
		Example: "  pipeops audit export --out export\n  pipeops audit export --out shop --project shop --checkpoint /mnt/safe/checkpoint\n  pipeops audit verify export",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return usage("--out is missing: a folder to make (example: --out export)")
			}
			if project == "" && len(kept) > 0 {
				return usage("--checkpoint is for a project's part (--project): the whole log is held against any checkpoint as it is, by verify")
			}
			c, err := newClient()
			if err != nil {
				return err
			}
			e := export{client: c, project: project, told: cmd.ErrOrStderr()}
			for _, file := range kept {
				signed, err := os.ReadFile(file)
				if err != nil {
					return usage("--checkpoint: %v", err)
				}
				e.kept = append(e.kept, signed)
			}
			if err := e.write(cmd.Context(), out); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d events up to checkpoint %s are in %s; check them: pipeops audit verify %s\n", e.events, e.head.Name(), out, out)
			return nil
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "folder to make (required)")
	cmd.Flags().StringVar(&project, "project", "", "only this project's events, each with its proof")
	cmd.Flags().StringArrayVar(&kept, "checkpoint", nil, "checkpoint kept elsewhere, which the project's part is to be held against; may be repeated")
	return cmd
}

// export writes one.
type export struct {
	client  *client
	project string
	kept    [][]byte  // checkpoints to prove besides those that the server picks
	told    io.Writer // progress
	keys    verify.Keys
	head    verify.Checkpoint
	events  int64
}

// write makes the folder out, whole or not at all.
func (e *export) write(ctx context.Context, out string) (err error) {
	if _, err := os.Lstat(out); !errors.Is(err, os.ErrNotExist) {
		return usage("--out: %s is there already: give the name of a folder to make", out)
	}
	dir, err := os.MkdirTemp(filepath.Dir(out), "."+filepath.Base(out)+"-*")
	if err != nil {
		return fmt.Errorf("make a folder for the export: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := e.fill(ctx, dir); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	return os.Rename(dir, out)
}

func (e *export) fill(ctx context.Context, dir string) error {
	signed, err := e.client.fetchAll(ctx, http.MethodPost, "checkpoint", nil)
	if err != nil {
		return err
	}
	key, err := e.client.fetchAll(ctx, http.MethodGet, "key.pub", nil)
	if err != nil {
		return err
	}
	if e.keys, err = verify.ParseKeys(key); err == nil {
		e.head, err = e.keys.Open(signed)
	}
	if err != nil {
		return fmt.Errorf("the server's newest checkpoint: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, verify.KeyFile), key, 0o644); err != nil { //nolint:gosec // public
		return err
	}
	for _, folder := range e.folders() {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o755); err != nil {
			return err
		}
	}
	size := url.Values{"size": {strconv.FormatInt(e.head.Size, 10)}}
	until := url.Values{"until": {strconv.FormatInt(e.head.Size, 10)}}
	if e.project != "" {
		size.Set("project", e.project)
		until.Set("project", e.project)
		size.Set("proofs", "yes")
	}
	if err = e.checkpoints(ctx, dir, size); err == nil {
		err = e.prove(ctx, dir)
	}
	if err == nil {
		err = e.copy(ctx, filepath.Join(dir, verify.EventsFile), "events", until, &e.events)
	}
	if err != nil {
		return err
	}
	var other int64
	if e.project == "" {
		return e.copy(ctx, filepath.Join(dir, verify.LeavesFile), "leaves", size, nil)
	}
	return e.copy(ctx, filepath.Join(dir, verify.ProofsFile), "proofs", size, &other)
}

func (e *export) folders() []string {
	if e.project == "" {
		return []string{verify.CheckpointFolder}
	}
	return []string{verify.CheckpointFolder, verify.ConsistencyFolder}
}

// checkpoints writes each into a file of its own.
func (e *export) checkpoints(ctx context.Context, dir string, size url.Values) error {
	body, err := e.client.fetch(ctx, http.MethodGet, "checkpoints", size)
	if err != nil {
		return err
	}
	defer body.Close() //nolint:errcheck // it was read
	for lines := json.NewDecoder(body); ; {
		var c audit.Signed
		if err := lines.Decode(&c); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read the checkpoints: %w", err)
		}
		if filepath.Base(c.Name) != c.Name {
			return fmt.Errorf("the server names a checkpoint %q", c.Name)
		}
		if err := e.checkpoint(dir, c.Name, []byte(c.Checkpoint), c.Hashes); err != nil {
			return err
		}
	}
}

// prove adds those that were kept elsewhere.
func (e *export) prove(ctx context.Context, dir string) error {
	for i, signed := range e.kept {
		before, err := e.keys.Open(signed)
		if err != nil {
			return &coded{exitRefused, fmt.Errorf("--checkpoint %d: %w", i+1, err)}
		}
		proof, err := e.client.proof(ctx, e.head, before)
		if err != nil && before.Epoch != e.head.Epoch {
			err = &coded{exitRefused, fmt.Errorf("a restore was declared since checkpoint %s (the newest is %s), and may have lost what it saw: "+
				"only the whole log tells, leave out --project: %w", before.Name(), e.head.Name(), err)}
		}
		if err == nil {
			err = e.checkpoint(dir, before.Name(), signed, proof)
		}
		if err != nil {
			return fmt.Errorf("--checkpoint %d: %w", i+1, err)
		}
	}
	return nil
}

// checkpoint writes one, and into a part what proves that the log begins with what it saw. One that is not signed is for
// verify to tell of.
func (e *export) checkpoint(dir, name string, signed []byte, proof tlog.TreeProof) error {
	c, bad := e.keys.Open(signed)
	if e.project != "" && bad == nil && c.Size < e.head.Size {
		if len(proof) == 0 { // the server is of a version that proves none
			return nil
		}
		file := filepath.Join(dir, filepath.FromSlash(verify.ConsistencyFile(c.Size)))
		if err := os.WriteFile(file, verify.AppendConsistency(nil, c.Size, proof), 0o644); err != nil { //nolint:gosec // public
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, verify.CheckpointFolder, name), signed, 0o644) //nolint:gosec // public
}

// copy streams a file of the export to disk, counts its lines and tells a person how far it is.
func (e *export) copy(ctx context.Context, file, path string, query url.Values, count *int64) (err error) {
	body, err := e.client.fetch(ctx, http.MethodGet, path, query)
	if err != nil {
		return err
	}
	defer body.Close()                                                    //nolint:errcheck // it was read
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644) //nolint:gosec // whoever may read the folder
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	piece, last := make([]byte, 256<<10), time.Now()
	for {
		n, err := body.Read(piece)
		if _, err := w.Write(piece[:n]); err != nil {
			return err
		}
		if count != nil {
			*count += int64(bytes.Count(piece[:n], []byte("\n")))
		}
		if count != nil && time.Since(last) > time.Second {
			last = time.Now()
			fmt.Fprintf(e.told, "pipeops: %s: %d, the log has %d events\n", path, *count, e.head.Size)
		}
		switch {
		case errors.Is(err, io.EOF):
			return errors.Join(w.Flush(), f.Sync())
		case err != nil:
			return fmt.Errorf("read %s of %s: %w", path, e.client.url, err)
		}
	}
}
