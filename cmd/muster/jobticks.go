package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/timetable"
)

// The ticks of a job: those to come, those that were, and whether all were dealt with.

func (c *cli) jobNextCommand() *cobra.Command {
	var n int
	cmd := &cobra.Command{
		Use: "next NAME [flags]", Short: "Show when a job ticks next", Args: takes("NAME"), ValidArgsFunction: c.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error { return c.jobNext(cmd.Context(), args[0], n) },
	}
	cmd.Flags().IntVar(&n, "count", 10, "`N` ticks, at most 1000")
	return cmd
}

func (c *cli) jobNext(ctx context.Context, name string, n int) error {
	if err := checkJobName(name); err != nil {
		return err
	}
	if n < 1 || n > 1000 {
		return usageErrorf("--count: %d is out of range; use 1 to 1000", n)
	}
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	next, err := k.NextTicks(ctx, name, n)
	if err != nil {
		return err
	}
	note := ""
	switch {
	case next.Cron == "":
		note = fmt.Sprintf("the job %s has no schedule", name)
	case len(next.Items) == 0:
		note = fmt.Sprintf("the schedule of %s has ended", name)
	case next.Paused:
		note = fmt.Sprintf("the job %s is paused: these ticks will not run unless it is resumed", name)
	}
	return c.print(answer{
		value: next,
		names: func() (names []string) {
			for _, at := range next.Items {
				names = append(names, at.String())
			}
			return names
		},
		table: func(b *strings.Builder, _ bool) {
			for _, at := range next.Items {
				b.WriteString(c.tickWords(&job.Schedule{TimeZone: next.TimeZone}, at) + "\n")
			}
		},
		note: note,
	})
}

// rangeFlags bound a time that is past.
type rangeFlags struct{ since, until string }

func (f *rangeFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.since, "since", "", "from this `TIME` on (see muster help times)")
	cmd.Flags().StringVar(&f.until, "until", "", "before this `TIME`")
	ofOneCall(cmd.Flags(), "since", "until")
}

func (f *rangeFlags) parse(c *cli) (since, until time.Time, err error) {
	from, err := c.parseTime("since", f.since, false)
	if err != nil {
		return since, until, err
	}
	to, err := c.parseTime("until", f.until, false)
	if err != nil {
		return since, until, err
	}
	if from != 0 && to != 0 && to <= from {
		return since, until, usageErrorf("--until: it does not lie after --since")
	}
	return from.Time(), to.Time(), nil
}

func (c *cli) jobTicksCommand() *cobra.Command {
	var f rangeFlags
	var limit int
	cmd := &cobra.Command{
		Use: "ticks NAME [flags]", Short: "Show what became of past ticks, newest first", Args: takes("NAME"), ValidArgsFunction: c.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error { return c.jobTicks(cmd.Context(), args[0], f, limit) },
	}
	f.add(cmd)
	cmd.Flags().IntVar(&limit, "limit", 50, "at most `N` entries; 0 for all")
	return cmd
}

func (c *cli) jobTicks(ctx context.Context, name string, f rangeFlags, limit int) error {
	if err := checkLimit(limit); err != nil {
		return err
	}
	if err := checkJobName(name); err != nil {
		return err
	}
	since, until, err := f.parse(c)
	if err != nil {
		return err
	}
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	ticks, more, err := collect(k.Ticks(ctx, name, since, until), limit)
	if err != nil {
		return err
	}
	defer c.hintMore(more, limit)
	rows := make([]tickRow, len(ticks))
	for i, t := range ticks {
		rows[i] = tickRow(t)
	}
	return c.print(answer{
		value: listOf(rows),
		names: func() (names []string) {
			for _, t := range ticks {
				names = append(names, t.ScheduledAt.String())
			}
			return names
		},
		table: func(b *strings.Builder, color bool) {
			t := newTable("SCHEDULED AT", "TICKS", "DISPOSITION", "REASON", "DECIDED", "VERSION", "RUN")
			for i := range ticks {
				k := &ticks[i]
				run, late := "", ""
				if !k.RunID.IsZero() {
					run = k.RunID.String()
				}
				if k.DecidedAt > 0 {
					late = "+" + span(max(0, k.DecidedAt.Sub(k.ScheduledAt)))
				}
				t.add(c.moment(k.ScheduledAt), strconv.Itoa(k.Ticks()), k.Disposition.String(), reasonWord(k.Reason), late, strconv.FormatUint(k.Version, 10), run)
			}
			t.write(b, color)
		},
		note: when(len(ticks) == 0, "the job %s has not ticked in this time", name),
	})
}

// tickRow is a row of the ledger as the API has it: most have no run, and then say nothing of one.
type tickRow struct {
	job.Tick
	RunID job.RunID `json:"run_id,omitzero"`
}

func (c *cli) jobVerifyCommand() *cobra.Command {
	var f rangeFlags
	cmd := &cobra.Command{
		Use: "verify NAME [flags]", Short: "Check that every tick was dealt with exactly once", Args: takes("NAME"), ValidArgsFunction: c.completeJobs,
		Long: "Compare the ticks that the job's timetable expected with those that the ledger has. Each must be there once.\n" +
			"Without --since and --until, the last 24 hours. The exit code is 1 if something is amiss.",
		RunE: func(cmd *cobra.Command, args []string) error { return c.jobVerify(cmd.Context(), args[0], f) },
	}
	f.add(cmd)
	return cmd
}

