package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

const submitHelp = `Submit a run of its own, without a job: a command, or with --http a request, or with
--handler a call of a function in a worker.

    muster run submit -- /usr/bin/report --daily
    muster run submit --follow -- echo hello
    muster run submit --http https://example.com/hook --payload '{"n": 1}' --wait
    muster run submit --handler resize --payload @image.json --retries 3

The run's id is made here, so repeating a submission whose answer was lost is safe
with --id. The payload is the command's standard input, the request's body, or the
handler's argument.`

// submissionFlags are what a run of a job and a run of its own have in common.
type submissionFlags struct {
	payload  string
	delay    string
	runAt    string
	priority int
	labels   []string
	key      string
	id       string
	follow   bool
	wait     bool
}

func (f *submissionFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.payload, "payload", "", "`JSON` for the run; @FILE reads a file, - stdin")
	fs.StringVar(&f.delay, "delay", "", "start this `SPAN` later, such as 90s, 12h or 7d")
	fs.StringVar(&f.runAt, "run-at", "", "do not start before this `TIME` (see muster help times)")
	fs.IntVar(&f.priority, "priority", -1, "`N` from 0 to 9, 9 first (default: what the job says, or 5)")
	fs.Lookup("priority").DefValue = "0" // which help leaves out
	fs.StringArrayVarP(&f.labels, "label", "l", nil, "add the label `KEY=VALUE`; can be repeated")
	fs.StringVar(&f.key, "key", "", "idempotency `KEY`: the same key with the same request is the same run for 24 hours")
	fs.StringVar(&f.id, "id", "", "`ID` of the run, to repeat a submission whose answer was lost")
	fs.BoolVarP(&f.follow, "follow", "f", false, "show its output until it has ended")
	fs.BoolVarP(&f.wait, "wait", "w", false, "wait until it has ended; exit code 10 if it did not succeed")
	ofOneCall(fs, "payload", "delay", "run-at", "label", "key", "id", "follow", "wait")
}

func (f *submissionFlags) submission(c *cli) (s client.Submission, err error) {
	if f.delay != "" && f.runAt != "" {
		return s, usageErrorf("--delay and --run-at contradict each other; give one of them")
	}
	if f.delay != "" {
		var ok bool
		if s.Delay, ok = parseSpan(f.delay); !ok {
			return s, usageErrorf("--delay: %q is not a span; write one such as 90s, 12h or 7d", clip(f.delay, 64))
		}
	}
	at, err := c.parseTime("run-at", f.runAt, true)
	if err != nil {
		return s, err
	}
	s.RunAt = at.Time()
	if f.priority != -1 {
		if f.priority < 0 || f.priority > job.MaxPriority {
			return s, usageErrorf("--priority: %d is out of range; use 0 to %d, %d first", f.priority, job.MaxPriority, job.MaxPriority)
		}
		s.Priority = &f.priority
	}
	if s.Labels, err = parseLabels("label", f.labels); err != nil {
		return s, err
	}
	if s.Key = f.key; f.id != "" {
		if s.ID, err = runID(f.id); err != nil {
			return s, err
		}
	}
	payload, err := c.readPayload(f.payload)
	if payload != nil {
		s.Payload = payload
	}
	return s, err
}

const payloadAdvice = "keep large data elsewhere and pass a reference"

// readPayload reads JSON from the command line, a file or stdin.
func (c *cli) readPayload(arg string) (json.RawMessage, error) {
	text := []byte(arg)
	var err error
	switch {
	case arg == "":
		return nil, nil
	case arg == "-":
		text, err = c.readInput("-", 16*job.MaxPayloadBytes, payloadAdvice)
	case strings.HasPrefix(arg, "@"):
		text, err = c.readInput(arg[1:], 16*job.MaxPayloadBytes, payloadAdvice)
	}
	if err != nil {
		return nil, err
	}
	p, err := job.ValidatePayload("--payload", text, 0)
	if err != nil && job.AsError(err).Reason == "invalid_syntax" {
		return nil, usageErrorf(`--payload: %s; text stands in quotes, such as '"hello"'`, job.AsError(err).Message)
	}
	return p, err
}

type specFlags struct {
	handler  string
	http     string
	method   string
	headers  []string
	dir      string
	env      []string
	selector []string
	timeout  string
	retries  int
	slots    int
}

