package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

func (c *cli) clusterCommand() *cobra.Command {
	group := &cobra.Command{Use: "cluster COMMAND", Short: "Look at the cluster, start and end maintenance"}
	group.AddCommand(c.clusterInitCommand(), c.clusterCertifyCommand(), c.clusterStatusCommand(), c.maintenanceCommand())
	return group
}

func (c *cli) clusterStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the nodes, the leader and the store", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.clusterStatus(cmd.Context()) },
	}
}

func (c *cli) clusterStatus(ctx context.Context) error {
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	s, err := k.Cluster(ctx)
	if err != nil {
		return err
	}
	return c.print(answer{
		value: s,
		names: func() (names []string) {
			for _, n := range s.Nodes {
				names = append(names, n.Name)
			}
			return names
		},
		table: func(b *strings.Builder, color bool) {
			var w sheet
			w.add("Cluster", s.ID)
			leader := cell{"none at the moment", "31"}
			if s.Leader != "" {
				leader = cell{text: s.Leader + ", epoch " + strconv.FormatUint(uint64(s.Epoch), 10)}
			}
			w.add("Leader", leader)
			store := cell{text: s.Store}
			if s.Outage {
				store = cell{s.Store + ", out of reach", "31"}
			}
			w.add("Store", store)
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
			w.write(b, color)
			b.WriteByte('\n')
			t := newTable("NODE", "ROLE", "HEALTHY", "API", "VERSION", "LAST SEEN")
			for _, n := range s.Nodes {
				healthy := cell{"yes", "32"}
				if !n.Healthy {
					healthy = cell{"no", "31"}
				}
				t.add(n.Name, n.Role, healthy, n.API, n.Version, c.relative(n.LastSeenAt))
			}
			t.write(b, color)
		},
	})
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
