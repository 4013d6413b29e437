package timetable

import (
	"fmt"
	"regexp"
	"strings"
)

const crontabFields = 5

// cutSchedule parts "17 * * * * root command" into its time fields, with single blanks, and the rest.
func cutSchedule(text string) (when, rest string, ok bool) {
	if strings.HasPrefix(text, "@") {
		when, rest = cutBlank(text)
		return strings.ToLower(when), rest, rest != ""
	}
	var f [crontabFields]string
	for i := range f {
		if f[i], text = cutBlank(text); !strings.ContainsAny(f[i], "*?0123456789") && i < 3 {
			return "", "", false // only months and weekdays have names
		}
	}
	return strings.Join(f[:], " "), text, text != ""
}

// cutBlank parts text at its first blanks.
func cutBlank(text string) (word, rest string) {
	i := strings.IndexAny(text, " \t")
	if i < 0 {
		return text, ""
	}
	return text[:i], strings.TrimLeft(text[i:], " \t")
}

// splitPercent gives a command's % signs their meaning: the first ends the command and begins its standard input, where
// each further one is a line break; "\%" is the sign itself.
func splitPercent(text string) (command, stdin string) {
	var out [2]strings.Builder
	part := 0
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\\' && i+1 < len(text) && text[i+1] == '%':
			i++
			out[part].WriteByte('%')
		case text[i] == '%' && part == 0:
			part = 1
		case text[i] == '%':
			out[part].WriteByte('\n')
		default:
			out[part].WriteByte(text[i])
		}
	}
	command, stdin = strings.TrimRight(out[0].String(), " \t"), out[1].String()
	if stdin != "" && !strings.HasSuffix(stdin, "\n") {
		stdin += "\n"
	}
	return command, stdin
}

var (
	userName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*\$?$`)

	// What comments say of the columns: Debian's own files and their many descendants.
	saysSystem = regexp.MustCompile(`(?i)system-wide crontab|username fields?|/etc/cron\.d\b|\bdow\s+user(-?name)?\s+command|\*\s+user(-?name)?\s+command`)
	saysUser   = regexp.MustCompile(`(?i)\bdow\s+command|\*\s+command`)
)

// Users that are no commands. Names such as mail, man or backup are both.
var accounts = map[string]bool{"root": true, "daemon": true, "nobody": true, "www-data": true, "apache": true, "nginx": true,
	"postgres": true, "mysql": true, "redis": true, "munin": true, "logcheck": true, "smmsp": true, "_apt": true}

// settleForm finds out whether there is a user column, if the caller does not know. A line settles it that has no name
// where a user would stand, or nothing after it; next what the comments say; next an account that every system has.
func (p *crontabParser) settleForm() {
	p.out.Form = p.opts.Form
	if p.out.Form != AnyCrontab {
		return
	}
	var comments strings.Builder
	account, entries := false, 0
	for _, l := range p.lines {
		text := strings.TrimSpace(l.text)
		switch {
		case l.long || text == "":
		case strings.HasPrefix(text, "#"):
			comments.WriteString(text + "\n")
		default:
			if _, _, ok := crontabVariable(text); ok {
				continue
			}
			when, rest, ok := cutSchedule(text)
			if _, err := parsePattern(when); !ok || err != nil && when != "@reboot" {
				continue
			}
			entries++
			user, command := cutBlank(rest)
			if !userName.MatchString(user) || command == "" {
				p.out.Form = UserCrontab
				return
			}
			account = account || accounts[user]
		}
	}
	switch {
	case saysSystem.MatchString(comments.String()):
		p.out.Form = SystemCrontab
	case saysUser.MatchString(comments.String()):
		p.out.Form = UserCrontab
	case account:
		p.out.Form = SystemCrontab
	default:
		p.out.Form = UserCrontab
		if entries > 0 {
			p.out.Notes = append(p.out.Notes,
				"It is read as a user's crontab, without a user column: if it has one, say that it is a system crontab.")
		}
	}
}

// uniqueName suggests a name that no other entry has: after the program, else after the comment.
func (p *crontabParser) uniqueName(e CrontabEntry) string {
	name := nameOfCommand(e.Command[2])
	if name == "" {
		name = nameFrom(e.Comment)
	}
	if name == "" {
		name = fmt.Sprintf("line-%d", e.Line)
	}
	unique := name
	for p.taken[unique] > 0 {
		p.taken[name]++
		unique = fmt.Sprintf("%s-%d", name, p.taken[name])
	}
	p.taken[unique] = 1
	return unique
}
