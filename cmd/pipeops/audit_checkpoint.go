package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

func auditCheckpoint() *cobra.Command {
	var now, asJSON bool
	var file, post string
	cmd := &cobra.Command{
		Use: "checkpoint", Short: "Print the newest signed checkpoint, and put it off the machine", Args: cobra.NoArgs,
		Long: `A checkpoint kept elsewhere is what proves that nobody has changed the log since. With --file it takes the place of the
one that is there, once the server has proved that the log still begins with what that one saw. --post sends it as a log
does to a C2SP tlog-witness; "pipeops serve" does so by itself with PIPEOPS_CHECKPOINT_URL.

Exit codes: 0 done, 3 refused, 4 the log does not begin with what the file's checkpoint saw.`,
		Example: "  pipeops audit checkpoint --now --file /mnt/safe/checkpoint\n  pipeops audit checkpoint --post https://witness.example.org/add-checkpoint",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient()
			if err != nil {
				return err
			}
			method := http.MethodGet
			if now {
				method = http.MethodPost
			}
			ctx := cmd.Context()
			s, err := c.checkpoint(ctx, method)
			if err != nil {
				return err
			}
			if file != "" {
				err = c.keep(ctx, s, file)
			}
			if err == nil && post != "" {
				err = c.post(ctx, s, post)
			}
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]any{
					"logId": s.LogID, "epoch": s.Epoch, "size": s.Size, "root": s.Root.String(), "checkpoint": string(s.signed),
				})
			}
			_, err = cmd.OutOrStdout().Write(s.signed)
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&now, "now", false, "sign what is new first, instead of waiting for the next time")
	f.StringVar(&file, "file", "", "keep it in this file, on another machine's disk for instance")
	f.StringVar(&post, "post", "", "post it to this URL")
	f.BoolVar(&asJSON, "json", false, "print it as JSON")
	return cmd
}

// signedCheckpoint is one whose signature was checked.
type signedCheckpoint struct {
	verify.Checkpoint

	keys   verify.Keys
	signed []byte
}

// checkpoint gets the newest one.
func (c *client) checkpoint(ctx context.Context, method string) (s signedCheckpoint, err error) {
	if s.signed, err = c.fetchAll(ctx, method, "checkpoint", nil); err != nil {
		return s, err
	}
	key, err := c.fetchAll(ctx, http.MethodGet, "key.pub", nil)
	if err != nil {
		return s, err
	}
	if s.keys, err = verify.ParseKeys(key); err == nil {
		s.Checkpoint, err = s.keys.Open(s.signed)
	}
	if err != nil {
		return s, fmt.Errorf("the server's newest checkpoint: %w", err)
	}
	return s, nil
}

// keep puts a checkpoint into a file, in place of an earlier one that it is consistent with.
func (c *client) keep(ctx context.Context, s signedCheckpoint, file string) error {
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("--file: %w", err)
	}
	if err == nil {
		if err := c.follows(ctx, s, old); err != nil {
			return fmt.Errorf("%s is left as it is: %w", file, err)
		}
	}
	return replaceFile(file, s.signed)
}

// forged says that the log is not the one that an earlier checkpoint saw.
func forged(before verify.Checkpoint, what string) error {
	return &coded{exitVerdict, fmt.Errorf("the log is not the one that checkpoint %s saw: %s", before.Name(), what)}
}

// follows says whether the log that s saw begins with what the old one saw.
func (c *client) follows(ctx context.Context, s signedCheckpoint, old []byte) error {
	before, err := s.keys.Open(old)
	if err != nil {
		return &coded{exitRefused, fmt.Errorf("what stands in it: %w", err)}
	}
	if before.Epoch != s.Epoch {
		return &coded{exitRefused, fmt.Errorf("it holds checkpoint %s, and a restore was declared since (the newest is %s): keep both, give another --file", before.Name(), s.Name())}
	}
	_, err = c.proof(ctx, s.Checkpoint, before)
	return err
}

// proof proves that the log that s saw begins with what an earlier checkpoint saw; it is empty for one of the same size.
func (c *client) proof(ctx context.Context, s, before verify.Checkpoint) (tlog.TreeProof, error) {
	switch {
	case before.Size > s.Size:
		return nil, forged(before, fmt.Sprintf("now it has %d events. If it was restored from a backup, say so: pipeops audit fork", s.Size))
	case before.Size == s.Size && before.Root != s.Root:
		return nil, forged(before, "its root is another")
	case before.Size == s.Size:
		return nil, nil
	}
	proof, err := c.consistency(ctx, before.Size, s.Size)
	if err != nil {
		return nil, err
	}
	if err := tlog.CheckTree(proof, s.Size, s.Root, before.Size, before.Root); err != nil {
		return nil, forged(before, "the server can't prove that it is")
	}
	return proof, nil
}

func (c *client) consistency(ctx context.Context, from, to int64) (tlog.TreeProof, error) {
	text, err := c.fetchAll(ctx, http.MethodGet, "consistency",
		url.Values{"from": {strconv.FormatInt(from, 10)}, "to": {strconv.FormatInt(to, 10)}})
	if err != nil {
		return nil, err
	}
	var proof audit.Consistency
	if err := json.Unmarshal(text, &proof); err != nil {
		return nil, fmt.Errorf("read the proof that checkpoint %d follows %d: %w", to, from, err)
	}
	return proof.Hashes, nil
}

// post sends a checkpoint; a witness that has seen an earlier one is told the proof.
func (c *client) post(ctx context.Context, s signedCheckpoint, address string) error {
	if u, err := url.Parse(address); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return usage("--post: want for example https://witness.example.org/add-checkpoint")
	}
	sender := &http.Client{Timeout: 30 * time.Second}
	err := audit.Send(ctx, sender, address, string(s.signed), 0, nil)
	behind, knows := errors.AsType[*audit.BehindError](err)
	switch {
	case !knows:
		return err
	case behind.Size > s.Size:
		return &coded{exitVerdict, fmt.Errorf("%s has seen %d events of the log, now it has %d. If it was restored from a backup, say so: pipeops audit fork", address, behind.Size, s.Size)}
	}
	proof := tlog.TreeProof{}
	if behind.Size > 0 {
		if proof, err = c.consistency(ctx, behind.Size, s.Size); err != nil {
			return err
		}
	}
	return audit.Send(ctx, sender, address, string(s.signed), behind.Size, proof)
}

// replaceFile writes a file whole, or leaves the one that is there.
func replaceFile(file string, text []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil { //nolint:gosec // public
		return err
	}
	return os.Rename(f.Name(), file)
}
