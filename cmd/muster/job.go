package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/timetable"
)

func (c *cli) jobCommand() *cobra.Command {
	group := &cobra.Command{Use: "job COMMAND", Short: "Look at jobs, pause, run and delete them"}
	group.AddCommand(
		c.jobListCommand(), c.jobShowCommand(), c.jobGraphCommand(), c.jobRunCommand(),
		c.jobChange("pause", "Stop jobs from ticking, and hold their queued runs", "paused", func(ctx context.Context, k *client.Client, name string) error {
			_, err := k.PauseJob(ctx, name)
			return err
		}),
		c.jobChange("resume", "Let paused jobs tick again", "resumed", func(ctx context.Context, k *client.Client, name string) error {
			_, err := k.ResumeJob(ctx, name)
			return err
		}),
		c.jobDeleteCommand(),
		c.jobNextCommand(), c.jobTicksCommand(), c.jobVerifyCommand(), c.jobVersionsCommand(), c.jobBackfillCommand())
	return group
}

func (c *cli) jobListCommand() *cobra.Command {
	var labels []string
	var limit int
	cmd := &cobra.Command{
		Use: "list [flags]", Aliases: []string{"ls"}, Short: "List jobs", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.jobList(cmd.Context(), labels, limit) },
	}
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "only with the label `KEY=VALUE`; can be repeated, all must match")
	cmd.Flags().IntVar(&limit, "limit", 1000, "at most `N` jobs; 0 for all")
	ofOneCall(cmd.Flags(), "label")
	return cmd
}

func (c *cli) jobList(ctx context.Context, pairs []string, limit int) error {
	if err := checkLimit(limit); err != nil {
		return err
	}
	labels, err := parseLabels("label", pairs)
	if err != nil {
		return err
	}
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	jobs, more, err := collect(k.Jobs(ctx, client.JobFilter{Labels: labels}), limit)
	if err != nil {
		return err
	}
	defer c.hintMore(more, limit)
	return c.print(answer{
		value: listOf(jobs),
		names: func() (names []string) {
			for _, j := range jobs {
				names = append(names, j.Name)
			}
			return names
		},
		table: func(b *strings.Builder, color bool) {
			t := newTable("NAME", "VERSION", "SCHEDULE", "ZONE", "NEXT TICK", "RUNS", "LABELS")
			for _, j := range jobs {
				cron, zone := afterJobs(j.Spec), ""
				if s := j.Spec.Schedule; s != nil {
					cron, zone = s.Cron, s.TimeZone
				}
				t.add(j.Name, strconv.FormatUint(j.Version, 10), cron, zone, c.nextTickCell(j), executorWords(j.Spec), labelWords(j.Spec.Labels))
			}
			t.write(b, color)
		},
		note: when(len(jobs) == 0, "there are no jobs in the namespace %s", c.namespace),
	})
}

// afterJobs says in one cell on which jobs one depends, in the place of a schedule.
func afterJobs(d *job.Document) string {
	if len(d.DependsOn) == 0 {
		return ""
	}
	names := make([]string, len(d.DependsOn))
	for i := range names {
		names[i] = d.DependsOn[i].Job
	}
	return clip("after "+strings.Join(names, ", "), 40)
}

func (c *cli) nextTickCell(j *job.Job) cell {
	switch {
	case j.Paused:
		return cell{"paused", "33"}
	case !j.Effective && j.Spec.Schedule != nil:
		return cell{"not in effect yet", "33"}
	}
	return cell{text: c.relative(j.NextTickAt)}
}

// executorWords says in one cell what a job does.
func executorWords(d *job.Document) string {
	switch {
	case d.Exec != nil:
		return clip(clean(commandLine(d.Exec.Command)), 48)
	case d.HTTP != nil:
		return clip(clean(d.HTTP.Method+" "+d.HTTP.URL), 48)
	case d.Handler != nil:
		return "handler " + d.Handler.Name
	}
	return count(len(d.Tasks), "task")
}

