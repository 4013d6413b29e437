package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

// Completion of names asks the cluster. Whoever presses TAB does not want to wait, nor to read errors: what cannot be had
// quickly is not offered.

const completeWithin = 2 * time.Second

type completer = func(cmd *cobra.Command, args []string, start string) ([]cobra.Completion, cobra.ShellCompDirective)

func (c *cli) complete(cmd *cobra.Command, find func(ctx context.Context, k *client.Client) []cobra.Completion) ([]cobra.Completion, cobra.ShellCompDirective) {
	if c.settle(cmd) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completeWithin)
	defer cancel()
	ctx, k, err := c.client(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return find(ctx, k), cobra.ShellCompDirectiveNoFileComp
}

func (c *cli) completeJobs(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.complete(cmd, func(ctx context.Context, k *client.Client) (out []cobra.Completion) {
		jobs, _, _ := collect(k.Jobs(ctx, client.JobFilter{}), 1000)
		for _, j := range jobs {
			out = append(out, j.Name)
		}
		return out
	})
}

func (c *cli) completeRuns(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.complete(cmd, func(ctx context.Context, k *client.Client) (out []cobra.Completion) {
		runs, _, _ := collect(k.Runs(ctx, client.RunFilter{}), 50)
		for _, r := range runs {
			out = append(out, cobra.CompletionWithDesc(r.ID.String(), clean(r.Job+" "+r.State.String())))
		}
		return out
	})
}

func (c *cli) completeWorkers(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.complete(cmd, func(ctx context.Context, k *client.Client) (out []cobra.Completion) {
		workers, _, _ := collect(k.Workers(ctx, client.WorkerFilter{}), 1000)
		for _, w := range workers {
			out = append(out, w.Name)
		}
		return out
	})
}

func (c *cli) completeNodes(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.complete(cmd, func(ctx context.Context, k *client.Client) (out []cobra.Completion) {
		if s, err := k.Cluster(ctx); err == nil {
			for _, n := range s.Nodes {
				out = append(out, cobra.CompletionWithDesc(n.Name, n.Role))
			}
		}
		return out
	})
}

func (c *cli) completeCredentials(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.complete(cmd, func(ctx context.Context, k *client.Client) (out []cobra.Completion) {
		all, _, _ := collect(k.Credentials(ctx), 1000)
		for _, x := range all {
			out = append(out, cobra.CompletionWithDesc(x.Name, string(x.Role)))
		}
		return out
	})
}

// completeTasks offers the names of the tasks of the run that another flag names.
func (c *cli) completeTasks(root *string) completer {
	return func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return c.complete(cmd, func(ctx context.Context, k *client.Client) (out []cobra.Completion) {
			id, err := job.ParseRunID(*root)
			if err != nil {
				return nil
			}
			r, err := k.RunWithTasks(ctx, id)
			if err != nil {
				return nil
			}
			for i := range r.Tasks {
				out = append(out, cobra.CompletionWithDesc(r.Tasks[i].Name, r.Tasks[i].State.String()))
			}
			return out
		})
	}
}

// completeFlag says what to offer for the value of a flag.
func (c *cli) completeFlag(cmd *cobra.Command, flag string, with completer) {
	if err := cmd.RegisterFlagCompletionFunc(flag, with); err != nil {
		panic(err) // there is no such flag
	}
}

var _ completer = (*cli)(nil).completeJobs
