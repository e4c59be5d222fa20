package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
)

const statusQuery = `query($project: ID, $first: Int! = 100, $after: String, $asOf: Moment, $all: Boolean! = false) {
  projects(first: $first, after: $after, asOf: $asOf) @include(if: $all) { name }
  status(project: $project, first: $first, after: $after, asOf: $asOf) {
  project projectName environment environmentName namespace service serviceName digest commit address activatedAt phase
  release { id build commit image configVersion } latest { id phase diagnosis ` + diagnosisFields + ` rollbackDiagnosis ` + diagnosisFields + ` }
  quarantined { release why } } }`

// statusRow is what runs of one service in one environment.
type statusRow struct {
	ProjectName     string `json:"projectName"`
	EnvironmentName string `json:"environmentName"`
	ServiceName     string `json:"serviceName"`
	Namespace       string `json:"namespace"`
	Digest          string `json:"digest"`
	Commit          string `json:"commit"`
	Address         string `json:"address"`
	Phase           string `json:"phase"`
	Latest          *struct {
		ID                string     `json:"id"`
		Diagnosis         *diagnosis `json:"diagnosis"`
		RollbackDiagnosis *diagnosis `json:"rollbackDiagnosis"`
	} `json:"latest"`
}

func statusCommand() *cobra.Command {
	var asJSON bool
	var then asOf
	cmd := &cobra.Command{
		Use: "status [PROJECT]", Short: "Show what runs where, and why the last deployment failed", Args: cobra.MaximumNArgs(1),
		Example: "  pipeops status shop\n  pipeops status --as-of 2026-11-24T03:00:00Z",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient()
			if err != nil {
				return err
			}
			var project string
			if len(args) == 1 {
				project = args[0]
			}
			raw, rows, err := c.status(cmd, project, then)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), raw)
			}
			cells := [][]string{}
			for _, r := range rows {
				cells = append(cells, []string{r.ProjectName, r.EnvironmentName, r.ServiceName, r.Phase, short(r.Commit), short(shortDigest(r.Digest)), r.Address})
			}
			if err := table(cmd.OutOrStdout(), "PROJECT ENVIRONMENT SERVICE PHASE COMMIT DIGEST ADDRESS", cells); err != nil {
				return err
			}
			for _, r := range rows {
				if r.Latest != nil && r.Latest.Diagnosis != nil {
					fmt.Fprintf(cmd.OutOrStdout(), "\n%s, %s, %s:\n%s", r.ProjectName, r.EnvironmentName, r.Latest.ID, r.Latest.Diagnosis)
				}
				if r.Latest != nil && r.Latest.RollbackDiagnosis != nil {
					fmt.Fprintf(cmd.OutOrStdout(), "\n%s", r.Latest.RollbackDiagnosis)
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print it as JSON")
	then.flag(cmd)
	return cmd
}

// asOf is a moment to answer as of: a cursor or a time; empty: now.
type asOf string //nolint:recvcheck // the flag writes it, all others read it

func (a *asOf) flag(cmd *cobra.Command) {
	cmd.Flags().StringVar((*string)(a), "as-of", "", "answer as it was answered then: a cursor or a time, for example 1.42 or 2026-11-24T03:00:00Z")
}

// in puts the moment among the variables of a query.
func (a asOf) in(vars map[string]any) map[string]any {
	if a != "" {
		vars["asOf"] = string(a)
	}
	return vars
}

// tell says which place in the log a moment was, for who asked for one.
func (a asOf) tell(cmd *cobra.Command, cursor string) {
	if a != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "as of %s\n", cursor)
	}
}

// status asks for one project's, or for that of all, page after page, as of one moment.
func (c *client) status(cmd *cobra.Command, project string, then asOf) (all []json.RawMessage, rows []statusRow, err error) {
	vars := map[string]any{"first": pageOfProjects, "all": project == ""}
	if project != "" {
		vars["project"] = project
	}
	asked := then
	all = []json.RawMessage{}
	for {
		var out struct {
			Projects []struct{ Name string }
			Status   []json.RawMessage
		}
		at, err := c.ask(cmd.Context(), statusQuery, then.in(vars), &out)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, out.Status...)
		if len(out.Projects) < pageOfProjects {
			asked.tell(cmd, at["status"])
			break
		}
		vars["after"], then = out.Projects[pageOfProjects-1].Name, asOf(at["status"])
	}
	rows = make([]statusRow, len(all))
	for i, text := range all {
		if err := json.Unmarshal(text, &rows[i]); err != nil {
			return nil, nil, err
		}
	}
	return all, rows, nil
}

func shortDigest(d string) string {
	if len(d) > 7 && d[:7] == "sha256:" {
		return d[7:]
	}
	return d
}