func (c *cli) jobVerify(ctx context.Context, name string, f rangeFlags) error {
	if err := checkJobName(name); err != nil {
		return err
	}
	since, until, err := f.parse(c)
	if err != nil {
		return err
	}
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	v, err := k.Verify(ctx, name, since, until)
	if err != nil {
		return err
	}
	if err := c.print(answer{
		value: v,
		names: func() []string { return []string{name} },
		table: func(b *strings.Builder, color bool) {
			result := cell{"every tick has exactly one disposition", "32"}
			if !v.OK {
				result = cell{"something is amiss", "31"}
			}
			var s sheet
			s.add("From", c.moment(v.Since))
			s.add("To", c.moment(v.Until))
			s.add("Expected", count(v.Expected, "tick"))
			s.add("Decided", count(v.Decided, "tick"))
			s.add("Result", result)
			for _, l := range []struct {
				name  string
				times []job.Instant
			}{{"Missing", v.Gaps}, {"Decided twice", v.Doubles}, {"Not expected", v.Strays}} {
				s.add(l.name, timesWords(l.times))
			}
			s.write(b, color)
		},
	}); err != nil {
		return err
	}
	if !v.OK {
		return &exitError{code: exitFailed}
	}
	return nil
}

// timesWords lists some times, exactly.
func timesWords(times []job.Instant) string {
	const most = 10
	var words []string
	for _, at := range times[:min(len(times), most)] {
		words = append(words, at.String())
	}
	if len(times) > most {
		words = append(words, fmt.Sprintf("and %d more", len(times)-most))
	}
	return strings.Join(words, ", ")
}

func (c *cli) jobBackfillCommand() *cobra.Command {
	var f rangeFlags
	var id string
	var dry bool
	cmd := &cobra.Command{
		Use: "backfill NAME --since TIME [flags]", Short: "Run the ticks of a time that is past", Args: takes("NAME"), ValidArgsFunction: c.completeJobs,
		Long: "Submit a run for each tick of the job's schedule in a time that is past, at most 1,000. The same\n" +
			"times again create nothing new; another --id does. In run list each stands at its tick's time, not on top.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.jobBackfill(cmd.Context(), args[0], f, id, dry)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&id, "id", "", "`NAME` of this backfill (default: made of its times)")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "show the ticks, and submit nothing")
	ofOneCall(cmd.Flags(), "id", "dry-run")
	return cmd
}

func (c *cli) jobBackfill(ctx context.Context, name string, f rangeFlags, id string, dry bool) error {
	if err := checkJobName(name); err != nil {
		return err
	}
	since, until, err := f.parse(c)
	if err != nil {
		return err
	}
	if since.IsZero() {
		return usageErrorf("--since is missing; write from which time on, such as --since 2026-01-31")
	}
	if until.IsZero() {
		until = c.now()
		if id == "" { // the node would put this moment into it, and the next call would be another backfill
			id = "from-" + since.UTC().Format("20060102T150405Z")
		}
	}
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	if dry {
		return c.backfillTicks(ctx, k, name, since, until)
	}
	id, items, err := k.Backfill(ctx, name, since, until, id)
	if err != nil {
		return err
	}
	return c.batchAnswer(items, func(created, existing, failed int) {
		c.say("backfill %s: %s created, %d were there already, %d failed", id, count(created, "run"), existing, failed)
	})
}

func (c *cli) backfillTicks(ctx context.Context, k *client.Client, name string, since, until time.Time) error {
	j, err := k.Job(ctx, name)
	if err != nil {
		return err
	}
	if j.Spec.Schedule == nil {
		return job.Errorf(job.Conflict, "no_schedule", "the job %s has no schedule, so nothing can be filled in", name)
	}
	t, err := timetable.Parse(*j.Spec.Schedule)
	if err != nil {
		return err
	}
	var ticks []job.Instant
	for _, at := range t.Between(since.Add(-time.Microsecond), until.Add(-time.Microsecond), 1000) {
		ticks = append(ticks, job.At(at))
	}
	return c.print(answer{
		value: listOf(ticks),
		names: func() (names []string) {
			for _, at := range ticks {
				names = append(names, at.String())
			}
			return names
		},
		table: func(b *strings.Builder, _ bool) {
			for _, at := range ticks {
				b.WriteString(c.tickWords(j.Spec.Schedule, at) + "\n")
			}
		},
		note: count(len(ticks), "tick") + " would be run",
	})
}

// batchAnswer prints the fate of each run of a batch.
func (c *cli) batchAnswer(items []client.BatchItem, summary func(created, existing, failed int)) error {
	var runs []*job.Run
	var errs []error
	existing := 0
	for _, it := range items {
		if it.Err != nil {
			c.report(it.Err)
			errs = append(errs, it.Err)
			continue
		}
		if it.Existing {
			existing++
		}
		runs = append(runs, it.Run)
	}
	if err := c.printRuns(runs); err != nil {
		return err
	}
	if c.human() {
		summary(len(runs)-existing, existing, len(errs))
	}
	return failure(errs)
}
