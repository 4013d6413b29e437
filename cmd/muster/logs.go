package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

type followFlags struct {
	attempt uint32
	raw     bool
	logs    bool // the output is what was asked for, rather than the run's end
}

const logsHelp = `Show what a run wrote: the output of its last attempt so far, or with --follow of
all attempts, as it is written, until the run has ended. A run with tasks writes nothing itself:
--task names one of them, and --follow alone says how they end.

On a terminal, escape sequences other than colours are left out, because output can
come from anywhere; --raw shows it as it is. Into a file or a pipe it always goes
as it is. With -o json each piece is a line of JSON.`

func (c *cli) runLogsCommand() *cobra.Command {
	f := followFlags{logs: true}
	var follow bool
	cmd := c.ofRun("logs", "Show what a run wrote", func(ctx context.Context, k *client.Client, id job.RunID) error {
		if follow {
			return c.follow(ctx, k, id, f)
		}
		return c.output(ctx, k, id, f)
	})
	cmd.Use, cmd.Long = "logs ID [flags]", logsHelp
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "wait for more, until the run has ended")
	cmd.Flags().Uint32Var(&f.attempt, "attempt", 0, "only of the attempt `N`")
	cmd.Flags().BoolVar(&f.raw, "raw", false, "on a terminal too, as it is")
	ofOneCall(cmd.Flags(), "follow", "attempt", "raw")
	return cmd
}

// sink is where output goes.
func (c *cli) sink(raw bool) io.WriteCloser {
	if raw || !isTerminal(c.stdout) {
		return unclosed{c.stdout}
	}
	return &terminalFilter{to: c.stdout}
}

type unclosed struct{ io.Writer }

func (unclosed) Close() error { return nil }

func (c *cli) output(ctx context.Context, k *client.Client, id job.RunID, f followFlags) error {
	in, err := k.Output(ctx, id, f.attempt)
	if err != nil {
		return err
	}
	defer in.Close()
	out := c.sink(f.raw)
	if c.format == formatJSON {
		data, err := io.ReadAll(in)
		if err != nil {
			return fmt.Errorf("read the output: %w", err)
		}
		return c.printPiece(client.OutputEvent{Attempt: f.attempt, Data: data})
	}
	n, err := io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err == nil && n == 0 {
		c.sayWhoseOutput(ctx, k, id)
	}
	return err
}

// sayWhoseOutput tells a person where the output is of a run that writes nothing itself.
func (c *cli) sayWhoseOutput(ctx context.Context, k *client.Client, id job.RunID) {
	if !c.human() {
		return
	}
	r, err := k.RunWithTasks(ctx, id)
	if err != nil {
		return // not worth an error: there is no output, and that is what was asked
	}
	switch {
	case len(r.Tasks) > 0:
		c.say("a run with tasks writes nothing itself; --task names one of them")
	case r.Items > 0:
		c.say("a task with for_each writes nothing itself; --item names one of its %s", count(int(r.Items), "item"))
	case r.Task != "" && !r.ReusedFrom.IsZero():
		c.say("this task was not run again: muster run logs %s shows what it wrote", r.ReusedFrom)
	}
}

// follow shows output until the run has ended, and judges its end. The SDK continues a broken stream where it broke.
func (c *cli) follow(ctx context.Context, k *client.Client, id job.RunID, f followFlags) error {
	r, err := k.RunWithTasks(ctx, id)
	switch {
	case err != nil:
		return c.left(ctx, id, err)
	case len(r.Tasks) > 0:
		return c.followTasks(ctx, k, r, f)
	}
	out := c.sink(f.raw)
	// Other forms have stdout to themselves: for the run, or for the pieces if those were asked for.
	if !f.logs && !c.human() {
		out = unclosed{c.stderr}
	}
	attempt := uint32(0)
	endsLine := true
	silent := c.sayWhyItWaits(ctx, k, id)
	defer silent()
	for e, err := range k.Follow(ctx, id, f.attempt) {
		silent() // two voices would talk at once
		if err != nil {
			_ = out.Close()
			return c.left(ctx, id, err)
		}
		if e.Run != nil {
			if err := out.Close(); err != nil {
				return err
			}
			if c.human() && !endsLine {
				fmt.Fprintln(c.stderr)
			}
			return c.followEnd(e.Run, f)
		}
		if f.logs && c.format == formatJSON {
			if err := c.printPiece(e); err != nil {
				return err
			}
			continue
		}
		if e.Attempt > 1 && e.Attempt != attempt && c.human() {
			c.say("--- attempt %d", e.Attempt)
		}
		attempt = e.Attempt
		if e.Missing > 0 {
			c.say("--- %d bytes of output are missing here", e.Missing)
		}
		if _, err := out.Write(e.Data); err != nil {
			return err
		}
		if n := len(e.Data); n > 0 {
			endsLine = e.Data[n-1] == '\n'
		}
	}
	return errors.New("the output ended before the run did; try again")
}

