package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/client"
)

func (c *cli) clusterCommand() *cobra.Command {
	group := &cobra.Command{Use: "cluster COMMAND", Short: "Make a cluster; look at it, operate and repair it"}
	group.AddCommand(c.clusterInitCommand(), c.clusterCertifyCommand(), c.clusterStatusCommand(), c.membersCommand(), c.transferCommand(), c.removeCommand(), c.replicasCommand(),
		c.snapshotCommand(), c.recoverCommand(), c.maintenanceCommand())
	return group
}

const clusterStatusHelp = `Show whether the cluster is healthy, how many failures it tolerates, who leads, and
what to do if something is off. One node answers for all; if it hears no leader, the
others of --address are asked as well.

The exit code is 0 if the cluster is healthy, and 5 if nothing can be decided now.`

func (c *cli) clusterStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the cluster's health, its nodes and the store", Long: clusterStatusHelp, Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.clusterStatus(cmd.Context()) },
	}
}

func (c *cli) clusterStatus(ctx context.Context) error {
	s, err := c.clusterSeen(ctx)
	if err != nil {
		return err
	}
	if err := c.print(answer{
		value: s,
		names: nodeNames(s),
		table: func(b *strings.Builder, color bool) {
			c.clusterSheet(s).write(b, color)
			b.WriteByte('\n')
			t := newTable("NODE", "ROLE", "HEALTHY", "BEHIND", "CLOCK", "WORKERS", "API", "VERSION", "LAST SEEN")
			for i := range s.Nodes {
				n := &s.Nodes[i]
				t.add(n.Name, n.Role, healthCell(n.Healthy), behindWords(n), clockWords(n), strconv.Itoa(n.Streams), n.API, n.Version, c.relative(n.LastSeenAt))
			}
			t.write(b, color)
		},
	}); err != nil {
		return err
	}
	if s.Quorum.Voters > 0 && !s.Quorum.Healthy {
		return &exitError{code: exitUnavailable} // all was said
	}
	return nil
}

// clusterSeen is the cluster as a node sees it. One that hears no leader may be the only one: it was cut off, or removed and
// has not noticed. So the others are asked too, and the first that knows a leader is believed.
func (c *cli) clusterSeen(ctx context.Context) (*client.ClusterStatus, error) {
	seen, err := c.clusterSeenFrom(ctx, c.addresses)
	if err != nil || seen.Leader != "" || len(c.addresses) < 2 {
		return seen, err
	}
	for _, a := range c.addresses {
		asking, cancel := context.WithTimeout(ctx, secondOpinion)
		other, err := c.clusterSeenFrom(asking, []string{a})
		cancel()
		if err == nil && other.Leader != "" {
			return other, nil
		}
	}
	return seen, nil
}

// secondOpinion is how long each of the other nodes may take.
const secondOpinion = 2 * time.Second

func (c *cli) clusterSeenFrom(ctx context.Context, addresses []string) (*client.ClusterStatus, error) {
	defer func(all []string) { c.addresses = all }(c.addresses)
	c.addresses = addresses
	ctx, k, err := c.client(ctx)
	if err != nil {
		return nil, err
	}
	s, err := k.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(s.Nodes, func(a, b client.NodeStatus) int { return strings.Compare(a.Name, b.Name) })
	return s, nil
}