// commandLine writes an argv so that a reader sees where an argument begins.
func commandLine(argv []string) string {
	words := make([]string, len(argv))
	for i, a := range argv {
		if words[i] = a; a == "" || strings.ContainsAny(a, " \t\n\"'$`\\|&;<>()*?[]#~") {
			words[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}

func (c *cli) jobShowCommand() *cobra.Command {
	var document bool
	var version uint64
	cmd := &cobra.Command{
		Use: "show NAME [flags]", Short: "Show a job", Args: takes("NAME"), ValidArgsFunction: c.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.jobShow(cmd.Context(), args[0], version, document)
		},
	}
	cmd.Flags().BoolVar(&document, "document", false, "only its document, as YAML that apply takes")
	cmd.Flags().Uint64Var(&version, "version", 0, "as it was in version `N`; with --document")
	ofOneCall(cmd.Flags(), "document", "version")
	return cmd
}

func (c *cli) jobShow(ctx context.Context, name string, version uint64, document bool) error {
	if err := checkJobName(name); err != nil {
		return err
	}
	if version > 0 && !document {
		return usageErrorf("--version goes with --document")
	}
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	j, err := k.Job(ctx, name)
	if err != nil {
		return err
	}
	if document {
		return c.printDocument(ctx, k, j, version)
	}
	runs, _, err := collect(k.Runs(ctx, client.RunFilter{Job: name}), 5)
	if err != nil {
		return err
	}
	edges, err := dependencies(ctx, k, name)
	if err != nil {
		return err
	}
	return c.print(answer{
		value: j,
		names: func() []string { return []string{j.Name} },
		table: func(b *strings.Builder, color bool) { c.jobSheet(b, color, j, edges, runs) },
	})
}

func (c *cli) printDocument(ctx context.Context, k *client.Client, j *job.Job, version uint64) error {
	doc := j.Spec
	if version > 0 && version != j.Version {
		versions, err := k.Versions(ctx, j.Name)
		if err != nil {
			return err
		}
		doc = nil
		for _, v := range versions {
			if v.Version == version {
				doc = v.Spec
			}
		}
		if doc == nil {
			return job.Errorf(job.NotFound, "no_version", "the job %s has no version %d; see muster job versions %s", j.Name, version, j.Name)
		}
	}
	text, err := doc.YAML()
	if err != nil {
		return err
	}
	_, err = c.stdout.Write(text)
	return err
}

func (c *cli) jobSheet(b *strings.Builder, color bool, j *job.Job, edges *client.Dependencies, runs []*job.Run) {
	var s sheet
	d := j.Spec
	s.add("Name", j.Namespace+"/"+j.Name)
	s.add("Description", d.Description)
	s.add("Version", fmt.Sprintf("%d, of %s", j.Version, c.moment(j.UpdatedAt)))
	s.add("Labels", labelWords(d.Labels))
	s.add("Runs", executorWords(d))
	if len(d.Tasks) > 0 {
		s.add("Tasks", "muster job graph "+j.Name+" draws them")
	}
	if d.Schedule != nil {
		s.add("Schedule", fmt.Sprintf("%s (%s)", d.Schedule.Cron, d.Schedule.TimeZone))
		if t, err := timetable.Parse(*d.Schedule); err == nil {
			s.add("In words", t.Describe())
		}
		s.add("Overlap", string(d.Overlap))
		s.add("Catch-up", string(d.Schedule.CatchUp.Policy))
	}
	switch {
	case j.Paused:
		s.add("State", cell{"paused; muster job resume " + j.Name + " lets it tick again", "33"})
	case d.Schedule != nil && !j.Effective:
		s.add("State", cell{"this version is stored, and not in effect yet", "33"})
	case d.Schedule != nil:
		s.add("Next tick", c.moment(j.NextTickAt))
	}
	s.write(b, color)
	c.dependencyTables(b, color, edges)
	b.WriteString("\nDocument:\n")
	if text, err := d.YAML(); err == nil {
		for line := range strings.Lines(string(text)) {
			b.WriteString("  " + clean(strings.TrimSuffix(line, "\n")) + "\n")
		}
	}
	if len(runs) > 0 {
		b.WriteString("\nLast runs:\n")
		c.runTable(b, color, runs)
	}
}

// dependencyTables says what a job waits for, what of that has happened, and what waits for it.
func (c *cli) dependencyTables(b *strings.Builder, color bool, d *client.Dependencies) {
	if len(d.Upstreams) > 0 {
		b.WriteString("\nDepends on:\n")
		t := newTable("JOB", "ON", "SATISFIED", "BY THE RUN", "AND BEFORE IT")
		for _, e := range d.Upstreams {
			satisfied, run, others := cell{"not yet", "33"}, "", ""
			if !e.SatisfiedBy.IsZero() {
				satisfied, run = cell{c.moment(e.SatisfiedAt), "32"}, e.SatisfiedBy.String()
			}
			if e.Coalesced > 0 {
				others = count(int(e.Coalesced), "run")
			}
			t.add(e.Upstream, string(e.On), satisfied, run, others)
		}
		t.write(b, color)
	}
	if len(d.Dependents) > 0 {
		b.WriteString("\nJobs that depend on it:\n")
		t := newTable("JOB", "ON", "SATISFIED")
		for _, e := range d.Dependents {
			satisfied := cell{"not yet", "33"}
			if !e.SatisfiedBy.IsZero() {
				satisfied = cell{c.moment(e.SatisfiedAt), "32"}
			}
			t.add(e.Job, string(e.On), satisfied)
		}
		t.write(b, color)
	}
}

// jobChange is a command that does one thing to each job that is named.
func (c *cli) jobChange(verb, short, done string, do func(context.Context, *client.Client, string) error) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME...", Short: short, Args: takes("NAME..."), ValidArgsFunction: c.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, k, err := c.client(cmd.Context())
			if err != nil {
				return err
			}
			return changed(ctx, c, args, func(name string) (jobChanged, error) {
				err := checkJobName(name)
				if err == nil {
					err = do(ctx, k, name)
				}
				return jobChanged{name, done}, err
			}, func(j jobChanged) string { return j.Job }, func(j jobChanged) string { return "job " + j.Job + " " + j.Result })
		},
	}
}

