package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Every page of help is kept as it reads, so that a change of words is seen.
func TestHelp(t *testing.T) {
	t.Parallel()
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		path := strings.Fields(cmd.CommandPath())[1:]
		r := world{}.muster(t, append(path, "--help")...)
		if r.code != exitOK || r.err != "" {
			t.Errorf("%v --help: exit code %d, stderr %q", path, r.code, r.err)
		}
		golden(t, "help/"+strings.Join(append([]string{"muster"}, path...), "-")+".txt", r.out)
		for _, child := range cmd.Commands() {
			walk(child)
		}
	}
	c := newCLI(nil, nil, nil, nil)
	walk(c.rootCommand())
}

// What people see first fits a terminal of 100 columns, apart from the list of flags.
func TestHelpFits(t *testing.T) {
	t.Parallel()
	for _, topic := range []string{"exit-codes", "environment", "times"} {
		for line := range strings.Lines(world{}.must(t, "help", topic)) {
			if columnsOf(strings.TrimSuffix(line, "\n")) > 84 {
				t.Errorf("help %s: too wide: %s", topic, line)
			}
		}
	}
}

// A command must say what its arguments are, and every flag what it does.
func TestEveryFlagIsExplained(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	c := newCLI(nil, nil, nil, nil)
	root := c.rootCommand()
	knownFlags(root, known)
	if !known["worker-slots"] || known["help"] || known["config"] || known["file"] {
		t.Errorf("settings that may stand in a file: %v", known)
	}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" {
			t.Errorf("%s has no short explanation", cmd.CommandPath())
		}
		for _, line := range strings.Split(cmd.LocalFlags().FlagUsages(), "\n") {
			if line != "" && len(strings.Fields(line)) < 3 {
				t.Errorf("%s: a flag is not explained: %s", cmd.CommandPath(), line)
			}
		}
		for _, child := range cmd.Commands() {
			walk(child)
		}
	}
	walk(root)
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out := (world{}).must(t, "completion", shell); !strings.Contains(out, "muster") {
			t.Errorf("%s: %q", shell, out)
		}
	}
	r := world{}.muster(t, "completion", "tcsh")
	if r.code != exitUsage || !strings.Contains(r.err, `no completion for "tcsh"`) {
		t.Errorf("tcsh: %+v", r)
	}
	// Nobody who presses TAB wants to read that no node runs.
	r = world{env: []string{"MUSTER_ADDRESS=http://127.0.0.1:1"}}.muster(t, cobra.ShellCompRequestCmd, "job", "show", "")
	if r.code != exitOK || strings.Contains(r.out, "no node") {
		t.Errorf("completion without a node: %+v", r)
	}
}
