package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore/verify"
	"github.com/pipeops/pipeops/internal/local"
	"github.com/pipeops/pipeops/internal/seal"
	"github.com/pipeops/pipeops/migrations"
)

func auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "Who did what, and the proof that nobody has changed it",
		Long: `The log is append-only, and a tree of hashes over it is signed every few seconds (C2SP checkpoints). An export can be
verified by anybody, offline. What a signed checkpoint proves, and what not, is in docs/architecture.md, "Proof".`,
	}
	cmd.AddCommand(auditLog(), auditExport(), auditVerify(), auditCheckpoint(), auditKey(), auditErase(), auditFork())
	return cmd
}

// fetch asks the server for something below /audit/. The caller closes the body.
func (c *client) fetch(ctx context.Context, method, path string, query url.Values) (io.ReadCloser, error) {
	address := c.url + "/audit/" + path
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("reach %s: %w (is it running? pipeops up)", c.url, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	if resp.StatusCode == http.StatusUnauthorized {
		return nil, c.unknownToken()
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", c.url, err)
	}
	code := exitFailure
	if resp.StatusCode/100 == 4 {
		code = exitRefused
	}
	return nil, &coded{code, errors.New(strings.TrimSpace(string(text)))}
}

// fetchAll reads a short answer whole.
func (c *client) fetchAll(ctx context.Context, method, path string, query url.Values) ([]byte, error) {
	body, err := c.fetch(ctx, method, path, query)
	if err != nil {
		return nil, err
	}
	defer body.Close() //nolint:errcheck // it was read
	text, err := io.ReadAll(body)
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", path, c.url, err)
	}
	return text, nil
}

func auditVerify() *cobra.Command {
	var asJSON bool
	var key string
	var kept []string
	cmd := &cobra.Command{
		Use: "verify DIR", Short: "Check an export, offline: no server, no configuration", Args: cobra.ExactArgs(1),
		Long: `Checks every event's hash, that none is missing, that every checkpoint's root is that of the events it saw (so that any
two are consistent), and every signature. Says which position is the first bad one.

Whoever can change all of the export and has the signing key can make another one that is good in itself: give what you
have kept elsewhere, with --key and --checkpoint.

A project's part says only of some checkpoints whether the log begins with what they saw: of those that it was exported
with (export --checkpoint).

Exit codes: 0 it is what was signed, 1 it could not be read, 2 the command line is at fault, 3 a given checkpoint can't be
held against a project's part, 4 it is not what was signed.`,
		Example: "  pipeops audit verify export --key /mnt/safe/key.pub --checkpoint /mnt/safe/checkpoint",
		RunE: func(cmd *cobra.Command, args []string) error {
			options := verify.Options{}
			var err error
			if key != "" {
				if options.Key, err = os.ReadFile(key); err != nil {
					return usage("--key: %v", err)
				}
			}
			for _, file := range kept {
				checkpoint, err := os.ReadFile(file)
				if err != nil {
					return usage("--checkpoint: %v", err)
				}
				options.Checkpoints = append(options.Checkpoints, checkpoint)
			}
			report, err := verify.Export(os.DirFS(args[0]), options)
			return tellVerdict(cmd.OutOrStdout(), report, err, key == "", asJSON)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "print the verdict as JSON")
	f.StringVar(&key, "key", "", "key.pub kept elsewhere (default: the export's own)")
	f.StringArrayVar(&kept, "checkpoint", nil, "checkpoint kept elsewhere, which the export must contain; may be repeated")
	return cmd
}

// verdict is what `audit verify --json` prints.
type verdict struct {
	OK       bool   `json:"ok"`
	Position int64  `json:"position,omitempty"` // the first bad one; 0: a file's
	File     string `json:"file,omitempty"`
	Reason   string `json:"reason,omitempty"`

	NotComparable bool `json:"notComparable,omitempty"` // all is good, but of File nothing is known

	*verify.Report
}

func tellVerdict(w io.Writer, report verify.Report, err error, ownKey, asJSON bool) error {
	wrong, bad := errors.AsType[*verify.Error](err)
	apart, unsure := errors.AsType[*verify.NotComparableError](err)
	if err != nil && !bad && !unsure {
		return fmt.Errorf("read the export: %w", err)
	}
	if asJSON {
		v := verdict{OK: err == nil, Report: &report}
		switch {
		case bad:
			v = verdict{Position: wrong.Position, File: wrong.File, Reason: wrong.Reason}
		case unsure:
			v = verdict{NotComparable: true, File: apart.File, Reason: apart.Reason}
		}
		if err := printJSON(w, v); err != nil {
			return err
		}
	}
	switch {
	case bad:
		return &coded{exitVerdict, fmt.Errorf("this is not what was signed: %w", wrong)}
	case unsure:
		return &coded{exitRefused, fmt.Errorf("not comparable: %w", apart)}
	}
	if asJSON {
		return nil
	}
	whole := fmt.Sprintf("%d events, positions 1 to %d without a gap", report.Events, report.Size)
	if report.Project != "" {
		whole = fmt.Sprintf("%d events of project %s, each proven to be among the log's first %d; that there are no more streams of it is not proven", report.Events, report.Project, report.Size)
	}
	fmt.Fprintf(w, "good: %s\nlog:         %s\ncheckpoints: %d good, the newest %d.%d with root %s\n", whole, report.LogID, report.Checkpoints, report.Epoch, report.Size, report.Root)
	from := " (given)"
	if ownKey {
		from = " (the export's own: compare it with one that you have from elsewhere)"
	}
	for _, k := range report.Keys {
		fmt.Fprintf(w, "key:         %s%s\n", k, from)
	}
	for _, fork := range report.Forks {
		fmt.Fprintf(w, "fork:        a restore was declared: log epoch %d begins at position %d\n", fork.Epoch, fork.First)
	}
	for _, lost := range report.Lost {
		fmt.Fprintf(w, "lost:        checkpoint %d.%d had seen %d events more than the restore kept\n", lost.Epoch, lost.Size, lost.Size-lost.Kept)
	}
	return nil
}

func auditKey() *cobra.Command {
	cmd := &cobra.Command{
		Use: "key", Short: "Print the public keys of checkpoints (key.pub); keep them off the machine", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient()
			if err != nil {
				return err
			}
			key, err := c.fetchAll(cmd.Context(), http.MethodGet, "key.pub", nil)
			if err == nil {
				_, err = cmd.OutOrStdout().Write(key)
			}
			return err
		},
	}
	cmd.AddCommand(auditKeyRotate())
	return cmd
}

