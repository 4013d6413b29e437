package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

func (c *cli) runCommand() *cobra.Command {
	group := &cobra.Command{Use: "run COMMAND", Short: "Submit runs, look at them, follow, cancel and retry them"}
	group.AddCommand(
		c.submitCommand(), c.runListCommand(), c.runShowCommand(), c.runLogsCommand(), c.runWaitCommand(), c.runExplainCommand(),
		c.runAttemptsCommand(), c.runCancelCommand(), c.runRetryCommand())
	return group
}

type runListFlags struct {
	rangeFlags
	job, worker   string
	states        []string
	labels        []string
	root, task    string
	limit         int
	allNamespaces bool
}

func (c *cli) runListCommand() *cobra.Command {
	var f runListFlags
	cmd := &cobra.Command{
		Use: "list [flags]", Aliases: []string{"ls"}, Short: "List runs, newest first", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runList(cmd.Context(), f) },
	}
	fs := cmd.Flags()
	fs.StringVar(&f.job, "job", "", "only of the job `NAME`")
	fs.StringSliceVar(&f.states, "state", nil, "only in this `STATE`; several with commas between")
	fs.StringVar(&f.worker, "worker", "", "only on the worker `NAME`")
	fs.StringArrayVarP(&f.labels, "label", "l", nil, "only with the label `KEY=VALUE`; can be repeated, all must match")
	fs.StringVar(&f.root, "root", "", "the runs of the tasks of the run `ID`, instead of whole runs")
	fs.StringVar(&f.task, "task", "", "with --root: only of the task `NAME`, and its items")
	f.rangeFlags.add(cmd)
	fs.IntVar(&f.limit, "limit", 25, "at most `N` runs; 0 for all")
	fs.BoolVarP(&f.allNamespaces, "all-namespaces", "A", false, "of all namespaces")
	ofOneCall(fs, "job", "state", "worker", "label", "root", "task", "all-namespaces")
	c.completeFlag(cmd, "job", c.completeJobs)
	c.completeFlag(cmd, "worker", c.completeWorkers)
	c.completeFlag(cmd, "root", c.completeRuns)
	c.completeFlag(cmd, "task", c.completeTasks(&f.root))
	return cmd
}

func (f *runListFlags) filter(c *cli) (client.RunFilter, error) {
	q := client.RunFilter{Job: f.job, Worker: f.worker, AllNamespaces: f.allNamespaces}
	for _, word := range f.states {
		var s job.State
		if err := s.UnmarshalText([]byte(strings.TrimSpace(word))); err != nil || s == 0 {
			return q, usageErrorf("--state: %q is not a state; use waiting, held, scheduled, queued, running, succeeded, failed, cancelled or skipped", clip(word, 64))
		}
		q.States = append(q.States, s)
	}
	var err error
	if q.Task = f.task; f.task != "" && f.root == "" {
		return q, usageErrorf("--task goes with --root; name the run whose task it is")
	}
	if f.root != "" {
		if q.RootID, err = runID(f.root); err != nil {
			return q, err
		}
	}
	if f.task != "" {
		if err := job.CheckName("--task", f.task); err != nil {
			return q, err
		}
	}
	if q.Labels, err = parseLabels("label", f.labels); err != nil {
		return q, err
	}
	q.Since, q.Until, err = f.parse(c)
	return q, err
}

func (c *cli) runList(ctx context.Context, f runListFlags) error {
	q, err := f.filter(c)
	if err != nil {
		return err
	}
	if err := checkLimit(f.limit); err != nil {
		return err
	}
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	runs, more, err := collect(k.Runs(ctx, q), f.limit)
	if err != nil {
		return err
	}
	defer c.hintMore(more, f.limit)
	return c.printRuns(runs)
}

func (c *cli) printRuns(runs []*job.Run) error {
	return c.print(answer{
		value: listOf(runs),
		names: func() (names []string) {
			for _, r := range runs {
				names = append(names, r.ID.String())
			}
			return names
		},
		table: func(b *strings.Builder, color bool) {
			c.runTable(b, color, runs)
		},
		note: when(len(runs) == 0, "there are no such runs"),
	})
}

func (c *cli) runTable(b *strings.Builder, color bool, runs []*job.Run) {
	what, name := "JOB", func(r *job.Run) string { return r.Job }
	if len(runs) > 0 && !runs[0].IsRoot() { // then none is
		what, name = "TASK", taskName
	}
	t := newTable("ID", what, "STATE", "REASON", "TRIGGER", "ATTEMPT", "WORKER", "CREATED", "TOOK")
	for _, r := range runs {
		t.add(r.ID.String(), name(r), stateCell(r.State), reasonWord(r.Reason), r.Trigger.String(), attemptWord(r), r.Worker,
			c.relative(r.CreatedAt), c.runTook(r))
	}
	t.write(b, color)
}

