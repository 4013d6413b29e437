package timetable

import (
	"errors"
	"io"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/musterhq/muster/job"
)

func parseFile(t *testing.T, name string, opts CrontabOptions) *Crontab {
	t.Helper()
	f, err := os.Open("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := ParseCrontab(f, opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func parseText(t *testing.T, text string, opts CrontabOptions) *Crontab {
	t.Helper()
	c, err := ParseCrontab(strings.NewReader(text), opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestDebianCrontab reads /etc/crontab as Debian 12 installs it.
func TestDebianCrontab(t *testing.T) {
	t.Parallel()
	c := parseFile(t, "debian.crontab", CrontabOptions{TimeZone: "Europe/Berlin"})
	if c.Form != SystemCrontab || len(c.Skipped) != 0 {
		t.Errorf("read as %q, skipped %v", c.Form, c.Skipped)
	}
	want := []struct{ name, cron, command string }{
		{"cron.hourly", "17 * * * *", "cd / && run-parts --report /etc/cron.hourly"},
		{"cron.daily", "25 6 * * *", "test -x /usr/sbin/anacron || { cd / && run-parts --report /etc/cron.daily; }"},
		{"cron.weekly", "47 6 * * 7", "test -x /usr/sbin/anacron || { cd / && run-parts --report /etc/cron.weekly; }"},
		{"cron.monthly", "52 6 1 * *", "test -x /usr/sbin/anacron || { cd / && run-parts --report /etc/cron.monthly; }"},
	}
	if len(c.Entries) != len(want) {
		t.Fatalf("got %d entries", len(c.Entries))
	}
	for i, w := range want {
		e := c.Entries[i]
		if e.Name != w.name || e.Schedule != (job.Schedule{Cron: w.cron, TimeZone: "Europe/Berlin"}) || e.User != "root" ||
			!reflect.DeepEqual(e.Command, []string{"/bin/sh", "-c", w.command}) || e.Line != 18+i || e.Comment != "" || len(e.Notes) != 0 ||
			!reflect.DeepEqual(e.Env, map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/sbin:/bin:/usr/sbin:/usr/bin"}) {
			t.Errorf("entry %d is %+v", i, e)
		}
	}
}

func TestUserCrontab(t *testing.T) {
	t.Parallel()
	c := parseFile(t, "user.crontab", CrontabOptions{User: "alice"})
	if c.Form != UserCrontab {
		t.Errorf("read as %q", c.Form)
	}
	names := map[string]CrontabEntry{}
	for _, e := range c.Entries {
		names[e.Name] = e
		if e.User != "alice" || e.Dir != "/srv/app" || e.Command[0] != "/bin/bash" || e.Env["GREETING"] != "  hello world " || e.Env["LANG"] != "C.UTF-8" {
			t.Errorf("%s: user %q, directory %q, shell %q, environment %q", e.Name, e.User, e.Dir, e.Command[0], e.Env)
		}
		if _, ok := e.Env["MAILTO"]; ok || !strings.Contains(strings.Join(e.Notes, " "), "MAILTO=ops@example.com is left out") {
			t.Errorf("%s: MAILTO is not dealt with: %q", e.Name, e.Notes)
		}
	}
	for name, want := range map[string]struct{ cron, zone, command, stdin, note string }{
		"tar":      {"0 5 * * 1", "", "tar -zcf /var/backups/home.tgz /home/", "", ""},
		"rotate":   {"@daily", "", "/usr/local/bin/rotate.sh >/dev/null 2>&1", "", ""},
		"mail":     {"0 22 * * 1-5", "", `mail -s "It's 10pm" joe`, "Joe,\n\nWhere are your kids?\n", "no standard input"},
		"expr":     {"33 22 * * *", "", "expr $(date +%s) / 60 / 60 / 24 % 9 > /dev/null || echo Wax the floor.", "", ""},
		"report":   {"30 9 * jan-mar sun", "", "python3 -u /srv/app/report.py --weekly", "", ""},
		"sync":     {"*/10 * * * *", "", "cd $HOME && nice -n 10 ./bin/sync --all", "", ""},
		"rotate-2": {"5/15 * * * *", "", "/usr/local/bin/rotate.sh --check", "", "some crons ignore it"},
		"artisan":  {"0 9 * * 7", "America/New_York", "/usr/bin/php artisan schedule:run", "", "the schedule counts in America/New_York"},
	} {
		e, ok := names[name]
		if !ok {
			t.Errorf("no entry is named %s", name)
			continue
		}
		if e.Schedule != (job.Schedule{Cron: want.cron, TimeZone: want.zone}) || e.Command[2] != want.command || e.Stdin != want.stdin ||
			!strings.Contains(strings.Join(e.Notes, " "), want.note) {
			t.Errorf("%s: schedule %+v\ncommand %q\nstdin %q\nnotes %q", name, e.Schedule, e.Command[2], e.Stdin, e.Notes)
		}
		delete(names, name)
	}
	for name := range names {
		t.Errorf("an entry is named %s", name)
	}
	if got := c.Entries[0].Comment; got != "Nightly backup of everything" {
		t.Errorf("the comment is %q", got)
	}
	if len(c.Skipped) != 2 || !strings.Contains(c.Skipped[0].Why, "@reboot") || c.Skipped[1].Line != 20 || !strings.Contains(c.Skipped[1].Why, "minute") {
		t.Errorf("skipped %+v", c.Skipped)
	}
}

func TestCrontabForm(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		text string
		want CrontabForm
	}{
		"empty":                               {"", UserCrontab},
		"root stands before a command":        {"0 5 * * * root /usr/bin/backup\n", SystemCrontab},
		"www-data stands before a command":    {"0 5 * * * www-data /usr/bin/backup\n", SystemCrontab},
		"@daily and root":                     {"@daily root /usr/bin/backup\n", SystemCrontab},
		"a path stands where a user would":    {"0 5 * * * /usr/bin/backup root\n", UserCrontab},
		"one line settles it":                 {"0 5 * * * root backup\n0 6 * * * ./backup now\n", UserCrontab},
		"nothing follows":                     {"0 5 * * * backup\n", UserCrontab},
		"a command with an argument, unclear": {"0 5 * * * echo hello\n", UserCrontab},
		"an unknown user, the comment helps":  {"# m h dom mon dow user  command\n0 5 * * * deploy /usr/bin/backup\n", SystemCrontab},
		"Debian's comment for users":          {"# m h  dom mon dow   command\n0 5 * * * root hello\n", UserCrontab},
		"a broken line does not settle it":    {"99 5 * * * /usr/bin/backup\n0 5 * * * root backup\n", SystemCrontab},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := parseText(t, c.text, CrontabOptions{}).Form; got != c.want {
				t.Errorf("read as %s; want %s", got, c.want)
			}
		})
	}
}

