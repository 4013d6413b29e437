package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

func (c *cli) workerListCommand() *cobra.Command {
	var labels []string
	var state string
	cmd := &cobra.Command{
		Use: "list [flags]", Aliases: []string{"ls"}, Short: "List workers", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.workerList(cmd.Context(), state, labels) },
	}
	cmd.Flags().StringVar(&state, "state", "", "only in this `STATE`: ready, cordoned, draining or gone")
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "only with the label `KEY=VALUE`; can be repeated, all must match")
	ofOneCall(cmd.Flags(), "state", "label")
	return cmd
}

func (c *cli) workerList(ctx context.Context, state string, pairs []string) error {
	labels, err := parseLabels("label", pairs)
	if err != nil {
		return err
	}
	switch job.WorkerState(state) {
	case "", job.WorkerReady, job.WorkerCordoned, job.WorkerDraining, job.WorkerGone:
	default:
		return usageErrorf("--state: %q is not a state of a worker; use ready, cordoned, draining or gone", clip(state, 64))
	}
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	workers, _, err := collect(k.Workers(ctx, client.WorkerFilter{State: job.WorkerState(state), Labels: labels}), 0)
	if err != nil {
		return err
	}
	return c.print(answer{
		value: listOf(workers),
		names: func() (names []string) {
			for _, w := range workers {
				names = append(names, w.Name)
			}
			return names
		},
		table: func(b *strings.Builder, color bool) {
			t := newTable("NAME", "STATE", "SLOTS", "CAN RUN", "NODE", "CONNECTED", "VERSION", "LABELS")
			for _, w := range workers {
				t.add(w.Name, workerStateCell(w.State), slotWords(&w), canRun(&w), w.Node, c.relative(w.ConnectedAt), w.Version, labelWords(w.Labels))
			}
			t.write(b, color)
		},
		note: when(len(workers) == 0, "there are no such workers"),
	})
}

func slotWords(w *job.Worker) string { return fmt.Sprintf("%d of %d used", w.SlotsUsed, w.Slots) }

func canRun(w *job.Worker) string {
	words := slices.Clone(w.Executors)
	if len(w.Handlers) > 0 {
		words = slices.DeleteFunc(words, func(s string) bool { return s == "handler" })
		words = append(words, "handlers: "+clip(strings.Join(w.Handlers, " "), 48))
	}
	return strings.Join(words, ", ")
}

func workerStateCell(s job.WorkerState) cell {
	colors := map[job.WorkerState]string{job.WorkerReady: "32", job.WorkerCordoned: "33", job.WorkerDraining: "33", job.WorkerGone: "31"}
	return cell{string(s), colors[s]}
}

func (c *cli) workerShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show a worker", Args: takes("NAME"), ValidArgsFunction: c.completeWorkers,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkJobName(args[0]); err != nil {
				return err
			}
			ctx, k, err := c.client(cmd.Context())
			if err != nil {
				return err
			}
			w, err := k.Worker(ctx, args[0])
			if err != nil {
				return err
			}
			return c.print(answer{
				value: w,
				names: func() []string { return []string{w.Name} },
				table: func(b *strings.Builder, color bool) {
					var s sheet
					s.add("Worker", w.Name)
					s.add("State", workerStateCell(w.State))
					s.add("Slots", slotWords(w))
					s.add("Can run", strings.Join(w.Executors, ", "))
					s.add("Handlers", strings.Join(w.Handlers, ", "))
					s.add("Labels", labelWords(w.Labels))
					s.add("Node", w.Node)
					s.add("Address", w.Address)
					s.add("Version", w.Version)
					s.add("Connected", c.moment(w.ConnectedAt))
					s.add("Last seen", c.moment(w.LastSeenAt))
					s.write(b, color)
				},
			})
		},
	}
}

// workerFlag is a command that changes what workers may do.
func (c *cli) workerFlag(verb, short, done string, do func(*client.Client, context.Context, string) (*job.Worker, error)) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME...", Short: short, Args: takes("NAME..."), ValidArgsFunction: c.completeWorkers,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, k, err := c.client(cmd.Context())
			if err != nil {
				return err
			}
			return changed(ctx, c, args, func(name string) (*job.Worker, error) {
				if err := checkJobName(name); err != nil {
					return nil, err
				}
				return do(k, ctx, name)
			}, func(w *job.Worker) string { return w.Name }, func(w *job.Worker) string { return "worker " + w.Name + " " + done })
		},
	}
}