// taskName is the name of a task run's task, and which item of its list it is for.
func taskName(r *job.Run) string {
	if r.Item == 0 {
		return r.Task
	}
	return r.Task + "[" + strconv.FormatUint(uint64(r.Item), 10) + "]"
}

func attemptWord(r *job.Run) string {
	if r.Attempt == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(r.Attempt), 10)
}

// runTook is how long the last attempt took, or takes.
func (c *cli) runTook(r *job.Run) string {
	if r.State != job.Running && !r.State.Terminal() {
		return ""
	}
	return c.took(r.StartedAt, r.FinishedAt)
}

// runID reads the id of a run from the command line.
func runID(s string) (job.RunID, error) {
	id, err := job.ParseRunID(s)
	if err != nil {
		return id, usageErrorf("%q is not the id of a run; ids look like 0192f3a4-7c1e-7abc-8def-0123456789ab (see muster run list)", clip(s, 64))
	}
	return id, nil
}

// ofRun is a command about one run, or with --task about the run of one of its tasks.
func (c *cli) ofRun(use, short string, do func(ctx context.Context, k *client.Client, id job.RunID) error) *cobra.Command {
	var root, task string
	var item uint32
	cmd := &cobra.Command{
		Use: use + " ID [flags]", Short: short, Args: takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := runID(args[0])
			if err != nil {
				return err
			}
			of, err := taskRunID(id, task, item)
			if err != nil {
				return err
			}
			if item == 0 && cmd.Flag("item").Changed {
				return usageErrorf("--item: items are counted from 1")
			}
			ctx, k, err := c.client(cmd.Context())
			if err != nil {
				return err
			}
			if err = do(ctx, k, of); job.CodeOf(err) == job.NotFound && task != "" {
				return noTaskRun(ctx, k, id, task, item)
			}
			return err
		},
	}
	cmd.ValidArgsFunction = c.completeRuns
	cmd.Flags().StringVar(&task, "task", "", "of its task `NAME`, instead of the whole run")
	cmd.Flags().Uint32Var(&item, "item", 0, "with --task: of the item `N` of the task's list; the first is 1")
	ofOneCall(cmd.Flags(), "task", "item")
	c.completeFlag(cmd, "task", func(cmd *cobra.Command, args []string, start string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if root = ""; len(args) > 0 {
			root = args[0]
		}
		return c.completeTasks(&root)(cmd, args, start)
	})
	return cmd
}

// noTaskRun says why a run has no run of a task, or of an item of its list.
func noTaskRun(ctx context.Context, k *client.Client, root job.RunID, task string, item uint32) error {
	r, err := k.RunWithTasks(ctx, root)
	if err != nil {
		return err
	}
	no := func(format string, args ...any) error {
		return job.Errorf(job.NotFound, "no_task_run", "the run %s %s", root, fmt.Sprintf(format, args...))
	}
	i := slices.IndexFunc(r.Tasks, func(t client.TaskRun) bool { return t.Name == task })
	switch {
	case len(r.Tasks) == 0:
		return no("has no tasks; leave out --task")
	case i < 0:
		return no("has no task %s; muster run show %s lists its tasks", task, root)
	}
	switch t := &r.Tasks[i]; {
	case item > 0 && t.Items != nil && int64(item) > int64(t.Items.Total):
		return no("has %s of the task %s, counted from 1; there is no item %d", count(t.Items.Total, "item"), task, item)
	case item > 0 && t.ForEach == "" && t.Items == nil && !t.ID.IsZero():
		return no("has no list of items of the task %s, which has a run of its own; leave out --item", task)
	case item > 0:
		return no("has no run of item %d of the task %s yet; muster run explain %s --task %s says why", item, task, root, task)
	default:
		return no("has no run of the task %s; muster run explain %s --task %s says why", task, root, task)
	}
}

// taskRunID is the id of the run of a task, or of an item of its list, and that of the run itself for no task.
func taskRunID(root job.RunID, task string, item uint32) (job.RunID, error) {
	switch {
	case task == "" && item == 0:
		return root, nil
	case task == "":
		return root, usageErrorf("--item goes with --task; name the task whose item it is")
	}
	return job.TaskRunID(root, task, item), job.CheckName("--task", task)
}

