package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

const applyHelp = `Create the jobs of one or several files, or change them to be as the files say.
Jobs that are so already stay as they are. Of a file in which one document is wrong
none is applied; the other files are.

    muster apply -f job.yaml
    muster apply -f jobs/ --dry-run
    generate-jobs | muster apply -f -`

func (c *cli) applyCommand() *cobra.Command {
	var f fileFlags
	var dry bool
	cmd := &cobra.Command{
		Use: "apply -f FILE [flags]", Short: "Create or change jobs as files say", Long: applyHelp, Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.apply(cmd.Context(), f, dry) },
	}
	f.add(cmd.Flags())
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would be done, and do nothing")
	ofOneCall(cmd.Flags(), "dry-run")
	return cmd
}

func (c *cli) apply(ctx context.Context, f fileFlags, dry bool) error {
	sources, err := c.documents(f)
	if err != nil {
		return err
	}
	return c.applySources(ctx, upstreamsFirst(sources), dry)
}

// applyImported applies what came from a crontab.
func (c *cli) applyImported(ctx context.Context, where string, jobs []imported) error {
	var sources []source
	for _, j := range jobs {
		sources = append(sources, source{file: where, doc: j.doc})
	}
	c.stdout, c.format = c.stderr, formatTable // the documents have stdout
	return c.applySources(ctx, sources, false)
}

func (c *cli) applySources(ctx context.Context, sources []source, dry bool) error {
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	var verdicts []*verdict
	var errs []error
	counts := map[string]int{}
	bar := c.progress("applying", len(sources))
	for i := range sources {
		s := &sources[i]
		v := c.newVerdict(s)
		if s.err == nil {
			s.err = v.apply(ctx, k, s.doc, dry)
			if s.err != nil && ctx.Err() != nil { // nobody is there, or somebody interrupts: it would be the same for all
				bar.done()
				return s.err
			}
			v.fail(c, s.err)
		}
		if s.err != nil {
			v.Result = "failed"
			errs = append(errs, s.err)
		}
		counts[v.Result]++
		verdicts = append(verdicts, v)
		bar.step()
	}
	bar.done()
	if err := c.printVerdicts(verdicts); err != nil {
		return err
	}
	if c.human() && len(verdicts) > 1 {
		what := ""
		if dry {
			what = "; nothing was done"
		}
		c.say("%d created, %d changed, %d unchanged, %d failed%s", counts["created"], counts["changed"], counts["unchanged"], counts["failed"], what)
	}
	return failure(errs)
}

// apply compares the document with the job as it is, and puts it. Also an unchanged one: that brings a schedule into effect
// which was stored and did not reach the cluster (design, L7).
func (v *verdict) apply(ctx context.Context, k *client.Client, d *job.Document, dry bool) error {
	before, err := jobIn(ctx, k, d.Namespace, d.Name)
	switch {
	case job.CodeOf(err) == job.NotFound:
		v.Result = "created"
	case err != nil:
		return err
	case job.EqualDocuments(before.Spec, d):
		v.Result = "unchanged"
	default:
		v.Result = "changed"
	}
	if v.DryRun = dry; dry {
		if before != nil {
			v.Version = before.Version
		}
		return nil
	}
	j, err := k.PutJob(ctx, d)
	if err != nil {
		return fmt.Errorf("put the job: %w", err)
	}
	v.Version = j.Version
	if !j.Effective && d.Schedule != nil {
		v.Effective = &j.Effective
	}
	return nil
}

// jobIn reads a job of any namespace.
func jobIn(ctx context.Context, k *client.Client, namespace, name string) (*job.Job, error) {
	if namespace != k.Namespace {
		other := k.Config
		other.Namespace = namespace
		var err error
		if k, err = client.New(other); err != nil {
			return nil, err
		}
	}
	return k.Job(ctx, name)
}