func (f *specFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.dir, "dir", "", "`DIR` to run the command in")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "`NAME=VALUE` in the command's environment; can be repeated")
	fs.StringVar(&f.http, "http", "", "send a request to this `URL` instead of running a command")
	fs.StringVar(&f.method, "method", "POST", "`METHOD` of the request")
	fs.StringArrayVar(&f.headers, "header", nil, "`NAME: VALUE` of the request; can be repeated")
	fs.StringVar(&f.handler, "handler", "", "call the function `NAME` of a worker instead")
	fs.StringArrayVar(&f.selector, "selector", nil, "only on workers with the label `KEY=VALUE`; can be repeated")
	fs.StringVar(&f.timeout, "timeout", "", "`SPAN` that one attempt may take, such as 10m")
	fs.IntVar(&f.retries, "retries", 0, "try up to `N` times more if it fails")
	fs.IntVar(&f.slots, "slots", 1, "`N` of the worker's slots that it takes")
	ofOneCall(fs, "dir", "env", "http", "method", "header", "handler", "selector", "timeout", "retries", "slots")
}

// spec is the inline document that the flags and the command line amount to.
func (f *specFlags) spec(command []string) (*job.Document, error) {
	kinds := 0
	for _, given := range []bool{len(command) > 0, f.http != "", f.handler != ""} {
		if given {
			kinds++
		}
	}
	switch {
	case kinds == 0:
		return nil, usageErrorf("nothing to run; write a command after --, or --http URL, or --handler NAME")
	case kinds > 1:
		return nil, usageErrorf("a run is one of a command, --http and --handler; give one of them")
	case f.retries < 0:
		return nil, usageErrorf("--retries: it must not be negative")
	case len(command) == 0 && (f.dir != "" || len(f.env) > 0):
		return nil, usageErrorf("--dir and --env are for commands")
	case f.http == "" && len(f.headers) > 0:
		return nil, usageErrorf("--header goes with --http")
	}
	d := &job.Document{Slots: f.slots}
	d.Retry.MaxAttempts = f.retries + 1
	if f.timeout != "" {
		t, ok := parseSpan(f.timeout)
		if !ok {
			return nil, usageErrorf("--timeout: %q is not a span; write one such as 90s or 10m", clip(f.timeout, 64))
		}
		d.Timeout = job.Duration(t)
	}
	var err error
	if d.Selector, err = parseLabels("selector", f.selector); err != nil {
		return nil, err
	}
	switch {
	case f.handler != "":
		d.Handler = &job.Handler{Name: f.handler}
	case f.http != "":
		d.HTTP = &job.HTTP{URL: f.http, Method: strings.ToUpper(f.method)}
		if d.HTTP.Headers, err = pairs("header", f.headers, ":"); err != nil {
			return nil, err
		}
	default:
		d.Exec = &job.Exec{Command: command, Dir: f.dir}
		if d.Exec.Env, err = pairs("env", f.env, "="); err != nil {
			return nil, err
		}
	}
	d.Normalize()
	return d, d.ValidateSpec()
}

func pairs(flag string, items []string, sign string) (map[string]string, error) {
	if len(items) == 0 {
		return nil, nil
	}
	m := map[string]string{}
	for _, p := range items {
		k, v, ok := strings.Cut(p, sign)
		if k = strings.TrimSpace(k); !ok || k == "" {
			return nil, usageErrorf("--%s: %q has no name and value; write NAME%sVALUE", flag, clip(p, 64), sign)
		}
		if sign == ":" {
			v = strings.TrimSpace(v)
		}
		m[k] = v
	}
	return m, nil
}

func (c *cli) submitCommand() *cobra.Command {
	var f submissionFlags
	var spec specFlags
	cmd := &cobra.Command{
		Use: "submit [flags] -- COMMAND...", Short: "Submit a run of its own", Long: submitHelp, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			doc, err := spec.spec(args)
			if err != nil {
				return err
			}
			s, err := f.submission(c)
			if err != nil {
				return err
			}
			s.Spec = doc
			return c.submit(cmd.Context(), s, &f)
		},
	}
	// What stands behind the command's name is its own, also without the dashes.
	cmd.Flags().SetInterspersed(false)
	spec.add(cmd.Flags())
	f.add(cmd.Flags())
	return cmd
}