func (c *cli) clusterSheet(s *client.ClusterStatus) *sheet {
	w := new(sheet)
	w.add("Cluster", s.ID)
	if q := s.Quorum; q.Voters > 0 {
		health := cell{q.Summary, "32"}
		switch {
		case !q.Healthy:
			health.color = "31"
		case len(q.Advice) > 0:
			health.color = "33"
		}
		w.add("Health", health)
		for _, a := range q.Advice {
			w.add("To do", cell{a, "33"})
		}
	}
	leader := cell{"none at the moment", "31"}
	if s.Leader != "" {
		leader = cell{text: s.Leader + ", epoch " + strconv.FormatUint(uint64(s.Epoch), 10)}
	}
	if s.Term > 0 {
		leader.text += fmt.Sprintf(", term %d, %d entries committed", s.Term, s.CommitIndex)
	}
	w.add("Leader", leader)
	store := cell{text: s.Store}
	if s.Outage {
		store = cell{s.Store + ", out of reach", "31"}
		if s.OutageReason != "" {
			store.text += ": " + s.OutageReason
		}
	}
	w.add("Store", store)
	if s.Outage {
		w.add("To do", cell{"see that this node reaches its Postgres: until then it answers requests about jobs and runs with 503; what runs goes on", "33"})
	}
	if s.Queue != "" && s.Queue != "memory" {
		queue := cell{text: s.Queue}
		if s.QueueOutage {
			queue = cell{s.Queue + ", out of reach; the leader's memory stands in for it", "33"}
		}
		w.add("Queue", queue)
	}
	if s.Maintenance {
		w.add("Maintenance", cell{"on: no ticks, no new attempts", "33"})
	}
	if u := s.Usage; u != nil {
		w.add("Runs", fmt.Sprintf("%d kept, %d of them still to end", u.Runs, u.LiveRuns))
		if u.MaxBytes > 0 {
			w.add("Space", fmt.Sprintf("%s of %s", bytesWords(u.Bytes), bytesWords(u.MaxBytes)))
		}
	}
	w.add("Answered by", s.Node+", version "+s.Version)
	return w
}

func nodeNames(s *client.ClusterStatus) func() []string {
	return func() (names []string) {
		for _, n := range s.Nodes {
			names = append(names, n.Name)
		}
		return names
	}
}

func healthCell(healthy bool) cell {
	if healthy {
		return cell{"yes", "32"}
	}
	return cell{"no", "31"}
}

func behindWords(n *client.NodeStatus) string {
	if !n.Healthy && n.AppliedIndex == 0 {
		return ""
	}
	return strconv.FormatUint(n.Behind, 10)
}

func clockWords(n *client.NodeStatus) string {
	if !n.Healthy {
		return ""
	}
	return fmt.Sprintf("%+dms", n.ClockOffsetMS)
}

func (c *cli) membersCommand() *cobra.Command {
	return &cobra.Command{
		Use: "members", Short: "List the nodes, with all their addresses", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.clusterSeen(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(answer{
				value: listOf(s.Nodes),
				names: nodeNames(s),
				table: func(b *strings.Builder, color bool) {
					t := newTable("NODE", "ROLE", "HEALTHY", "API", "RAFT", "ID", "VERSION", "LAST SEEN")
					for _, n := range s.Nodes {
						t.add(n.Name, n.Role, healthCell(n.Healthy), n.API, n.Raft, n.ID, n.Version, c.relative(n.LastSeenAt))
					}
					t.write(b, color)
				},
			})
		},
	}
}

func bytesWords(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0") + " " + units[i]
}

func (c *cli) maintenanceCommand() *cobra.Command {
	return &cobra.Command{
		Use: "maintenance on|off", Short: "Start or end maintenance", Args: takes("on|off"), ValidArgs: []string{"on", "off"},
		Long: "In maintenance no job ticks and no attempt starts; what runs goes on, and what is submitted is kept.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] != "on" && args[0] != "off" {
				return usageErrorf("%q is neither on nor off", clip(args[0], 64))
			}
			ctx, k, err := c.client(cmd.Context())
			if err != nil {
				return err
			}
			if err := k.Maintain(ctx, args[0] == "on"); err != nil {
				return err
			}
			return c.print(answer{
				value: map[string]bool{"maintenance": args[0] == "on"},
				names: func() []string { return args },
				table: func(b *strings.Builder, _ bool) { fmt.Fprintf(b, "maintenance %s\n", args[0]) },
			})
		},
	}
}