const jobDeleteHelp = `Delete jobs; their runs stay.

A job that others depend on is not deleted, unless with --detach: that takes it out
of their depends_on first. What is left with no dependency runs when somebody says so.`

func (c *cli) jobDeleteCommand() *cobra.Command {
	var detach bool
	cmd := c.jobChange("delete", "Delete jobs; their runs stay", "deleted", func(ctx context.Context, k *client.Client, name string) error {
		if detach {
			return k.DeleteJobDetached(ctx, name, 0)
		}
		err := k.DeleteJob(ctx, name, 0)
		if e := job.AsError(err); err != nil && e.Reason == "has_dependents" {
			message, _, _ := strings.Cut(e.Message, "; or ") // what follows is in the words of the API
			return job.Errorf(e.Code, e.Reason, "%s; or delete it with --detach, which takes it out of their depends_on", message)
		}
		return err
	})
	cmd.Use, cmd.Long = "delete NAME... [flags]", jobDeleteHelp
	cmd.Flags().BoolVar(&detach, "detach", false, "also those that other jobs depend on, which then do so no more")
	ofOneCall(cmd.Flags(), "detach")
	return cmd
}

type jobChanged struct {
	Job    string `json:"job"`
	Result string `json:"result"`
}

func (c *cli) jobVersionsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "versions NAME", Short: "List the versions of a job", Args: takes("NAME"), ValidArgsFunction: c.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkJobName(args[0]); err != nil {
				return err
			}
			ctx, k, err := c.client(cmd.Context())
			if err != nil {
				return err
			}
			versions, err := k.Versions(ctx, args[0])
			if err != nil {
				return err
			}
			return c.print(answer{
				value: listOf(versions),
				names: func() (names []string) {
					for _, v := range versions {
						names = append(names, strconv.FormatUint(v.Version, 10))
					}
					return names
				},
				table: func(b *strings.Builder, color bool) {
					t := newTable("VERSION", "CREATED", "TICKS FROM", "SCHEDULE", "ZONE", "RUNS")
					for _, v := range versions {
						cron, zone := afterJobs(v.Spec), ""
						if s := v.Spec.Schedule; s != nil {
							cron, zone = s.Cron, s.TimeZone
						}
						t.add(strconv.FormatUint(v.Version, 10), c.moment(v.CreatedAt), c.moment(v.From), cron, zone, executorWords(v.Spec))
					}
					t.write(b, color)
				},
			})
		},
	}
}
