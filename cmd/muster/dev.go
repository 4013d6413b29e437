package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/musterhq/muster/internal/app"
	"github.com/musterhq/muster/job"
)

const devHelp = `Run a node and a worker in one process, for trying Muster out and for developing
jobs. It serves loopback only, needs no credential, and lets jobs run any command
as you.

Everything it keeps is in --data; without the flag that is the directory
$XDG_DATA_HOME/muster/dev (~/.local/share/muster/dev).

Ctrl-C stops it softly: what runs may finish, or is given back. A second Ctrl-C
stops it at once.`

type devFlags struct {
	data, http  string
	workerSlots int
	noWorker    bool
	stores      storeFlags
	log         logFlags
}

func (c *cli) devCommand() *cobra.Command {
	var f devFlags
	cmd := &cobra.Command{
		Use: "dev [flags]", Short: "Run a node and a worker on this machine", Long: devHelp, Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkSlots(cmd, "worker-slots"); err != nil {
				return err
			}
			return c.dev(cmd.Context(), f)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.data, "data", "", "`DIR` that holds everything (default: see above)")
	fs.StringVar(&f.http, "http", "127.0.0.1:8080", "`HOST:PORT` of the API; port 0 takes a free one")
	fs.IntVar(&f.workerSlots, "worker-slots", 0, "`N` slots: how much runs at once (default: the number of CPUs)")
	fs.BoolVar(&f.noWorker, "no-worker", false, "a node only; start workers yourself")
	f.stores.add(fs)
	f.log.add(fs, "warn")
	return cmd
}

func (c *cli) dev(ctx context.Context, f devFlags) error {
	logger, err := f.log.logger(c)
	if err != nil {
		return err
	}
	if f.workerSlots == 0 {
		f.workerSlots = runtime.GOMAXPROCS(0)
	}
	if f.data, err = c.dataDir(f.data, "dev"); err != nil {
		return err
	}
	o := app.Options{
		DataDir: f.data, HTTP: f.http, LocalOnly: true, Version: thisBuild().Version, Logger: logger,
		WorkEnv: c.env, Ready: func(url string) { c.devBanner(url, f) },
	}
	f.stores.apply(&o)
	if err := o.Validate(); err != nil {
		return asFlag(err)
	}
	if !f.noWorker {
		o.Worker = &app.WorkerOptions{Slots: f.workerSlots}
	}
	defer c.sayStopping(ctx)()
	return processError(asFlag(app.Run(ctx, o)))
}

// sayStopping tells whoever stops a process that it was heard: work that runs may take its time. The returned function ends
// that.
func (c *cli) sayStopping(ctx context.Context) (stop func()) {
	return c.sayWhenStopped(ctx, "stopping once what runs has ended or is given back; Ctrl-C again stops at once")
}

func (c *cli) sayWhenStopped(ctx context.Context, text string) (stop func()) {
	told := make(chan struct{})
	forget := context.AfterFunc(ctx, func() {
		defer close(told)
		c.say("%s", text)
	})
	return func() {
		if !forget() { // it speaks, or has spoken
			<-told
		}
	}
}

// devBanner says where the node is and what to try. It goes to stdout, so that it can be waited for; logs go to stderr.
func (c *cli) devBanner(url string, f devFlags) {
	work := "no worker"
	if !f.noWorker {
		work = "a worker with " + count(f.workerSlots, "slot")
	}
	setup := ""
	if url != "http://127.0.0.1:8080" {
		setup = "    export MUSTER_ADDRESS=" + url + "\n"
	}
	fmt.Fprintf(c.stdout, `Muster %s is ready at %s
with %s, keeping its data in %s

Try, in another terminal:

%s    muster run submit --follow -- echo hello
    muster run list
    muster cluster status

Ctrl-C stops it; a second one stops it at once.
`, thisBuild().Version, url, work, clean(f.data), setup)
}

// dataDir is the absolute path of the directory that was asked for, or of our own place under the user's data.
func (c *cli) dataDir(dir, name string) (string, error) {
	if dir == "" {
		base := c.getenv("XDG_DATA_HOME")
		if home := c.getenv("HOME"); base == "" && home != "" {
			base = filepath.Join(home, ".local", "share")
		}
		if !filepath.IsAbs(base) {
			return "", usageErrorf("--data: neither XDG_DATA_HOME nor HOME says where data may be kept; name a directory")
		}
		dir = filepath.Join(base, "muster", name)
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find the data directory: %w", err)
	}
	if fi, err := os.Stat(path); err == nil && !fi.IsDir() {
		return "", usageErrorf("--data: %s is not a directory", path)
	}
	return path, nil
}

// processError gives the end of a process its exit code. The API's codes say what a caller can do; here nobody called, so
// apart from a wrong setting it failed.
func processError(err error) error {
	if err == nil || job.CodeOf(err) == job.Invalid {
		return err
	}
	text := err.Error()
	if e := job.AsError(err); e.Message != "" && e.Code != job.Internal {
		text = e.Message
	}
	return &exitError{exitFailed, text}
}

// logFlags are those of the commands that are processes.
type logFlags struct{ level, format string }

func (l *logFlags) add(fs *pflag.FlagSet, level string) {
	fs.StringVar(&l.level, "log-level", level, "`LEVEL` of what is logged: debug, info, warn or error")
	fs.StringVar(&l.format, "log-format", "text", "`FORM` of the log: text or json")
}

func (l *logFlags) logger(c *cli) (*slog.Logger, error) {
	var o slog.HandlerOptions
	var level slog.Level
	switch strings.ToLower(l.level) {
	case "debug", "info", "warn", "error":
		if err := level.UnmarshalText([]byte(l.level)); err != nil {
			return nil, err
		}
	default:
		return nil, usageErrorf("--log-level: %q is not a level; use debug, info, warn or error", clip(l.level, 64))
	}
	o.Level = level
	switch l.format {
	case "text":
		return slog.New(slog.NewTextHandler(c.stderr, &o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(c.stderr, &o)), nil
	}
	return nil, usageErrorf("--log-format: %q is not a format; use text or json", clip(l.format, 64))
}
