package main

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/internal/records"
)

func tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Short: "Make, list and revoke tokens for the API and the git remote",
		Long: "All of these need the home of the control plane, and DATABASE_URL unless pipeops up keeps PostgreSQL there.",
	}
	cmd.AddCommand(tokenCreate(), tokenList(), tokenRevoke())
	return cmd
}

// record puts on record what an operator has done with the database's own commands.
func (c *core) record(ctx context.Context, e domain.OperationEvent) error {
	at := now()
	_, err := c.commands.Execute(ctx, domain.RecordAccess{Event: e, At: at}, commands.Meta{CommandID: uuid.NewString(), Actor: "operator", At: at})
	return err
}

// recordToken puts on record that a token was made; again does nothing.
func (c *core) recordToken(ctx context.Context, made records.Token) error {
	_, err := c.recordOnce(ctx, domain.TokenCreated{Token: made.ID, Name: made.Name}, made.ID, made.CreatedAt)
	return err
}

// recordOnce puts on record what can happen to a token once, unless it is there.
func (c *core) recordOnce(ctx context.Context, e domain.OperationEvent, token string, at time.Time) (known bool, err error) {
	result, err := c.commands.Execute(ctx, domain.RecordAccess{Event: e, At: at},
		commands.Meta{CommandID: domain.Derive(domain.TypeOf(e), token), Actor: "operator", At: at})
	return result.Known, err
}

func tokenCreate() *cobra.Command {
	return &cobra.Command{
		Use: "create NAME", Short: "Make a token and print it once", Args: cobra.ExactArgs(1),
		Long: `NAME is recorded for ever and goes to whoever integrates with PipeOps, so say what the token is for: no names of people, no
addresses, no secrets.`,
		Example: "  pipeops token create ci",
		RunE: func(cmd *cobra.Command, args []string) error {
			if records.IsToken(args[0]) {
				return usage("that is a token itself, or looks like one: give a name, which is recorded for ever (example: ci)")
			}
			return withCore(cmd.Context(), func(c *core) error {
				secret, made, err := c.tokens.Create(cmd.Context(), args[0])
				if err == nil {
					err = c.recordToken(cmd.Context(), made)
				}
				if err != nil { // nobody gets to know it
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), secret)
				return nil
			})
		},
	}
}

func tokenList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List the valid tokens, the oldest first, without their text, which nobody has", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withCore(cmd.Context(), func(c *core) error {
				all, err := c.tokens.List(cmd.Context())
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), all)
				}
				rows := make([][]string, len(all))
				for i, t := range all {
					used := ""
					if t.LastUsed != nil {
						used = t.LastUsed.UTC().Format(time.RFC3339)
					}
					rows[i] = []string{t.ID, t.Name, t.CreatedAt.UTC().Format(time.RFC3339), used}
				}
				return table(cmd.OutOrStdout(), "ID NAME CREATED USED", rows)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON: an array of {id, name, createdAt, lastUsed (null: never)}")
	return cmd
}

func tokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke NAME|ID", Short: "End a token for ever, and what is subscribed with it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if records.IsToken(args[0]) {
				return usage("that is a token itself, and it stands in your shell's history now: give its name or id, pipeops token list names them")
			}
			return withCore(cmd.Context(), func(c *core) error {
				done, err := c.revoke(cmd.Context(), args[0])
				for _, t := range done {
					fmt.Fprintf(cmd.OutOrStdout(), "revoked %s (%s)\n", t.Name, t.ID)
				}
				return err
			})
		},
	}
}

// revoke ends a token, and then puts that on record. Cut short in between, the same again records it, by its id for certain.
func (c *core) revoke(ctx context.Context, nameOrID string) (done []records.Token, err error) {
	all, err := c.tokens.List(ctx)
	if err != nil {
		return nil, err
	}
	found, err := theToken(all, nameOrID)
	if err != nil {
		if exitCode(err) != exitRefused { // one of several is meant
			return nil, err
		}
		done, late := c.completeRecord(ctx, nameOrID)
		if late != nil || len(done) > 0 {
			err = late
		}
		return done, err
	}
	if err := c.tokens.Revoke(ctx, found.ID); err != nil {
		return nil, err
	}
	if _, err := c.recordRevoked(ctx, found, now()); err != nil {
		return nil, err
	}
	return []records.Token{found}, nil
}

func (c *core) recordRevoked(ctx context.Context, t records.Token, at time.Time) (known bool, err error) {
	known, err = c.recordOnce(ctx, domain.TokenRevoked{Token: t.ID, Name: t.Name}, t.ID, at)
	if err != nil {
		err = fmt.Errorf("token %s is revoked, but not on record, pipeops token revoke %s records it: %w", t.Name, t.ID, err)
	}
	return known, err
}

// revocations gives the ids of the tokens whose end is on record.
func (c *core) revocations(ctx context.Context) (told map[string]bool, err error) {
	told = map[string]bool{}
	for r, err := range c.store.Read(ctx, eventstore.Query{Types: []string{domain.TypeOf(domain.TokenRevoked{})}}) {
		if err != nil {
			return nil, err
		}
		e, err := r.Decode()
		if err != nil {
			return nil, err
		}
		if revoked, ok := e.(domain.TokenRevoked); ok {
			told[revoked.Token] = true
		}
	}
	return told, nil
}

// completeRecord records what is missing of the tokens of that name or id that are revoked already.
func (c *core) completeRecord(ctx context.Context, nameOrID string) (done []records.Token, err error) {
	all, err := c.tokens.Revoked(ctx)
	if err != nil {
		return nil, err
	}
	told, err := c.revocations(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range all {
		if t.ID != nameOrID && t.Name != nameOrID || told[t.ID] {
			continue
		}
		known, err := c.recordRevoked(ctx, t, *t.RevokedAt)
		if err != nil {
			return done, err
		}
		if !known {
			done = append(done, t)
		}
	}
	return done, err
}

// theToken finds the one that is meant by an id or a name, which several can have.
func theToken(all []records.Token, nameOrID string) (found records.Token, err error) {
	n := 0
	for _, t := range all {
		if t.ID == nameOrID {
			return t, nil
		}
		if t.Name == nameOrID {
			found = t
			n++
		}
	}
	switch n {
	case 0:
		return found, &coded{exitRefused, fmt.Errorf("no valid token is called %q: pipeops token list names them", nameOrID)}
	case 1:
		return found, nil
	}
	return found, usage("%d tokens are called %q: give the id, pipeops token list names them", n, nameOrID)
}