func TestCrontabLines(t *testing.T) {
	t.Parallel()
	// What a crontab's last line becomes: its command, or why it is skipped.
	for name, c := range map[string]struct {
		text string
		form CrontabForm
		want string
		why  string
	}{
		"tabs between the fields":          {"0\t5\t*\t*\t*\tbackup --all", UserCrontab, "backup --all", ""},
		"leading blanks":                   {"   0 5 * * * backup", UserCrontab, "backup", ""},
		"blanks inside the command stay":   {`0 5 * * * echo "a   b"`, UserCrontab, `echo "a   b"`, ""},
		"carriage returns":                 {"A=b\r\n0 5 * * * backup\r\n", UserCrontab, "backup", ""},
		"byte order mark":                  {"\ufeff0 5 * * * backup", UserCrontab, "backup", ""},
		"an assignment before the command": {"0 5 * * * A=b backup", UserCrontab, "A=b backup", ""},
		"equal signs in the command":       {"0 5 * * * backup --at=night", UserCrontab, "backup --at=night", ""},
		"hash in the command":              {"0 5 * * * backup # nightly", UserCrontab, "backup # nightly", ""},
		"escaped percent":                  {`0 5 * * * date +\%F`, UserCrontab, "date +%F", ""},
		"other backslashes stay":           {`0 5 * * * printf 'a\nb'`, UserCrontab, `printf 'a\nb'`, ""},
		"SUSE's dash":                      {"-0 5 * * * root backup", SystemCrontab, "backup", ""},
		"descriptor in capitals":           {"@Daily backup", UserCrontab, "backup", ""},
		"user column":                      {"0 5 * * * deploy backup now", SystemCrontab, "backup now", ""},
		"user column with a dollar":        {"0 5 * * * svc$ backup", SystemCrontab, "backup", ""},
		"no command":                       {"0 5 * * *", UserCrontab, "", "five time fields"},
		"no command behind the user":       {"0 5 * * * root", SystemCrontab, "", "no command"},
		"only standard input":              {"0 5 * * * %hello", UserCrontab, "", "no command"},
		"no user":                          {"0 5 * * * /usr/bin/backup now", SystemCrontab, "", "not a user name"},
		"hour 24":                          {"0 24 * * * backup", UserCrontab, "", "hour"},
		"a date that never comes":          {"0 0 31 2 * backup", UserCrontab, "", "never comes"},
		"random minutes":                   {"0~59 5 * * * backup", UserCrontab, "", "random"},
		"prose":                            {"please run the backup", UserCrontab, "", "neither a comment"},
		"anacron's form":                   {"1 5 cron.daily run-parts /etc/cron.daily", UserCrontab, "", "neither a comment"},
		"@reboot":                          {"@reboot backup", UserCrontab, "", "@reboot"},
		"@every is not cron's, but clear":  {"@every 5m", UserCrontab, "", "duration"},
		"NUL":                              {"0 5 * * * back\x00up", UserCrontab, "", "control character"},
		"escape sequence":                  {"0 5 * * * echo \x1b[2J", UserCrontab, "", "control character"},
		"invalid UTF-8":                    {"0 5 * * * back\xffup", UserCrontab, "", "UTF-8"},
		"too long":                         {"0 5 * * * " + strings.Repeat("x", MaxCrontabLine), UserCrontab, "", "bytes"},
		"a variable with a bad name":       {"BAD-NAME=1", UserCrontab, "", "environment variable"},
		"an unknown zone":                  {"CRON_TZ=Mars/Olympus", UserCrontab, "", "not a time zone"},
		"a line under an unknown zone":     {"CRON_TZ=Mars/Olympus\n0 5 * * * backup", UserCrontab, "", "CRON_TZ on line 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := parseText(t, c.text, CrontabOptions{Form: c.form})
			if c.why == "" {
				if len(got.Entries) != 1 || got.Entries[0].Command[2] != c.want || len(got.Skipped) != 0 {
					t.Errorf("got %+v", got)
				}
				return
			}
			if n := len(got.Skipped); len(got.Entries) != 0 || n == 0 || !strings.Contains(got.Skipped[n-1].Why, c.why) || len(got.Skipped[n-1].Text) > 300 {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestCrontabVariablesHoldBelow(t *testing.T) {
	t.Parallel()
	c := parseText(t, "0 1 * * * a\nX=1\n0 2 * * * b\n\"X\" = 2\nY=\n0 3 * * * c\n0 4 * * * d\n", CrontabOptions{})
	var got []map[string]string
	for _, e := range c.Entries {
		got = append(got, e.Env)
	}
	want := []map[string]string{nil, {"X": "1"}, {"X": "2", "Y": ""}, {"X": "2", "Y": ""}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestCrontabLimits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		text string
		opts CrontabOptions
	}{
		"too many bytes":   {strings.Repeat("# "+strings.Repeat("x", 1000)+"\n", 1100), CrontabOptions{}},
		"one endless line": {strings.Repeat("x", MaxCrontab+1), CrontabOptions{}},
		"too many lines":   {strings.Repeat("\n", MaxCrontabLines+1), CrontabOptions{}},
		"unknown zone":     {"", CrontabOptions{TimeZone: "Mars"}},
		"unknown form":     {"", CrontabOptions{Form: "both"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := ParseCrontab(strings.NewReader(c.text), c.opts); job.CodeOf(err) != job.Invalid {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("many variables", func(t *testing.T) {
		t.Parallel()
		var b strings.Builder
		for i := range 200 {
			b.WriteString("V" + strings.Repeat("x", i) + "=1\n")
		}
		b.WriteString("0 0 * * * a\n")
		c := parseText(t, b.String(), CrontabOptions{})
		if len(c.Entries[0].Env) != MaxCrontabEnv || len(c.Skipped) != 200-MaxCrontabEnv {
			t.Errorf("%d variables, %d skipped", len(c.Entries[0].Env), len(c.Skipped))
		}
	})
	t.Run("reading fails", func(t *testing.T) {
		t.Parallel()
		broken := errors.New("disk on fire")
		if _, err := ParseCrontab(io.MultiReader(strings.NewReader("0 0 * * * a\n"), failing{broken}), CrontabOptions{}); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
	})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestNameOfCommand(t *testing.T) {
	t.Parallel()
	for command, want := range map[string]string{
		"/usr/local/bin/backup.sh --all": "backup",
		"backup":                         "backup",
		"cd / && run-parts --report /etc/cron.hourly": "cron.hourly",
		"/usr/bin/python3 -u /srv/app/report.py":      "report",
		"python -m app.cleanup --old":                 "app.cleanup",
		"php -f /var/www/cron.php":                    "cron",
		"java -jar /opt/batch.jar":                    "batch",
		"bash -c 'echo hi'":                           "bash",
		"test -x /usr/bin/certbot -a \\! -d /run/systemd/system && perl -e 'sleep int(rand(43200))' && certbot -q renew": "certbot",
		"[ -x /usr/lib/php/sessionclean ] && if [ ! -d /run/systemd/system ]; then /usr/lib/php/sessionclean; fi":        "sessionclean",
		"if [ -x /sbin/check ] && [ $(date +%d) -le 7 ]; then /sbin/check --all; fi":                                     "check",
		"command -v debian-sa1 > /dev/null && debian-sa1 1 1":                                                            "debian-sa1",
		"A=1 B='x y' /usr/bin/env C=2 nice -n 10 ionice -c3 /opt/job":                                                    "job",
		"flock -n /tmp/lock timeout -k 5 10m /opt/job.sh >>/var/log/job.log 2>&1":                                        "job",
		"sudo -u www-data php /srv/artisan queue:work":                                                                   "artisan",
		"sleep $(( RANDOM % 60 )); /opt/job":                                                                             "job",
		"(cd /srv; ./run) | logger -t run":                                                                               "run",
		"`which backup` now":                                                                                             "which-backup",
		"\"$HOME/bin/daily job\"":                                                                                        "daily-job",
		"echo hello":                                                                                                     "",
		"":                                                                                                               "",
		"&& || ;;":                                                                                                       "",
		"--- '":                                                                                                          "",
		"$(":                                                                                                             "",
		strings.Repeat("x", 500):                                                                                         strings.Repeat("x", suggestedLength),
		"/opt/überprüfung":                                                                                               "berpr-fung",
	} {
		if got := nameOfCommand(command); got != want {
			t.Errorf("%.80s: got %q, want %q", command, got, want)
		}
	}
}

// jobName is the rule for job names; the check itself belongs to package job.
var jobName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

func TestCrontabNamesAreUnique(t *testing.T) {
	t.Parallel()
	c := parseText(t, strings.Repeat("0 0 * * * a\n", 3)+"0 0 * * * a-2\n0 0 * * * a-2\n# Say hello\n0 0 * * * echo hi\n\n0 0 * * * echo ho\n", CrontabOptions{})
	var names []string
	for _, e := range c.Entries {
		names = append(names, e.Name)
	}
	if got, want := strings.Join(names, " "), "a a-2 a-3 a-2-2 a-2-3 Say-hello line-9"; got != want {
		t.Errorf("got %s; want %s", got, want)
	}
}

// MAILTO="" asks cron for no mail. There is none, so there is nothing to say.
func TestCrontabEmptyMailto(t *testing.T) {
	t.Parallel()
	tab, err := ParseCrontab(strings.NewReader("MAILTO=\"\"\n* * * * * x\n"), CrontabOptions{Form: UserCrontab})
	if err != nil || len(tab.Entries) != 1 {
		t.Fatalf("%+v, %v", tab, err)
	}
	if e := tab.Entries[0]; len(e.Notes) != 0 || len(e.Env) != 0 {
		t.Errorf("notes %q, environment %v", e.Notes, e.Env)
	}
}
