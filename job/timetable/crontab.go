package timetable

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/musterhq/muster/job"
)

// Limits of a crontab. Real ones are far below them.
const (
	MaxCrontab      = 1 << 20 // bytes
	MaxCrontabLines = 20_000
	MaxCrontabLine  = 8 << 10 // bytes; a longer line is skipped
	MaxCrontabEnv   = 64      // variables; further ones are skipped
)

// CrontabForm tells the two kinds of crontab apart: in a system crontab a user name stands before the command.
type CrontabForm string

const (
	AnyCrontab    CrontabForm = ""       // find out by looking
	SystemCrontab CrontabForm = "system" // /etc/crontab and /etc/cron.d/*
	UserCrontab   CrontabForm = "user"   // what `crontab -l` prints
)

// CrontabOptions say what a crontab itself does not. The zero value will do.
type CrontabOptions struct {
	// Form is worth stating where it is known: a caller who read the file from /etc knows that it is SystemCrontab.
	Form CrontabForm
	// TimeZone is the zone of the machine that the crontab is from; "" means UTC. CRON_TZ in the file wins.
	TimeZone string
	// User is whose crontab it is, for UserCrontab.
	User string
}

// A Crontab is what ParseCrontab made of one.
type Crontab struct {
	Form    CrontabForm // what it was read as
	Entries []CrontabEntry
	Skipped []SkippedLine
	Notes   []string // what the reader of all entries should know, in whole sentences
}

// A CrontabEntry is one line of a crontab that could become a job.
type CrontabEntry struct {
	Name     string // suggested; a valid job name, and no other entry has it
	Schedule job.Schedule
	User     string            // whom cron ran it as; "" if unknown
	Dir      string            // HOME, where cron would start it, if the crontab sets it
	Env      map[string]string // nil if the crontab sets nothing; entries may share it: copy before changing
	Command  []string          // the shell with "-c" and the line
	Stdin    string            // what an unescaped % began
	Comment  string            // the comment directly above, without its signs
	Line     int               // counted from 1
	Text     string            // the line as it stands there
	Notes    []string          // what could not be carried over, in whole sentences
}

// A SkippedLine is one that became nothing.
type SkippedLine struct {
	Line int
	Text string // cut short if it is long
	Why  string
}

// ParseCrontab reads a crontab. A line that it cannot carry over is skipped and named, and does not stop the others;
// errors are for a crontab that cannot be read at all.
//
// The variables of a crontab hold for the lines below them and end up in each entry. Those that speak to cron itself
// do not: SHELL becomes the command's shell, CRON_TZ the schedule's zone, HOME also the directory; MAILTO and its like
// are noted and left out.
func ParseCrontab(r io.Reader, opts CrontabOptions) (*Crontab, error) {
	switch opts.Form {
	case AnyCrontab, SystemCrontab, UserCrontab:
	default:
		return nil, job.InvalidField("form", "%.64q is not a form of crontab; use system or user", string(opts.Form))
	}
	if _, err := findZone("time_zone", opts.TimeZone); err != nil {
		return nil, err
	}
	p := crontabParser{opts: opts, zone: opts.TimeZone, taken: map[string]int{}}
	if err := p.read(r); err != nil {
		return nil, err
	}
	p.settleForm()
	for _, l := range p.lines {
		p.line(l)
	}
	p.noteGenerals()
	return &p.out, nil
}

type crontabParser struct {
	opts    CrontabOptions
	lines   []crontabLine
	out     Crontab
	zone    string // where the schedules of the lines to come count
	badZone string // why no schedule can be read, since the last CRON_TZ
	env     map[string]string
	carried map[string]string // what of env goes to commands; nil until needed; shared by the entries between two assignments
	comment []string          // the comment lines directly above
	taken   map[string]int    // names in use, with the number to try next behind each
}

type crontabLine struct {
	number int
	text   string
	long   bool
}

func (p *crontabParser) read(r io.Reader) error {
	in := bufio.NewReader(io.LimitReader(r, MaxCrontab+1))
	size := 0
	for number := 1; ; number++ {
		text, err := in.ReadString('\n')
		if size += len(text); size > MaxCrontab {
			return job.InvalidField("crontab", "the crontab is longer than %d bytes; split it", MaxCrontab)
		}
		if number == 1 {
			text = strings.TrimPrefix(text, "\ufeff")
		}
		if text != "" {
			if number > MaxCrontabLines {
				return job.InvalidField("crontab", "the crontab has more than %d lines; split it", MaxCrontabLines)
			}
			text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
			p.lines = append(p.lines, crontabLine{number, text, len(text) > MaxCrontabLine})
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read crontab: %w", err)
		}
	}
}

