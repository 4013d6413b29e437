package main

import (
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/job/timetable"
)

// build describes this binary, from what the Go tool wrote into it: nothing has to be passed to the linker.
type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Time     string `json:"time,omitempty"` // of the revision
	Modified bool   `json:"modified"`       // the tree differed from it
	Go       string `json:"go"`
	Platform string `json:"platform"`
	TZData   string `json:"tzdata"` // two nodes whose versions differ may disagree about a future tick
}

func thisBuild() build {
	b := build{Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, TZData: timetable.TZDataVersion}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Say which binary this is", Args: takes(),
		RunE: func(*cobra.Command, []string) error {
			b := thisBuild()
			return c.print(answer{
				value: b,
				names: func() []string { return []string{b.Version} },
				table: func(w *strings.Builder, color bool) {
					var s sheet
					s.add("muster", b.Version)
					revision := b.Revision
					if b.Modified {
						revision += ", modified"
					}
					s.add("revision", revision)
					s.add("built with", b.Go+" for "+b.Platform)
					s.add("time zones", b.TZData)
					s.write(w, color)
				},
			})
		},
	}
}

const completionHelp = `Write a completion script for your shell to stdout.

    bash        source <(muster completion bash)
    zsh         muster completion zsh > "${fpath[1]}/_muster"
    fish        muster completion fish > ~/.config/fish/completions/muster.fish
    powershell  muster completion powershell | Out-String | Invoke-Expression`

func (c *cli) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use: "completion SHELL", Short: "Write a completion script for a shell", Long: completionHelp,
		Args: takes("SHELL"), ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(c.stdout, true)
			case "zsh":
				return root.GenZshCompletion(c.stdout)
			case "fish":
				return root.GenFishCompletion(c.stdout, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(c.stdout)
			}
			return usageErrorf("there is no completion for %q; use %s", clip(args[0], 64), listOr(shells))
		},
	}
}