const runShowHelp = `Show a run. Of a run of a job with tasks, how each of them stands: a tree in which
every task stands once, under the last of those it comes after.

What a task wrote, why it is where it is, and its own run with its result:

    muster run logs ID --task load
    muster run explain ID --task load
    muster run show ID --task resize --item 3
    muster run list --root ID                  the ids of all its runs`

func (c *cli) runShowCommand() *cobra.Command {
	var chart bool
	cmd := c.ofRun("show", "Show a run", func(ctx context.Context, k *client.Client, id job.RunID) error {
		r, err := k.RunWithTasks(ctx, id)
		if err != nil {
			return err
		}
		return c.printRunWithTasks(r, chart)
	})
	cmd.Long = runShowHelp
	cmd.Flags().BoolVar(&chart, "gantt", false, "a chart of when its tasks were queued and ran")
	ofOneCall(cmd.Flags(), "gantt")
	return cmd
}

func (c *cli) printRunWithTasks(r *client.RunWithTasks, chart bool) error {
	return c.print(answer{
		value: r,
		names: func() []string { return []string{r.ID.String()} },
		table: func(b *strings.Builder, color bool) {
			if chart {
				gantt(b, color, r, job.At(c.now()), c.columns())
				return
			}
			s := c.runSheet(&r.Run)
			if len(r.Tasks) == 0 {
				s.write(b, color)
				return
			}
			s.add("Tasks", taskCounts(r.Tasks))
			s.add("Reused", when(reusedCount(r.Tasks) > 0, "%s", count(reusedCount(r.Tasks), "task")))
			s.write(b, color)
			b.WriteByte('\n')
			taskTree(b, color, r, job.At(c.now()))
		},
	})
}

func (c *cli) runSheet(r *job.Run) *sheet {
	var s sheet
	s.add("Run", r.ID.String())
	if s.add("Namespace", r.Namespace); r.Job != "" {
		s.add("Job", fmt.Sprintf("%s, version %d", r.Job, r.JobVersion))
	}
	s.add("Task", taskName(r))
	if !r.IsRoot() {
		s.add("Of the run", r.RootID.String())
	}
	if !r.ParentID.IsZero() {
		s.add("For the task", r.ParentID.String())
	}
	for _, up := range r.Upstreams {
		s.add("After", up.Job+": "+up.RunID.String()+when(up.Coalesced > 0, " (and %d before it)", up.Coalesced))
	}
	s.add("State", stateCell(r.State))
	s.add("Reason", reasonWord(r.Reason))
	if !r.CanonicalID.IsZero() {
		s.add("Duplicate of", r.CanonicalID.String())
	}
	s.add("Error", r.Error)
	if r.ExitCode != 0 {
		s.add("Exit code", strconv.Itoa(int(r.ExitCode)))
	}
	s.add("Trigger", r.Trigger.String())
	if !r.RetryOf.IsZero() {
		s.add("Retry of", r.RetryOf.String())
	}
	if !r.ReusedFrom.IsZero() {
		s.add("Reused from", r.ReusedFrom.String())
	}
	s.add("Backfill", r.BackfillID)
	s.add("Priority", strconv.Itoa(int(r.Priority)))
	s.add("Labels", labelWords(r.Labels))
	s.add("Key", r.Key)
	s.add("Durability", r.Home.String())
	s.add("Attempt", attemptWord(r))
	s.add("Worker", r.Worker)
	s.add("Scheduled", c.moment(r.ScheduledAt))
	s.add("Created", c.moment(r.CreatedAt))
	if !r.State.Terminal() {
		s.add("Not before", c.moment(r.ReadyAt))
	}
	s.add("Queued", c.moment(r.QueuedAt))
	s.add("Started", c.moment(r.StartedAt))
	s.add("Finished", c.moment(r.FinishedAt))
	s.add("Took", c.runTook(r))
	s.add("Deadline", c.moment(r.DeadlineAt))
	s.add("Cancel asked", c.moment(r.CancelAt))
	s.add("Payload", clip(string(r.Payload), 512))
	s.add("Result", clip(string(r.Result), 512))
	return &s
}

func (c *cli) runExplainCommand() *cobra.Command {
	var cmd *cobra.Command
	cmd = c.ofRun("explain", "Say why a run is where it is", func(ctx context.Context, k *client.Client, id job.RunID) error {
		explain := func() (*client.Explanation, error) { return k.Explain(ctx, id) }
		// A task can be explained before it has a run.
		if task := cmd.Flag("task").Value.String(); task != "" && !cmd.Flag("item").Changed {
			root, err := runID(cmd.Flags().Arg(0))
			if err != nil {
				return err
			}
			explain = func() (*client.Explanation, error) { return k.ExplainTask(ctx, root, task) }
		}
		e, err := explain()
		if err != nil {
			return err
		}
		return c.print(answer{
			value: e,
			names: func() []string { return []string{id.String()} },
			table: func(b *strings.Builder, color bool) {
				head := "The run is " + e.State.String()
				if e.Reason != job.NoReason {
					head += " (" + e.Reason.String() + ")"
				}
				b.WriteString(head + ".\n")
				for _, line := range e.Explanation {
					b.WriteString(clean(line) + "\n")
				}
			},
		})
	})
	return cmd
}

