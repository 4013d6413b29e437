package main

import (
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/spf13/cobra"
)

const (
	deployDir      = "../../deploy"
	operationsPage = "../../docs/operations.md"
)

// What stands in the files for operators is what they type. None of it may be a command or a flag that is not there, or a
// setting that nobody reads.

// checkLine finds out what a command line of muster asks for, and fails the test if there is no such thing.
func checkLine(t *testing.T, where string, words []string) *cobra.Command {
	t.Helper()
	c := newCLI(nil, nil, nil, nil)
	root := c.rootCommand()
	cmd, rest, err := root.Find(words)
	if err != nil || cmd == root && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		t.Errorf("%s: muster %s: there is no such command", where, strings.Join(words, " "))
		return nil
	}
	if cmd.HasSubCommands() && cmd.RunE == nil {
		t.Errorf("%s: muster %s: this is a group of commands, not one", where, strings.Join(words, " "))
	}
	for _, w := range rest {
		name, _, _ := strings.Cut(w, "=")
		switch {
		case name == "--":
			return cmd
		case strings.HasPrefix(name, "--"):
			if cmd.Flags().Lookup(name[2:]) == nil && cmd.InheritedFlags().Lookup(name[2:]) == nil {
				t.Errorf("%s: muster %s: there is no flag %s", where, strings.Join(words, " "), name)
			}
		case len(name) == 2 && name[0] == '-':
			if cmd.Flags().ShorthandLookup(name[1:]) == nil && cmd.InheritedFlags().ShorthandLookup(name[1:]) == nil {
				t.Errorf("%s: muster %s: there is no flag %s", where, strings.Join(words, " "), name)
			}
		}
	}
	return cmd
}

func readText(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSystemdUnits(t *testing.T) {
	t.Parallel()
	for _, role := range []string{"server", "worker"} {
		unit := "muster-" + role + ".service"
		text := readText(t, deployDir, "systemd", unit)
		start := regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/muster (.*)$`).FindStringSubmatch(text)
		if start == nil {
			t.Fatalf("%s starts no muster", unit)
		}
		cmd := checkLine(t, unit, strings.Fields(start[1]))
		if cmd == nil || cmd.Name() != role {
			t.Fatalf("%s: %s", unit, start[1])
		}
		// The state directory of systemd and that of muster are one.
		if dir := regexp.MustCompile(`(?m)^StateDirectory=(.*)$`).FindStringSubmatch(text); dir == nil || !strings.Contains(start[1], "--data /var/lib/"+dir[1]+" ") {
			t.Errorf("%s: StateDirectory is not --data", unit)
		}
		env := readText(t, deployDir, "systemd", role+".env")
		settings := regexp.MustCompile(`(?m)^#?(MUSTER_[A-Z_]+)=`).FindAllStringSubmatch(env, -1)
		if len(settings) < 4 {
			t.Errorf("%s.env has %d settings", role, len(settings))
		}
		for _, m := range settings {
			flag := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(m[1], "MUSTER_")), "_", "-")
			if f := cmd.Flags().Lookup(flag); f == nil || f.Annotations[notConfigurable] != nil {
				t.Errorf("%s.env: %s: muster %s has no setting %s", role, m[1], role, flag)
			}
		}
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return
	}
	// It looks whether the programs are there, which on this machine others are.
	dir := t.TempDir()
	for _, role := range []string{"server", "worker"} {
		unit := "muster-" + role + ".service"
		text := strings.ReplaceAll(readText(t, deployDir, "systemd", unit), "/usr/local/bin/muster", "/bin/true")
		text = regexp.MustCompile(`(?m)^(User|Group)=.*`).ReplaceAllString(text, "$1=root")
		if err := os.WriteFile(filepath.Join(dir, unit), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(analyze, "verify", filepath.Join(dir, unit)).CombinedOutput(); err != nil || strings.Contains(string(out), unit) {
			t.Errorf("systemd-analyze verify %s: %v\n%s", unit, err, out)
		}
	}
}