func auditKeyRotate() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "rotate", Short: "Make a new key for checkpoints (needs the home of the control plane, and DATABASE_URL unless pipeops up keeps PostgreSQL there)", Args: cobra.NoArgs,
		Long: `All processes sign with it from the next checkpoint on. What earlier keys have signed stays good, so key.pub keeps them: give
the new key.pub to everybody who keeps one, since with the old one nothing verifies that is signed from now on. Exports made
before verify as they did.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes {
				return usage("what is signed from then on verifies for nobody who keeps only today's key.pub: add --yes once you know who gets the new one")
			}
			return withCore(cmd.Context(), func(c *core) error {
				id, err := c.keys.Rotate(cmd.Context(), seal.TreeHeads)
				if err != nil {
					return err
				}
				if err := c.record(cmd.Context(), domain.CheckpointKeyCreated{Key: id}); err != nil {
					return fmt.Errorf("key %s was made and signs from now on, but is not on record: %w", id, err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "key %s signs from now on; pipeops audit key prints all of them\n", id)
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}

func auditErase() *cobra.Command {
	var reason string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "erase SUBJECT", Short: "Forget a person: destroy the key of what the log tells about them", Args: cobra.ExactArgs(1),
		Long: `SUBJECT is the opaque id that events show as "sub" (act_…), or <provider>/<login or e-mail>. The log stays as it is and
every proof stays valid; names, e-mails and commit messages of that person can't be read by anybody any more, and raw
deliveries that told of them are deleted. It can't be undone. Backups, and the Git repository itself, are yours to see to.`,
		Example: "  pipeops audit erase github/octocat --reason 'request 4711'",
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return usage("--reason is missing: it is recorded with the erasure (example: --reason 'request 4711')")
			}
			c, err := newClient()
			if err != nil {
				return err
			}
			var out struct{ EraseSubject json.RawMessage }
			err = c.do(cmd.Context(), `mutation($in: EraseSubjectInput!) { eraseSubject(input: $in) { subject keys deliveries backupsSince cursor } }`,
				map[string]any{"in": map[string]any{"subject": args[0], "reason": reason}}, &out)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), out.EraseSubject)
			}
			var e struct {
				Subject      string    `json:"subject"`
				Cursor       string    `json:"cursor"`
				Keys         int       `json:"keys"`
				Deliveries   int       `json:"deliveries"`
				BackupsSince time.Time `json:"backupsSince"`
			}
			if err := json.Unmarshal(out.EraseSubject, &e); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), `erased %s: %d key(s) destroyed, %d raw deliver(ies) deleted; recorded at %s
Still to see to:
  backups made from %s on hold the key, and so the data: delete them, or let them expire
  the Git repository's own commits, and exports of read models that people have made
`, e.Subject, e.Keys, e.Deliveries, e.Cursor, e.BackupsSince.Format(time.RFC3339))
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, in a line; recorded for ever, so no names (required)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was done as JSON")
	return cmd
}

func auditFork() *cobra.Command {
	var atLeast int64
	var yes bool
	cmd := &cobra.Command{
		Use: "fork", Short: "Say that a restore or failover may have lost the end of the log (raises the log epoch)", Args: cobra.NoArgs,
		Long: `Uses PIPEOPS_MIGRATE_URL (default DATABASE_URL), the login that owns the schema; without either the PostgreSQL that
pipeops up keeps in the home, which it starts and stops again. Readers whose cursor is beyond the log's
end learn that it has forked, and tree heads are signed again, under a name of the new epoch. Type it after every restore
from a backup and every failover to a standby that may not have seen all; it can't be undone, and does no harm when
nothing was lost.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig()
			if err != nil {
				return err
			}
			if !yes {
				return usage("this can't be undone: add --yes once you know that the database was restored, or has failed over")
			}
			if cfg.MigrateURL == "" && local.HasPostgres(cfg.Home) {
				stop, err := startOwnPostgres(cmd.Context(), &cfg)
				if err != nil {
					return err
				}
				defer stop()
			}
			if err := cfg.Need("DATABASE_URL"); err != nil && cfg.MigrateURL == "" {
				return &coded{exitUsage, err}
			}
			epoch, first, err := migrations.Fork(cmd.Context(), cfg.MigrateURL, atLeast)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "log epoch %d begins at position %d\n", epoch, first)
			return nil
		},
	}
	cmd.Flags().Int64Var(&atLeast, "at-least", 0, "log epoch to begin, when checkpoints or cursors kept elsewhere name a higher one than the database does")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}
