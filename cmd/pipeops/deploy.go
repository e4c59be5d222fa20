package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pipeops/pipeops/domain"
)

// deployment flags that deploy and rollback share.
type deployFlags struct {
	environment, service string
	lift, wait           bool
}

func (d *deployFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&d.environment, "environment", "", "where (default: the only one)")
	f.StringVar(&d.service, "service", "", "what (default: the only one)")
	f.BoolVar(&d.lift, "lift-quarantine", false, "deploy the release although it failed before")
	f.BoolVar(&d.wait, "wait", false, "wait for the verdict; exit code 4 when it fails")
}

func (d *deployFlags) input(project string) map[string]any {
	in := map[string]any{"project": project, "liftQuarantine": d.lift}
	if d.environment != "" {
		in["environment"] = d.environment
	}
	if d.service != "" {
		in["service"] = d.service
	}
	return in
}

func deployCommand() *cobra.Command {
	var d deployFlags
	var build, commit string
	cmd := &cobra.Command{
		Use: "deploy PROJECT", Short: "Deploy a built image with today's configuration", Args: cobra.ExactArgs(1),
		Example: "  pipeops deploy shop --commit 1a2b3c4d --wait",
		RunE: func(cmd *cobra.Command, args []string) error {
			in := d.input(args[0])
			if build != "" {
				in["build"] = build
			}
			if commit != "" {
				in["commit"] = commit
			}
			return deployWith(cmd, "deploy", "DeployInput", in, d.wait)
		},
	}
	d.add(cmd)
	cmd.Flags().StringVar(&build, "build", "", "id of the build (default: the newest succeeded one)")
	cmd.Flags().StringVar(&commit, "commit", "", "commit whose build is deployed")
	return cmd
}

func rollbackCommand() *cobra.Command {
	var d deployFlags
	var to string
	cmd := &cobra.Command{
		Use: "rollback PROJECT", Short: "Run an earlier release again, with the configuration that it ran with", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := d.input(args[0])
			if to != "" {
				in["to"] = to
			}
			return deployWith(cmd, "rollback", "RollbackInput", in, d.wait)
		},
	}
	d.add(cmd)
	cmd.Flags().StringVar(&to, "to", "", "id of the release (default: the one before the active one)")
	return cmd
}

func deployWith(cmd *cobra.Command, mutation, input string, in map[string]any, wait bool) error {
	c, err := newClient()
	if err != nil {
		return err
	}
	var out map[string]struct {
		Deployment *struct{ ID string }
		Cursor     string
	}
	query := fmt.Sprintf(`mutation($in: %s!) { %s(input: $in) { deployment { id } cursor } }`, input, mutation)
	if err := c.do(cmd.Context(), query, map[string]any{"in": in}, &out); err != nil {
		return err
	}
	made := out[mutation]
	if made.Deployment == nil {
		return &coded{exitFailure, fmt.Errorf("%s was recorded at %s, and can't be shown yet: pipeops status %v", mutation, made.Cursor, in["project"])}
	}
	fmt.Fprintln(cmd.OutOrStdout(), made.Deployment.ID)
	if !wait {
		return nil
	}
	return c.verdict(cmd, made.Deployment.ID)
}

// verdict follows a deployment to its end.
func (c *client) verdict(cmd *cobra.Command, id string) error {
	progress := printer{w: cmd.ErrOrStderr()}
	final := map[string]error{
		"DeploymentSucceeded": nil, "DeploymentSuperseded": fmt.Errorf("%s was superseded by a newer deployment", id),
		"RolledBack": fmt.Errorf("%s failed and was rolled back", id), "RollbackFailed": fmt.Errorf("%s failed, and so did its roll-back", id),
	}
	verdict := fmt.Errorf("the wait for %s was cut short", id)
	err := c.follow(cmd.Context(), "", map[string]any{"stream": "deployment/" + id}, func(l domain.Line) error {
		if err := progress.print(l); err != nil {
			return err
		}
		if v, over := final[l.Type]; over {
			verdict = v
			return errEnough
		}
		if l.Type == "DeploymentFailed" && !c.rollsBack(cmd.Context(), id, l.Cursor) {
			verdict = fmt.Errorf("%s failed, and nothing served before it", id)
			return errEnough
		}
		return nil
	})
	if err != nil {
		return err
	}
	if context.Cause(cmd.Context()) != nil {
		return verdict
	}
	if verdict != nil {
		return &coded{exitVerdict, fmt.Errorf("%w; see: pipeops status", verdict)}
	}
	return nil
}

// rollsBack says whether a failed deployment goes on with a roll-back.
func (c *client) rollsBack(ctx context.Context, id, cursor string) bool {
	var out struct {
		Deployment *struct{ Previous *struct{ ID string } }
	}
	err := c.do(ctx, `query($id: ID!, $at: Cursor) { deployment(id: $id, atLeast: $at) { previous { id } } }`, map[string]any{"id": id, "at": cursor}, &out)
	return err == nil && out.Deployment != nil && out.Deployment.Previous != nil
}