func (c *cli) runAttemptsCommand() *cobra.Command {
	return c.ofRun("attempts", "List the attempts of a run", func(ctx context.Context, k *client.Client, id job.RunID) error {
		attempts, err := k.Attempts(ctx, id)
		if err != nil {
			return err
		}
		return c.print(answer{
			value: listOf(attempts),
			names: func() (names []string) {
				for _, a := range attempts {
					names = append(names, strconv.FormatUint(uint64(a.Attempt), 10))
				}
				return names
			},
			table: func(b *strings.Builder, color bool) {
				t := newTable("ATTEMPT", "STATE", "REASON", "EXIT", "WORKER", "STARTED", "TOOK", "ERROR")
				for _, a := range attempts {
					t.add(strconv.FormatUint(uint64(a.Attempt), 10), stateCell(a.State), reasonWord(a.Reason), exitWord(&a),
						a.Worker, c.moment(a.StartedAt), c.took(a.StartedAt, a.FinishedAt), clip(clean(a.Error), 80))
				}
				t.write(b, color)
			},
			note: when(len(attempts) == 0, "no attempt was started yet; muster run explain %s says why", id),
		})
	})
}

// exitWord is the exit code of an attempt. One that runs has none yet, and one that was lost or stopped ended without: to say
// 0 of those would be to say that they succeeded.
func exitWord(a *job.Attempt) string {
	if a.ExitCode == 0 && a.State != job.Succeeded {
		return ""
	}
	return strconv.Itoa(int(a.ExitCode))
}

// eachRun is a command that does one thing to each run that is named, and prints the runs.
func (c *cli) eachRun(verb, short, long string, say func(r *job.Run) string, do func(context.Context, *client.Client, job.RunID) (*job.Run, error)) *cobra.Command {
	return &cobra.Command{
		Use: verb + " ID...", Short: short, Long: long, Args: takes("ID..."), ValidArgsFunction: c.completeRuns,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, k, err := c.client(cmd.Context())
			if err != nil {
				return err
			}
			return changed(ctx, c, args, func(arg string) (*job.Run, error) {
				id, err := runID(arg)
				if err != nil {
					return nil, err
				}
				return do(ctx, k, id)
			}, func(r *job.Run) string { return r.ID.String() }, say)
		},
	}
}

func (c *cli) runCancelCommand() *cobra.Command {
	return c.eachRun("cancel", "Cancel runs",
		"Cancel runs. What is running is stopped first, so it may take a moment; muster run wait waits for it.",
		func(r *job.Run) string {
			switch {
			case r.State == job.Cancelled:
				return "run " + r.ID.String() + " cancelled"
			case r.State.Terminal():
				return "run " + r.ID.String() + " had ended already: " + r.State.String()
			}
			return "run " + r.ID.String() + " will be cancelled; it is " + r.State.String()
		},
		func(ctx context.Context, k *client.Client, id job.RunID) (*job.Run, error) { return k.Cancel(ctx, id) })
}

const retryHelp = `Make a new run of one that has ended: the same version of its job, with the same
payload. Of a job with tasks only those run again that did not succeed, and those
that come after them; the others' results are taken over. --all runs all of them.
Asking twice retries once.`

func (c *cli) runRetryCommand() *cobra.Command {
	var all bool
	cmd := c.eachRun("retry", "Run runs that have ended again", retryHelp,
		func(r *job.Run) string {
			return "run " + r.ID.String() + " is the retry of " + r.RetryOf.String() + "; it is " + r.State.String()
		},
		func(ctx context.Context, k *client.Client, id job.RunID) (*job.Run, error) {
			if all {
				return k.RetryScoped(ctx, id, client.RetryAll)
			}
			return k.Retry(ctx, id)
		})
	cmd.Use = "retry ID... [flags]"
	cmd.Flags().BoolVar(&all, "all", false, "of a job with tasks, those that succeeded too")
	ofOneCall(cmd.Flags(), "all")
	return cmd
}

// compactJSON writes a result on one line.
func compactJSON(raw json.RawMessage) string { return clip(clean(string(raw)), 512) }
