package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

const transferHelp = `Let another node lead: the one that is named, or the one that is furthest. Do it
before the leader is stopped for long, and nothing waits for an election.`

func (c *cli) transferCommand() *cobra.Command {
	return &cobra.Command{
		Use: "transfer [NODE]", Short: "Let another node lead", Long: transferHelp, Args: takesAtMost("NODE"), ValidArgsFunction: c.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			to := ""
			if len(args) > 0 {
				to = args[0]
				if err := job.CheckName("NODE", to); err != nil {
					return err
				}
			}
			return c.transfer(cmd.Context(), to)
		},
	}
}

func (c *cli) transfer(ctx context.Context, to string) error {
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	if err := k.Transfer(ctx, to); err != nil {
		return err
	}
	leader, err := c.awaitLeader(ctx, k, to)
	if err != nil {
		return err
	}
	return c.print(answer{
		value: map[string]string{"leader": leader},
		names: func() []string { return []string{leader} },
		table: func(b *strings.Builder, _ bool) {
			if leader == "" {
				b.WriteString("leadership was handed over\n")
				return
			}
			b.WriteString(clean(leader) + " leads\n")
		},
	})
}

// awaitLeader answers who leads, once the node that is asked has heard of it, or "" if it does not for a while.
func (c *cli) awaitLeader(ctx context.Context, k *client.Client, want string) (string, error) {
	for try := 0; ; try++ {
		s, err := k.Cluster(ctx)
		if err != nil {
			return "", err
		}
		if s.Leader != "" && (want == "" || s.Leader == want) {
			return s.Leader, nil
		}
		if try == 50 {
			return "", nil
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

const removeHelp = `Take a node out of the cluster for good. Its process, if it still runs, ends; its data
directory is of no further use. Its certificate stays good until it expires: destroy
it with the machine.

To replace a machine nothing need be removed: start a server of the same name with an
empty data directory, and it takes the old one's place.

It is refused if the nodes that remain could not decide without those that do not
answer; --force does it all the same.`

func (c *cli) removeCommand() *cobra.Command {
	var force, yes bool
	cmd := &cobra.Command{
		Use: "remove NODE [flags]", Short: "Take a node out of the cluster", Long: removeHelp, Args: takes("NODE"), ValidArgsFunction: c.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := job.CheckName("NODE", args[0]); err != nil {
				return err
			}
			ctx, k, err := c.client(cmd.Context())
			if err != nil {
				return err
			}
			if err := c.confirm(yes, "yes", "Node %s is removed from the cluster for good; its data directory is of no use afterwards.", args[0]); err != nil {
				return err
			}
			if err := k.RemoveNode(ctx, args[0], force); err != nil {
				return err
			}
			return c.print(answer{
				value: map[string]string{"removed": args[0]},
				names: func() []string { return args },
				table: func(b *strings.Builder, _ bool) { fmt.Fprintf(b, "node %s removed\n", args[0]) },
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "even if the nodes that remain cannot decide without those that do not answer")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	ofOneCall(cmd.Flags(), "force", "yes")
	return cmd
}

const replicasHelp = `Compare the nodes' replicated state, each by a digest of all of it at the same index
of the log. They are equal, or Muster has a defect: please report it.

The exit code is 0 if all are equal, 1 if they are not, and 5 if a node did not answer.`

func (c *cli) replicasCommand() *cobra.Command {
	return &cobra.Command{
		Use: "verify", Short: "Compare the nodes' states", Long: replicasHelp, Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.replicas(cmd.Context()) },
	}
}

func (c *cli) replicas(ctx context.Context) error {
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	v, err := k.VerifyReplicas(ctx)
	if err != nil {
		return err
	}
	verdict := cell{fmt.Sprintf("all %d states are equal at index %d", len(v.Replicas), v.Index), "32"}
	switch {
	case !v.Equal:
		verdict = cell{fmt.Sprintf("the states DIFFER at index %d; keep the data directories and report it", v.Index), "31"}
	case !v.Complete:
		verdict = cell{fmt.Sprintf("the states that could be had are equal at index %d, but not every node answered", v.Index), "33"}
	}
	if err := c.print(answer{
		value: v,
		names: func() (names []string) {
			for _, r := range v.Replicas {
				names = append(names, r.Name)
			}
			return names
		},
		table: func(b *strings.Builder, color bool) {
			t := newTable("NODE", "DIGEST")
			for _, r := range v.Replicas {
				if r.Error != "" {
					t.add(r.Name, cell{r.Error, "31"})
					continue
				}
				t.add(r.Name, r.Digest)
			}
			t.write(b, color)
			b.WriteByte('\n')
			var s sheet
			s.add("Result", verdict)
			s.write(b, color)
		},
	}); err != nil {
		return err
	}
	switch {
	case !v.Equal:
		return &exitError{code: exitFailed}
	case !v.Complete:
		return &exitError{code: exitUnavailable}
	}
	return nil
}