func TestCompose(t *testing.T) {
	t.Parallel()
	values, err := yaml.Parser().Unmarshal([]byte(readText(t, deployDir, "compose", "compose.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	services, volumes := values["services"].(map[string]any), values["volumes"].(map[string]any)
	roles := map[string]int{}
	for name, v := range services {
		s := v.(map[string]any)
		var words []string
		for _, w := range s["command"].([]any) {
			words = append(words, w.(string))
		}
		if name == "init" { // a line of the shell
			_, line, _ := strings.Cut(words[0], "muster ")
			words = strings.Fields(line)
		}
		if cmd := checkLine(t, "compose.yaml, "+name, words); cmd != nil {
			roles[cmd.Name()]++
		}
		for _, v := range s["volumes"].([]any) {
			if volume, _, _ := strings.Cut(v.(string), ":"); !has(volumes, volume) {
				t.Errorf("compose.yaml, %s: there is no volume %s", name, volume)
			}
		}
		if i := slices.Index(words, "--name"); name != "init" && (i < 0 || words[i+1] != name) {
			t.Errorf("compose.yaml: the service %s has another --name", name)
		}
		if i := slices.Index(words, "--join"); name != "init" && (i < 0 || words[i+1] != "n1:8080,n2:8080,n3:8080") {
			t.Errorf("compose.yaml, %s: --join does not list the nodes", name)
		}
	}
	if roles["server"] != 3 || roles["worker"] != 2 || roles["init"] != 1 {
		t.Errorf("compose.yaml has %v", roles)
	}
	docker := readText(t, deployDir, "compose", "Dockerfile")
	for _, want := range []string{"CGO_ENABLED=0", "\nUSER 10001", `ENTRYPOINT ["/usr/local/bin/muster"]`} {
		if !strings.Contains(docker, want) {
			t.Errorf("the Dockerfile does not say %q", want)
		}
	}
}

// The nodes of compose.yaml get settings in stores.yaml, which the services there answer to.
func TestComposeStores(t *testing.T) {
	t.Parallel()
	read := func(name string) map[string]any {
		values, err := yaml.Parser().Unmarshal([]byte(readText(t, deployDir, "compose", name)))
		if err != nil {
			t.Fatal(err)
		}
		return values["services"].(map[string]any)
	}
	nodes, services := read("compose.yaml"), read("stores.yaml")
	c := newCLI(nil, nil, nil, nil)
	server, _, err := c.rootCommand().Find([]string{"server"})
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range services {
		if name == "postgres" || name == "redis" {
			continue
		}
		if !has(nodes, name) {
			t.Errorf("stores.yaml: compose.yaml has no service %s", name)
		}
		settings := v.(map[string]any)["environment"].(map[string]any)
		for setting, value := range settings {
			flag := strings.ToLower(strings.TrimPrefix(setting, "MUSTER_"))
			if server.Flags().Lookup(flag) == nil {
				t.Errorf("stores.yaml, %s: muster server has no setting %s", name, setting)
			}
			if u, err := url.Parse(regexp.MustCompile(`\$\{.*?\}`).ReplaceAllString(value.(string), "x")); err != nil || !has(services, u.Hostname()) || u.Hostname() != flag {
				t.Errorf("stores.yaml, %s: %s is %v, where no service is", name, setting, value)
			}
		}
		if len(settings) != 2 {
			t.Errorf("stores.yaml: %s has %d settings", name, len(settings))
		}
	}
	for _, name := range []string{"n1", "n2", "n3"} {
		if !has(services, name) {
			t.Errorf("stores.yaml does not reach %s", name)
		}
	}
}

func has(m map[string]any, key string) bool { _, ok := m[key]; return ok }

// Every command of the operators' page is one; the tests of internal/systemtest follow its runbooks.
func TestOperationsPage(t *testing.T) {
	t.Parallel()
	lines := commandLines(readText(t, operationsPage))
	if len(lines) < 20 {
		t.Errorf("%d commands found in %s", len(lines), operationsPage)
	}
	for _, line := range lines {
		checkLine(t, "docs/operations.md", line)
	}
}

// commandLines finds the command lines of muster in a page: those behind a prompt, and those in backquotes.
func commandLines(page string) (all [][]string) {
	page = strings.ReplaceAll(page, "\\\n", " ")
	for _, m := range regexp.MustCompile("(?m)^ {4}\\w*\\$ (?:sudo (?:-u \\w+ )?)?muster (.*)$|`muster ([^`]*)`").FindAllStringSubmatch(page, -1) {
		line, _, _ := strings.Cut(m[1]+m[2], " #")
		line, _, _ = strings.Cut(line, " > ")
		all = append(all, strings.Fields(line))
	}
	return all
}

// The test above must be able to fail.
func TestCommandLines(t *testing.T) {
	t.Parallel()
	got := commandLines("text `muster a --b` and `c`\n\n    $ muster d \\\n        --e # why\n    n1$ sudo -u muster muster f > g\n    n1$ other muster h\n    muster i\n")
	want := [][]string{{"a", "--b"}, {"d", "--e"}, {"f"}}
	if !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("%q", got)
	}
	for _, line := range got {
		c := newCLI(nil, nil, nil, nil)
		if cmd, _, err := c.rootCommand().Find(line); err == nil && cmd.HasParent() {
			t.Errorf("muster %v is a command", line)
		}
	}
}