// followTasks says how the tasks of a run end, until the run has: it writes nothing itself.
func (c *cli) followTasks(ctx context.Context, k *client.Client, r *client.RunWithTasks, f followFlags) error {
	said := make(map[string]bool, len(r.Tasks))
	for pause := 100 * time.Millisecond; ; pause = min(pause*3/2, 2*time.Second) {
		for i := range r.Tasks {
			if t := &r.Tasks[i]; c.human() && t.State.Terminal() && !said[t.Name] {
				said[t.Name] = true
				c.say("--- %s", taskEnd(t))
			}
		}
		if r.State.Terminal() {
			return c.followEnd(&r.Run, f)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return c.left(ctx, r.ID, ctx.Err())
		}
		next, err := k.RunWithTasks(ctx, r.ID)
		if err != nil {
			return c.left(ctx, r.ID, err)
		}
		r = next
	}
}

// taskEnd says how a task ended.
func taskEnd(t *client.TaskRun) string {
	words := t.Name + " " + t.State.String()
	if t.Reason != job.NoReason {
		words += " (" + t.Reason.String() + ")"
	}
	if t.ReusedFrom.IsZero() && t.StartedAt != 0 {
		words += " after " + tookUntil(t.StartedAt, t.FinishedAt, t.FinishedAt)
	}
	if note := taskNote(t); note != "" {
		words += "; " + note
	}
	return words
}

func (c *cli) followEnd(r *job.Run, f followFlags) error {
	switch {
	case c.human():
		c.sayEnd(r)
	case !f.logs:
		if err := c.print(answer{value: r, names: func() []string { return []string{r.ID.String()} }}); err != nil {
			return err
		}
	}
	return ended(r)
}

// left ends waiting that was broken off. A run does not end because nobody looks any more, and its owner should know.
func (c *cli) left(ctx context.Context, id job.RunID, err error) error {
	cause := new(interrupted)
	if errors.As(context.Cause(ctx), cause) {
		return &exitError{exitInterrupted, fmt.Sprintf("interrupted; the run goes on: `muster run logs -f %s` shows more of it, `muster run cancel %s` stops it", id, id)}
	}
	if nobody := context.Cause(ctx); job.CodeOf(nobody) == job.Unavailable {
		return nobody // and so the client's context was ended
	}
	var e *job.Error
	if errors.As(err, &e) && e.Code == job.Unavailable && unreachable(e) {
		return &exitError{exitUnavailable, fmt.Sprintf("%s; the run was accepted and is not lost: `muster run logs -f %s` follows it once a node is back", c.nobodyAnswers(e), id)}
	}
	return err
}

// sayWhyItWaits tells a person who waits for a run that does not start what it waits for. The returned function ends that.
func (c *cli) sayWhyItWaits(ctx context.Context, k *client.Client, id job.RunID) (silent func()) {
	if !c.human() {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-ctx.Done():
			return
		case <-time.After(c.patience):
		}
		e, err := k.Explain(ctx, id)
		if err != nil || e.State == job.Running || e.State.Terminal() {
			return // not worth an error: whoever waits hears of the run itself
		}
		c.say("%s", clip("the run is "+e.State.String()+". "+strings.Join(e.Explanation, " "), 1024))
	}()
	return func() {
		cancel()
		<-done
	}
}

// sayEnd tells a person how a run ended.
func (c *cli) sayEnd(r *job.Run) {
	var b strings.Builder
	fmt.Fprintf(&b, "run %s %s", r.ID, r.State)
	if r.Reason != job.NoReason {
		fmt.Fprintf(&b, " (%s)", r.Reason)
	}
	if t := c.took(r.StartedAt, r.FinishedAt); t != "" {
		fmt.Fprintf(&b, " after %s", t)
	}
	if r.Attempt > 1 {
		fmt.Fprintf(&b, ", attempt %d", r.Attempt)
	}
	if r.Error != "" {
		b.WriteString(": " + r.Error)
	}
	c.say("%s", clip(clean(b.String()), 1024))
}

// ended is the exit code that the end of a run has. Its story has been told.
func ended(r *job.Run) error {
	if r.State == job.Succeeded {
		return nil
	}
	return &exitError{code: exitRunFailed}
}

// piece is a piece of output as a line of JSON, in the words of the API.
type piece struct {
	Attempt uint32 `json:"attempt,omitempty"`
	Offset  int64  `json:"offset"`
	Stream  string `json:"stream,omitempty"`
	Text    string `json:"text,omitempty"`
	Bytes   []byte `json:"bytes,omitempty"` // what is not UTF-8
	Missing int64  `json:"missing,omitempty"`
}

func (c *cli) printPiece(e client.OutputEvent) error {
	p := piece{Attempt: e.Attempt, Offset: e.Offset, Stream: e.Stream, Missing: e.Missing}
	if utf8.Valid(e.Data) {
		p.Text = string(e.Data)
	} else {
		p.Bytes = e.Data
	}
	enc := json.NewEncoder(c.stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(p)
}