func (p *crontabParser) line(l crontabLine) {
	text := strings.TrimSpace(l.text)
	switch {
	case l.long:
		p.skip(l, fmt.Sprintf("the line has %d bytes; %d are allowed", len(l.text), MaxCrontabLine))
	case text == "":
		p.comment = nil
	case strings.HasPrefix(text, "#"):
		if text = strings.TrimSpace(strings.TrimLeft(text, "#")); text == "" || drawing.MatchString(text) {
			p.comment = nil // what stood above was not about the next line
		} else {
			p.comment = append(p.comment, text)
		}
	case !utf8.ValidString(text):
		p.skip(l, "the line is not valid UTF-8")
	case strings.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
		p.skip(l, "the line contains a control character")
	default:
		if name, value, ok := crontabVariable(text); ok {
			p.set(l, name, value)
		} else if why := p.entry(l, text); why != "" {
			p.skip(l, why)
		}
		p.comment = nil
	}
}

// drawing matches the lines of a comment that explain a crontab's columns.
var drawing = regexp.MustCompile(`^[*|. -]*(---|\||\* )|^m\s+h\s`)

func (p *crontabParser) skip(l crontabLine, why string) {
	p.out.Skipped = append(p.out.Skipped, SkippedLine{l.number, shorten(l.text), why})
}

func shorten(s string) string {
	const limit = 200
	if s = strings.ToValidUTF8(s, "?"); len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "..."
}

// variable matches NAME = VALUE, the name perhaps in quotes; what is left of it is a single word, so that no line with a
// time on it looks like one.
var variable = regexp.MustCompile(`^(?:"([^"]*)"|'([^']*)'|([^\s="']+))\s*=\s*(.*)$`)

// crontabVariable reads an assignment. Quotes may surround the value; nothing in it is expanded.
func crontabVariable(text string) (name, value string, ok bool) {
	m := variable.FindStringSubmatch(text)
	if m == nil {
		return "", "", false
	}
	name, value = m[1]+m[2]+m[3], m[4]
	if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
		value = value[1 : n-1]
	}
	return name, value, true
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func (p *crontabParser) set(l crontabLine, name, value string) {
	switch {
	case !variableName.MatchString(name):
		p.skip(l, fmt.Sprintf("%.64q is not the name of an environment variable", name))
		return
	case name == "CRON_TZ":
		p.badZone = ""
		if _, err := findZone("CRON_TZ", value); err != nil {
			p.badZone = fmt.Sprintf("CRON_TZ on line %d: %s", l.number, job.AsError(err).Message)
			p.skip(l, job.AsError(err).Message)
		}
		p.zone = value
		return
	}
	if _, known := p.env[name]; !known && len(p.env) >= MaxCrontabEnv {
		p.skip(l, fmt.Sprintf("the crontab sets more than %d variables", MaxCrontabEnv))
		return
	}
	if p.env == nil {
		p.env = map[string]string{}
	}
	p.env[name] = value
	p.carried = nil // the entries above keep theirs
}

