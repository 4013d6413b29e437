package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/timetable"
)

const shownTicks = 3

// verdict is what validate and apply say of one document.
type verdict struct {
	File      string        `json:"file"`
	Namespace string        `json:"namespace,omitempty"`
	Name      string        `json:"name,omitempty"`
	Result    string        `json:"result"` // valid, invalid; created, changed, unchanged, failed
	Version   uint64        `json:"version,omitempty"`
	Effective *bool         `json:"effective,omitempty"` // of an applied job: false while its schedule has not reached the cluster
	Schedule  string        `json:"schedule,omitempty"`  // in words
	DryRun    bool          `json:"dry_run,omitempty"`
	NextTicks []job.Instant `json:"next_ticks,omitempty"`
	Error     *verdictError `json:"error,omitempty"`

	zone *job.Schedule
}

type verdictError struct {
	Code   job.Code `json:"code"`
	Reason string   `json:"reason,omitempty"`
	Field  string   `json:"field,omitempty"`
	Detail string   `json:"detail"`
}

func (c *cli) validateCommand() *cobra.Command {
	var f fileFlags
	cmd := &cobra.Command{
		Use: "validate -f FILE [flags]", Short: "Check job documents, without a cluster",
		Long: "Check job documents as a node would, without asking one, and show when they would tick next.",
		Args: takes(),
		RunE: func(*cobra.Command, []string) error { return c.validate(f) },
	}
	f.add(cmd.Flags())
	return cmd
}

func (c *cli) validate(f fileFlags) error {
	sources, err := c.documents(f)
	if err != nil {
		return err
	}
	var verdicts []*verdict
	var errs []error
	for i := range sources {
		v := c.newVerdict(&sources[i])
		if v.Result = "valid"; sources[i].err != nil {
			v.Result = "invalid"
			errs = append(errs, sources[i].err)
		}
		verdicts = append(verdicts, v)
	}
	if err := c.printVerdicts(verdicts); err != nil {
		return err
	}
	if c.human() {
		c.say("%s valid, %d invalid", count(len(verdicts)-len(errs), "document"), len(errs))
	}
	return failure(errs)
}

// newVerdict says what is known of a document by itself.
func (c *cli) newVerdict(s *source) *verdict {
	v := &verdict{File: s.file}
	if s.doc != nil {
		v.Namespace, v.Name = s.doc.Namespace, s.doc.Name
	}
	if v.fail(c, s.err); s.err != nil || s.doc.Schedule == nil {
		return v
	}
	v.zone = s.doc.Schedule
	if t, err := timetable.Parse(*s.doc.Schedule); err == nil {
		v.Schedule = t.Describe()
	}
	v.NextTicks, _ = c.nextTicks(s.doc.Schedule, shownTicks) // it was parsed before
	return v
}

func (v *verdict) fail(c *cli, err error) {
	if err == nil {
		return
	}
	v.Error = &verdictError{Detail: c.sentence(err), Code: job.CodeOf(err)}
	if e := job.AsError(err); e.Code != job.Internal {
		v.Error.Reason, v.Error.Field = e.Reason, e.Field
	} else if exitCode(err) == exitUsage {
		v.Error.Code = job.Invalid
	}
}

// printVerdicts writes one line for each document, with its next ticks below, and errors to stderr.
func (c *cli) printVerdicts(verdicts []*verdict) error {
	return c.print(answer{
		value: listOf(verdicts),
		names: func() (names []string) {
			for _, v := range verdicts {
				if v.Error == nil {
					names = append(names, v.Name)
				}
			}
			return names
		},
		table: func(b *strings.Builder, color bool) {
			for _, v := range verdicts {
				v.write(c, b, color)
			}
		},
	})
}

func (v *verdict) write(c *cli, b *strings.Builder, color bool) {
	name := v.Namespace + "/" + v.Name
	if v.Name == "" {
		name = v.File
	}
	result := v.Result
	if v.DryRun && v.Error == nil && result != "unchanged" {
		result = "would be " + result
	}
	if code := map[string]string{"created": "32", "changed": "33", "valid": "32", "invalid": "31", "failed": "31"}[v.Result]; color && code != "" {
		result = "\x1b[" + code + "m" + result + "\x1b[0m"
	}
	fmt.Fprintf(b, "%s %s", clean(name), result)
	if v.Version > 0 {
		fmt.Fprintf(b, " (version %d)", v.Version)
	}
	b.WriteByte('\n')
	if v.Error != nil {
		where := ""
		if v.Name != "" {
			where = v.File + ": "
		}
		fmt.Fprintf(b, "    %s\n", clean(where+v.Error.Detail))
		return
	}
	if v.Effective != nil && !*v.Effective {
		b.WriteString("    stored, but its schedule has not reached the cluster yet; it will\n")
	}
	if v.Schedule != "" {
		fmt.Fprintf(b, "    %s\n", clean(v.Schedule))
	}
	for _, at := range v.NextTicks {
		fmt.Fprintf(b, "    %s\n", c.tickWords(v.zone, at))
	}
}
