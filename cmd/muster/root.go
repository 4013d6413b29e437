package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const rootHelp = `Muster runs jobs: on a schedule, on demand, on many machines.

Try it on this machine:

    muster dev                                  a node and a worker in one process
    muster run submit --follow -- echo hello    run a command on it
    muster apply -f job.yaml                    define a job
    muster job list

For three nodes on three machines: muster cluster init --help.

See also: muster help exit-codes, muster help environment, muster help times.`

const environmentHelp = `Settings come from a file, the environment and flags. A flag wins over the
environment, and that over the file.

Every flag can stand in a YAML file that --config (or MUSTER_CONFIG) names, by
its name without the dashes. One file may serve several commands; a name that no
command has is refused.

    address: http://10.0.0.1:8080,http://10.0.0.2:8080
    namespace: billing
    worker-slots: 4
    allow-exec: [/usr/local/bin/*, /opt/jobs/**]

In the environment the flag --worker-slots is MUSTER_WORKER_SLOTS; of a flag that
can be repeated the values stand there separated by commas. An empty variable
counts as not set. The ones you will want:

    MUSTER_ADDRESS     --address, the nodes' API addresses
    MUSTER_TOKEN       --token, the credential; or MUSTER_TOKEN_FILE, a file of it
    MUSTER_CA          --ca, the certificate authority of a cluster that uses TLS
    MUSTER_NAMESPACE   --namespace
    MUSTER_OUTPUT      --output
    NO_COLOR           --no-color, with any value
    TZ                 the zone in which times are shown

What a worker tells its work about itself (MUSTER_JOB, MUSTER_ATTEMPT,
MUSTER_PAYLOAD, MUSTER_TASK and so on) is never taken for a flag, so muster can be
called from within a run. MUSTER_NAMESPACE is then the run's namespace.
`

const timesHelp = `Where a flag takes a time (--since, --until, --run-at) write one of

    2026-01-31T09:00:00Z        RFC 3339, exact
    2026-01-31 09:00            on the clock of your zone (TZ)
    2026-01-31                  midnight there
    90m, 12h, 7d, 2w            a span: ago, or with --run-at from now
    now

Tables show times in your zone. With -o json or yaml they are exact, in UTC.
`

// run parses and executes one command line and answers the exit code.
func (c *cli) run(ctx context.Context, args []string) int {
	root := c.rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	// What a signal broke off is reported as that, whatever error it came out as.
	var own *exitError
	if cause := new(interrupted); errors.As(context.Cause(ctx), cause) && !errors.As(err, &own) {
		err = *cause
	}
	c.report(err)
	return exitCode(err)
}

const (
	groupRun   = "run"
	groupWork  = "work"
	groupOther = "other"
)

func (c *cli) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "muster COMMAND", Short: "A distributed job scheduler", Long: rootHelp,
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return c.settle(cmd) },
		Args:              cobra.ArbitraryArgs, RunE: groupHelp,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetIn(c.stdin)
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	root.SetFlagErrorFunc(flagError)
	root.SetUsageTemplate(usageTemplate)
	c.globalFlags(root.PersistentFlags())
	root.AddGroup(&cobra.Group{ID: groupRun, Title: "Processes:"}, &cobra.Group{ID: groupWork, Title: "Jobs and runs:"},
		&cobra.Group{ID: groupOther, Title: "Everything else:"})
	for _, g := range []struct {
		id       string
		commands []*cobra.Command
	}{
		{groupRun, c.processCommands()},
		{groupWork, c.workCommands()},
		{groupOther, []*cobra.Command{c.migrateCommand(), c.benchCommand(), c.versionCommand(), c.completionCommand()}},
	} {
		for _, cmd := range g.commands {
			cmd.GroupID = g.id
			root.AddCommand(cmd)
		}
	}
	root.SetHelpCommandGroupID(groupOther)
	root.AddCommand(topic("exit-codes", "What the exit codes mean", exitCodesHelp),
		topic("environment", "Settings in a file and in the environment", environmentHelp),
		topic("times", "How to write times", timesHelp))
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.Use, help.Short = "help [COMMAND]", "Explain a command or a topic"
		help.Long = "Explain a command, as its --help does, or a topic: exit-codes, environment or times."
	}
	finish(root)
	c.completeFlag(root, "output", func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return formsOf(cmd), cobra.ShellCompDirectiveNoFileComp
	})
	return root
}

// usageTemplate is cobra's, without the second line of usage that it gives a command with children.
const usageTemplate = `Usage:
  {{.UseLine}}{{if gt (len .Aliases) 0}}

Aliases:
  {{.NameAndAliases}}{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableSubCommands}}{{$commands := .Commands}}{{if eq (len .Groups) 0}}

Commands:{{range $commands}}{{if (or .IsAvailableCommand (eq .Name "help"))}}
  {{rpad .Name .NamePadding }} {{.Short}}{{end}}{{end}}{{else}}{{range $group := .Groups}}

{{.Title}}{{range $commands}}{{if (and (eq .GroupID $group.ID) (or .IsAvailableCommand (eq .Name "help")))}}
  {{rpad .Name .NamePadding }} {{.Short}}{{end}}{{end}}{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableInheritedFlags}}

Flags of every command:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}
`