// entry reads a line that should be a job, and says why if it is none.
func (p *crontabParser) entry(l crontabLine, text string) string {
	e := CrontabEntry{Line: l.number, Text: l.text, User: p.opts.User, Comment: strings.TrimSpace(strings.Join(p.comment, " "))}
	if rest, ok := strings.CutPrefix(text, "-"); ok && rest != "" && strings.ContainsAny(rest[:1], "*0123456789") {
		text = rest // SUSE's cron: do not write to syslog
	}
	when, command, ok := cutSchedule(text)
	switch {
	case !ok:
		return "the line is neither a comment, nor an assignment, nor five time fields and a command"
	case when == "@reboot":
		return "@reboot has no meaning in a cluster, which never starts as a whole; start it from the machine's init system"
	case p.badZone != "":
		return "its time zone is unknown: " + p.badZone
	}
	if p.out.Form == SystemCrontab {
		e.User, command = cutBlank(command)
		if !userName.MatchString(e.User) {
			return fmt.Sprintf("%.64q is not a user name, which a system crontab has before the command", e.User)
		}
	}
	command, e.Stdin = splitPercent(command)
	if strings.TrimSpace(command) == "" {
		return "there is no command"
	}
	e.Schedule = job.Schedule{Cron: when, TimeZone: p.zone}
	if _, err := Parse(e.Schedule); err != nil {
		return job.AsError(err).Message
	}
	e.Command = []string{p.shell(), "-c", command}
	p.carryEnv(&e)
	p.noteSchedule(&e)
	if e.Stdin != "" {
		e.Notes = append(e.Notes, "A job has no standard input: what follows the first % is left out; let the command read it from a file or a here-document.")
	}
	e.Name = p.uniqueName(e)
	p.out.Entries = append(p.out.Entries, e)
	return ""
}

func (p *crontabParser) shell() string {
	if s := p.env["SHELL"]; s != "" {
		return s
	}
	return "/bin/sh"
}

// Variables that cron itself obeys, and what becomes of them. What is not listed goes to the command.
var cronVariables = map[string]string{
	"SHELL":                     "",
	"MAILTO":                    "MAILTO=%s is left out: output is kept with the run and not mailed.",
	"MAILFROM":                  "MAILFROM=%s is left out: output is kept with the run and not mailed.",
	"CONTENT_TYPE":              "CONTENT_TYPE=%s is left out: output is kept with the run and not mailed.",
	"CONTENT_TRANSFER_ENCODING": "CONTENT_TRANSFER_ENCODING=%s is left out: output is kept with the run and not mailed.",
	"LOGNAME":                   "LOGNAME=%s is left out: cron sets it itself.",
	"USER":                      "USER=%s is left out: cron sets it itself.",
	"RANDOM_DELAY":              "RANDOM_DELAY=%s is left out: a tick comes at its exact time.",
}

func (p *crontabParser) carryEnv(e *CrontabEntry) {
	if p.carried == nil && len(p.env) > 0 {
		p.carried = maps.Clone(p.env)
		maps.DeleteFunc(p.carried, func(name, _ string) bool { _, cronsOwn := cronVariables[name]; return cronsOwn })
	}
	if len(p.carried) > 0 {
		e.Env = p.carried
	}
	for _, name := range slices.Sorted(maps.Keys(p.env)) {
		value := p.env[name]
		if note := cronVariables[name]; note != "" && value != "" { // MAILTO="" asks for what is done here anyway
			e.Notes = append(e.Notes, fmt.Sprintf(note, shorten(value)))
		}
		switch name {
		case "HOME":
			e.Dir = value
		case "TZ":
			e.Notes = append(e.Notes, fmt.Sprintf("TZ=%s goes to the command only, as in cron: the schedule counts in %s.", shorten(value), zoneName(p.zone)))
		}
	}
}

func zoneName(name string) string {
	if name == "" {
		return "UTC"
	}
	return name
}

// fromStep is a field item such as 5/15.
var fromStep = regexp.MustCompile(`(^|[ ,])[0-9]+/`)

func (p *crontabParser) noteSchedule(e *CrontabEntry) {
	if fromStep.MatchString(e.Schedule.Cron) {
		e.Notes = append(e.Notes, fmt.Sprintf(
			"In %q a step follows a single number: here it counts up to the field's end, whereas some crons ignore it.", e.Schedule.Cron))
	}
}

func (p *crontabParser) noteGenerals() {
	if len(p.out.Entries) == 0 {
		return
	}
	note := func(format string, args ...any) { p.out.Notes = append(p.out.Notes, fmt.Sprintf(format, args...)) }
	noZone, noHome := false, false
	for _, e := range p.out.Entries {
		noZone = noZone || e.Schedule.TimeZone == ""
		noHome = noHome || e.Dir == ""
	}
	if noZone {
		note("The crontab names no time zone: times are taken as UTC; name the machine's zone if it has another.")
	}
	if noHome {
		note("Cron starts commands in their user's home directory: give a job a directory if its command rests on that.")
	}
	note("Cron forgets a tick that comes while it is down, but a job runs the newest such tick by default: set catch_up to none to be like cron.")
}