func (c *cli) jobRunCommand() *cobra.Command {
	var f submissionFlags
	cmd := &cobra.Command{
		Use: "run NAME [flags]", Short: "Run a job now", Args: takes("NAME"), ValidArgsFunction: c.completeJobs,
		Long: "Submit a run of a job, beside its schedule.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkJobName(args[0]); err != nil {
				return err
			}
			s, err := f.submission(c)
			if err != nil {
				return err
			}
			s.Job = args[0]
			return c.submit(cmd.Context(), s, &f)
		},
	}
	f.add(cmd.Flags())
	return cmd
}

func (c *cli) submit(ctx context.Context, s client.Submission, f *submissionFlags) error {
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	if s.ID.IsZero() {
		s.ID = client.NewRunID()
	}
	r, err := k.Submit(ctx, s)
	if err != nil {
		if job.CodeOf(err) == job.Unknown { // repeating it with this id is safe, so the id must not be lost
			return &exitError{exitUnavailable, fmt.Sprintf("nobody knows whether the run was accepted; look with `muster run show %s`, or submit it again with --id %s", s.ID, s.ID)}
		}
		return err
	}
	if r.Home == job.HomeLocal && c.human() {
		c.say("the cluster is out of reach: one node holds the run on its own disk until it is back")
	}
	switch {
	case f.follow:
		if c.human() {
			c.say("run %s", r.ID)
		}
		return c.follow(ctx, k, r.ID, followFlags{})
	case f.wait:
		return c.wait(ctx, k, r.ID, 0)
	}
	return c.print(answer{
		value: r,
		names: func() []string { return []string{r.ID.String()} },
		table: func(b *strings.Builder, _ bool) {
			b.WriteString("run " + r.ID.String() + " " + r.State.String())
			if r.State == job.Scheduled {
				b.WriteString(" for " + c.moment(r.ReadyAt))
			}
			b.WriteByte('\n')
		},
	})
}

func (c *cli) runWaitCommand() *cobra.Command {
	var limit string
	cmd := &cobra.Command{
		Use: "wait ID [flags]", Short: "Wait until a run has ended", Args: takes("ID"), ValidArgsFunction: c.completeRuns,
		Long: "Wait until a run has ended, and show it. The exit code is 0 if it succeeded and 10 if not.",
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := runID(args[0])
			if err != nil {
				return err
			}
			var most time.Duration
			if limit != "" {
				var ok bool
				if most, ok = parseSpan(limit); !ok || most == 0 {
					return usageErrorf("--timeout: %q is not a span; write one such as 90s or 10m", clip(limit, 64))
				}
			}
			ctx, k, err := c.client(cmd.Context())
			if err != nil {
				return err
			}
			return c.wait(ctx, k, id, most)
		},
	}
	cmd.Flags().StringVar(&limit, "timeout", "", "wait no longer than this `SPAN`; the exit code is then 5")
	ofOneCall(cmd.Flags(), "timeout")
	return cmd
}

// wait waits for the end of a run and judges it. most 0: as long as it takes.
func (c *cli) wait(ctx context.Context, k *client.Client, id job.RunID, most time.Duration) error {
	waiting := ctx
	if most > 0 {
		var cancel context.CancelFunc
		waiting, cancel = context.WithTimeout(ctx, most)
		defer cancel()
	}
	if c.human() && isTerminal(c.stderr) {
		c.say("waiting for the run %s; Ctrl-C leaves it going", id)
	}
	silent := c.sayWhyItWaits(waiting, k, id)
	r, err := k.Wait(waiting, id)
	silent()
	switch {
	case ctx.Err() != nil:
		return c.left(ctx, id, err)
	case waiting.Err() != nil:
		state := ""
		if r != nil {
			state = ": it is " + r.State.String()
		}
		return &exitError{exitUnavailable, fmt.Sprintf("the run %s has not ended within %s%s", id, span(most), state)}
	case err != nil:
		return c.left(ctx, id, err)
	}
	if c.human() {
		c.sayEnd(r)
		if len(r.Result) > 0 {
			fmt.Fprintln(c.stdout, compactJSON(r.Result))
		}
	} else if err := c.print(answer{value: r, names: func() []string { return []string{r.ID.String()} }}); err != nil {
		return err
	}
	return ended(r)
}
