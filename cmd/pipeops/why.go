package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/pipeops/pipeops/domain"
)

const stepFields = `{ cursor event type at subject text who actor because diagnosis ` + diagnosisFields + ` }`

const whyQuery = `query($project: ID, $environment: ID!, $service: ID, $asOf: Moment) {
  why(project: $project, environment: $environment, service: $service, asOf: $asOf) {
    project projectName environment environmentName service serviceName asOf release { id build commit image configVersion } since
    steps ` + stepFields + ` beside { subject commit outcome text by steps ` + stepFields + ` } more } }`

func whyCommand() *cobra.Command {
	var asJSON bool
	var service string
	var then asOf
	cmd := &cobra.Command{
		Use: "why PROJECT [ENVIRONMENT]", Short: "Tell why what runs runs, back to the push and the person, and why the rest doesn't", Args: cobra.RangeArgs(1, 2),
		Example: "  pipeops why shop\n  pipeops why shop production --as-of 2026-11-24T03:00:00Z",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient()
			if err != nil {
				return err
			}
			wanted := whySelection{project: args[0], service: service, then: then}
			if len(args) == 2 {
				wanted.environment = args[1]
			}
			answers, err := c.why(cmd, wanted)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), answers)
			}
			for i, raw := range answers {
				var w domain.Why
				if err := json.Unmarshal(raw, &w); err != nil {
					return err
				}
				if i > 0 {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				fmt.Fprint(cmd.OutOrStdout(), w.Text(time.Local))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print it as JSON: a list, one for each environment and service")
	cmd.Flags().StringVar(&service, "service", "", "only of this service")
	then.flag(cmd)
	return cmd
}

// whySelection says what to explain; an empty environment or service: each.
type whySelection struct {
	project, environment, service string
	then                          asOf
}

// why explains each environment and service that is wanted, all as of one moment.
func (c *client) why(cmd *cobra.Command, wanted whySelection) ([]json.RawMessage, error) {
	var places struct {
		Status []struct{ Environment, EnvironmentName, Service, ServiceName string }
	}
	at, err := c.ask(cmd.Context(), `query($project: ID, $asOf: Moment) {
		status(project: $project, asOf: $asOf) { environment environmentName service serviceName } }`,
		wanted.then.in(map[string]any{"project": wanted.project}), &places)
	if err != nil {
		return nil, err
	}
	answers := []json.RawMessage{}
	for _, p := range places.Status {
		if !named(wanted.environment, p.EnvironmentName, p.Environment) || !named(wanted.service, p.ServiceName, p.Service) {
			continue
		}
		var out struct{ Why json.RawMessage }
		vars := map[string]any{"project": wanted.project, "environment": p.Environment, "service": p.Service, "asOf": at["status"]}
		if err := c.do(cmd.Context(), whyQuery, vars, &out); err != nil {
			return nil, err
		}
		answers = append(answers, out.Why)
	}
	if len(answers) == 0 {
		return nil, &coded{exitRefused, fmt.Errorf("project %s has no such environment or service; see: pipeops project show %[1]s", wanted.project)}
	}
	return answers, nil
}

// named says whether a name or an id is wanted; nothing wanted is anything.
func named(wanted, name, id string) bool { return wanted == "" || wanted == name || wanted == id }
