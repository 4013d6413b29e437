package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/timetable"
)

const importHelp = `Turn the lines of a crontab into job documents.

The documents go to stdout, or with -o into a directory, a file each; --apply
stores them in the cluster as well. Above each stands the line that it came from.
What could not be carried over is said on stderr, and is no failure: read it.

The jobs do what cron did: their runs may overlap, and what the crontab sets is
their environment. Unlike cron, a tick that came while nobody could run it is made
up for, once; catch_up: none turns that off. muster dev allows the jobs everything. A
muster worker must allow their shell (--allow-exec), each user they name (--allow-user)
and, if the crontab sets them, variables such as PATH (--allow-env PATH).

    crontab -l | muster import crontab - --user
    muster import crontab /etc/crontab --system -o jobs/`

type crontabFlags struct {
	user, system bool
	zone         string
	prefix       string
	dir          string
	force        bool
	apply        bool
}

func (c *cli) importCommand() *cobra.Command {
	group := &cobra.Command{Use: "import COMMAND", Short: "Bring jobs over from elsewhere"}
	var f crontabFlags
	cmd := &cobra.Command{
		Use: "crontab FILE [flags]", Short: "Turn a crontab into job documents", Long: importHelp, Args: takes("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error { return c.importCrontab(cmd.Context(), args[0], f) },
	}
	fs := cmd.Flags()
	fs.BoolVar(&f.user, "user", false, "it is a user's crontab, as crontab -l prints it (default: find out)")
	fs.BoolVar(&f.system, "system", false, "it is a system crontab, with a user name before each command, as in /etc")
	fs.StringVar(&f.zone, "time-zone", "", "`ZONE` of the machine it is from, such as Europe/Berlin (default: this machine's)")
	fs.StringVar(&f.prefix, "prefix", "", "`TEXT` to put before the jobs' names, such as cron-")
	// The documents are YAML whatever happens, so -o can say here where they go.
	fs.StringVarP(&f.dir, "output", "o", "", "`DIR` to write a file for each job into, instead of stdout")
	fs.BoolVar(&f.force, "force", false, "with -o: replace files that are there")
	fs.BoolVar(&f.apply, "apply", false, "store the jobs in the cluster, too")
	ofOneCall(fs, "user", "system", "output", "force", "apply", "prefix")
	group.AddCommand(cmd)
	return group
}

// imported is one line of a crontab as a job.
type imported struct {
	doc  *job.Document
	yaml []byte // with the line as a comment
}

func (c *cli) importCrontab(ctx context.Context, path string, f crontabFlags) error {
	o := timetable.CrontabOptions{TimeZone: f.zone}
	switch {
	case f.user && f.system:
		return usageErrorf("--user and --system contradict each other; give one of them")
	case f.user:
		o.Form = timetable.UserCrontab
	case f.system:
		o.Form = timetable.SystemCrontab
	}
	if o.TimeZone == "" {
		o.TimeZone = c.machineZone()
		c.say("times are read as %s, the zone of this machine; --time-zone names another", o.TimeZone)
	}
	data, err := c.readInput(path, timetable.MaxCrontab, "split it")
	if err != nil {
		return err
	}
	tab, err := timetable.ParseCrontab(bytes.NewReader(data), o)
	if err != nil {
		return err
	}
	where := path
	if path == "-" {
		where = "stdin"
	}
	jobs, notes := c.importEntries(tab, where, f.prefix)
	if len(jobs) == 0 && len(tab.Skipped)+len(notes) == 0 {
		return usageErrorf("%s holds no line that cron would run", where)
	}
	if err := c.writeImported(jobs, f); err != nil {
		return err
	}
	for _, s := range tab.Skipped {
		c.say("line %d was left out: %s", s.Line, s.Why)
	}
	for _, n := range append(tab.Notes, notes...) {
		c.say("%s", n)
	}
	form := map[timetable.CrontabForm]string{timetable.SystemCrontab: "a system crontab", timetable.UserCrontab: "a user's crontab"}[tab.Form]
	c.say("%s, read as %s: %s, %d left out", where, form, count(len(jobs), "job"), len(tab.Entries)+len(tab.Skipped)-len(jobs))
	if f.apply {
		return c.applyImported(ctx, where, jobs)
	}
	return nil
}

// importEntries makes documents, and notes on what they lack.
func (c *cli) importEntries(tab *timetable.Crontab, where, prefix string) (jobs []imported, notes []string) {
	lines, order := map[string][]string{}, []string(nil) // most notes are true of many lines
	for i := range tab.Entries {
		e := &tab.Entries[i]
		d := c.crontabDocument(e, prefix)
		d.Normalize()
		err := d.Validate()
		if err == nil {
			err = c.checkDocument(d)
		}
		var text []byte
		if err == nil {
			text, err = d.YAML()
		}
		if err != nil {
			notes = append(notes, fmt.Sprintf("line %d was left out: %s", e.Line, c.sentence(err)))
			continue
		}
		e.Notes = slices.DeleteFunc(e.Notes, func(n string) bool { return strings.HasPrefix(n, stdinNote) })
		for _, n := range e.Notes {
			if lines[n] == nil {
				order = append(order, n)
			}
			lines[n] = append(lines[n], strconv.Itoa(e.Line))
		}
		jobs = append(jobs, imported{d, append(crontabComment(e, where), text...)})
	}
	for _, n := range order {
		where := "line "
		if len(lines[n]) > 1 {
			where = "lines "
		}
		notes = append(notes, where+strings.Join(lines[n], ", ")+": "+n)
	}
	return jobs, notes
}

// stdinNote begins the note that an entry's input is lost. Here it is not: see crontabDocument.
const stdinNote = "A job has no standard input"

// crontabDocument makes the job that does what cron did.
func (c *cli) crontabDocument(e *timetable.CrontabEntry, prefix string) *job.Document {
	d := &job.Document{
		Name: prefix + e.Name, Description: clip(clean(e.Comment), 1024), Schedule: &e.Schedule, Overlap: job.OverlapAllow,
		Exec: &job.Exec{Command: e.Command, Dir: e.Dir, User: e.User, Env: maps.Clone(e.Env)},
	}
	if c.namespaceGiven {
		d.Namespace = c.namespace
	}
	if e.Stdin != "" && len(e.Command) == 3 {
		// A run's input is its payload, which is JSON. Cron's is any text, so a shell of our own passes it on; the command and
		// its shell come to it as arguments, which need no quoting.
		if d.Exec.Env == nil {
			d.Exec.Env = map[string]string{}
		}
		d.Exec.Env[stdinVariable] = e.Stdin
		d.Exec.Command = []string{"/bin/sh", "-c", `printf %s "$` + stdinVariable + `" | "$0" -c "$1"`, e.Command[0], e.Command[2]}
	}
	return d
}

const stdinVariable = "CRON_STDIN"

// crontabComment shows the line that a document came from. It is somebody's text: cleaned, it cannot end the comment.
func crontabComment(e *timetable.CrontabEntry, where string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s, line %d:\n#   %s\n", clean(where), e.Line, clean(e.Text))
	for _, n := range e.Notes {
		fmt.Fprintf(&b, "# Note: %s\n", clean(n))
	}
	return b.Bytes()
}

func (c *cli) writeImported(jobs []imported, f crontabFlags) error {
	if f.dir == "" {
		var b bytes.Buffer
		for i, j := range jobs {
			if i > 0 {
				b.WriteString("---\n")
			}
			b.Write(j.yaml)
		}
		_, err := c.stdout.Write(b.Bytes())
		return err
	}
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return fileError("the directory", f.dir, err)
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if f.force {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	for _, j := range jobs {
		// A valid name has no slash in it and does not begin with a dot.
		path := filepath.Join(f.dir, j.doc.Name+".yaml")
		file, err := os.OpenFile(path, flags, 0o644)
		if errors.Is(err, fs.ErrExist) {
			return &exitError{exitConflict, fmt.Sprintf("the file %s exists; --force replaces it", path)}
		}
		if err != nil {
			return fileError("the file", path, err)
		}
		_, err = file.Write(j.yaml)
		if err := errors.Join(err, file.Close()); err != nil {
			return fileError("the file", path, err)
		}
		fmt.Fprintln(c.stdout, path)
	}
	return nil
}

// machineZone is the IANA name of this machine's zone, which cron reads its times in. Go does not tell it.
func (c *cli) machineZone() string {
	names := []string{strings.TrimPrefix(c.getenv("TZ"), ":")}
	if b, err := os.ReadFile("/etc/timezone"); err == nil {
		names = append(names, strings.TrimSpace(string(b)))
	}
	if target, err := filepath.EvalSymlinks("/etc/localtime"); err == nil {
		if _, name, ok := strings.Cut(target, "/zoneinfo/"); ok {
			names = append(names, name)
		}
	}
	for _, name := range names {
		switch name {
		case "", "Local":
			continue
		case "Etc/UTC", "Etc/UCT", "Zulu", "Universal", "Etc/Zulu", "Etc/Universal":
			return "UTC"
		}
		// Asked of the timetable, whose zones count; a name that it lacks would be refused later.
		if _, err := timetable.Parse(job.Schedule{Cron: "@daily", TimeZone: name}); err == nil {
			return name
		}
	}
	return "UTC"
}
