package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
)

const statusQuery = `query($project: ID) { status(project: $project) {
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
	cmd := &cobra.Command{
		Use: "status [PROJECT]", Short: "Show what runs where, and why the last deployment failed", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient()
			if err != nil {
				return err
			}
			var project string
			if len(args) == 1 {
				project = args[0]
			}
			raw, rows, err := c.status(cmd, project)
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
	return cmd
}

func (c *client) status(cmd *cobra.Command, project string) (json.RawMessage, []statusRow, error) {
	vars := map[string]any{}
	if project != "" {
		vars["project"] = project
	}
	var out struct{ Status json.RawMessage }
	if err := c.do(cmd.Context(), statusQuery, vars, &out); err != nil {
		return nil, nil, err
	}
	var rows []statusRow
	return out.Status, rows, json.Unmarshal(out.Status, &rows)
}

func shortDigest(d string) string {
	if len(d) > 7 && d[:7] == "sha256:" {
		return d[7:]
	}
	return d
}