// topic is a page of help. A command that cannot be run and has no children is listed by cobra as such.
func topic(name, short, text string) *cobra.Command {
	return &cobra.Command{Use: name, Short: short, Long: strings.TrimSuffix(text, "\n")}
}

func (c *cli) globalFlags(f *pflag.FlagSet) {
	f.StringSliceVar(&c.addresses, "address", []string{"http://127.0.0.1:8080"}, "`URL` of a node's API, or several with commas between")
	f.Lookup("address").DefValue = "http://127.0.0.1:8080" // without the brackets of a list
	f.StringVar(&c.ca, "ca", "", "`FILE` of the cluster's certificate authority; addresses then mean https://")
	f.StringVar(&c.token, "token", "", "`CREDENTIAL` for the API")
	f.StringVar(&c.tokenFile, "token-file", "", "`FILE` that holds the credential")
	f.StringVar(&c.namespace, "namespace", "default", "`NAME` of the namespace to work in")
	f.StringVarP(&c.format, "output", "o", formatTable, "`FORM` of the answer: table, json, yaml or name")
	f.BoolVar(&c.noColor, "no-color", false, "no colours, as with NO_COLOR")
	f.StringVar(&c.config, "config", "", "`FILE` with settings (see muster help environment)")
}

// finish gives every command what all have in common.
func finish(cmd *cobra.Command) {
	cmd.DisableFlagsInUseLine = true
	cmd.Flags().SortFlags = false
	cmd.InitDefaultHelpFlag()
	if h := cmd.Flags().Lookup("help"); h != nil {
		h.Usage = "explain the command"
	}
	if cmd.HasSubCommands() && cmd.Run == nil && cmd.RunE == nil {
		cmd.RunE = groupHelp
	}
	for _, child := range cmd.Commands() {
		finish(child)
	}
}

// groupHelp answers a command that only groups others: with its help, or for a word that is none of theirs with the
// nearest one. (cobra would print the help and succeed, which hides a slip from a script.)
func groupHelp(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	return unknownCommand(cmd, args[0])
}

func unknownCommand(cmd *cobra.Command, word string) error {
	var names []string
	for _, child := range cmd.Commands() {
		if !child.Hidden {
			names = append(names, child.Name())
		}
	}
	hint := fmt.Sprintf("see `%s --help`", cmd.CommandPath())
	if near := nearest(word, names); near != "" {
		hint = fmt.Sprintf("did you mean `%s %s`?", cmd.CommandPath(), near)
	}
	return usageErrorf("%s has no command %q; %s", cmd.CommandPath(), clip(word, 64), hint)
}

// flagError puts pflag's errors into our form, with the nearest flag for a misspelt one.
func flagError(cmd *cobra.Command, err error) error {
	var missing *pflag.NotExistError
	if errors.As(err, &missing) {
		word := missing.GetSpecifiedName()
		var names []string
		add := func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		}
		cmd.Flags().VisitAll(add)
		cmd.InheritedFlags().VisitAll(add)
		dash := "--"
		if missing.GetSpecifiedShortnames() != "" {
			dash = "-"
		} else if near := nearest(word, names); near != "" {
			return usageErrorf("%s has no flag %s%s; did you mean --%s?", cmd.CommandPath(), dash, clip(word, 64), near)
		}
		return usageErrorf("%s has no flag %s%s; see `%s --help`", cmd.CommandPath(), dash, clip(word, 64), cmd.CommandPath())
	}
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		return usageErrorf("--%s: %q is not %s", invalid.GetFlag().Name, clip(invalid.GetValue(), 64), kindOf(invalid.GetFlag()))
	}
	return usageErrorf("%v; see `%s --help`", err, cmd.CommandPath())
}

// kindOf says what a flag takes.
func kindOf(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "bool":
		return "true or false"
	case "duration":
		return "a duration; write one such as 90s or 10m"
	case "int", "uint32", "int64":
		return "a number"
	}
	return "a value for it"
}

// takes says which arguments a command has, and names the one that is missing.
func takes(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		rest := len(names) > 0 && strings.HasSuffix(names[len(names)-1], "...")
		switch {
		case len(args) < len(names):
			return usageErrorf("%s: %s is missing; usage: %s", cmd.CommandPath(), strings.TrimSuffix(names[len(args)], "..."), cmd.UseLine())
		case len(args) > len(names) && !rest:
			return usageErrorf("%s: %q is too much; usage: %s", cmd.CommandPath(), clip(args[len(names)], 64), cmd.UseLine())
		}
		return nil
	}
}

// takesAtMost is takes for one argument that may be left out.
func takesAtMost(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return takes(name)(cmd, args)
		}
		return nil
	}
}

// nearest is the word of the list that a slip of the fingers could have meant; "" if there is none.
func nearest(word string, words []string) string {
	best, at := "", max(2, len(word)/3)+1
	slices.Sort(words)
	for _, w := range words {
		d := distance(strings.ToLower(word), w)
		if len(word) > 2 && strings.HasPrefix(w, strings.ToLower(word)) {
			d = min(d, 1)
		}
		if d < at && d < len(w) {
			best, at = w, d
		}
	}
	return best
}

// distance counts the characters to insert, delete or replace.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			above := row[j+1]
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			row[j+1] = min(cost, above+1, row[j]+1)
			diagonal = above
		}
	}
	return row[len(b)]
}
