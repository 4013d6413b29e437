// Command muster is the one binary of Muster: `muster dev` is a node with a worker in one process, `muster server` a node of
// a cluster, `muster worker` an agent, and everything else asks a node's API. This package is flags, signals, output and exit codes, and nothing else:
// whatever a command does is done by package client, by internal/app or by job and its timetable.
//
// A command is a function that takes a *cli, which holds all that it may touch of the outside: the streams, the
// environment, the clock. So tests run commands as they are, many at once, without a process each.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/musterhq/muster/internal/app"
)

func main() {
	ctx, stop := untilSignal(context.Background())
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ())
	stop()
	os.Exit(code)
}

// run is the program: what main does, without the process around it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env []string) int {
	c := newCLI(stdin, stdout, stderr, env)
	defer c.close()
	return c.run(ctx, args)
}

// interrupted is the cause of a context that a signal ended.
type interrupted struct{ os.Signal }

func (i interrupted) Error() string { return "interrupted by signal: " + i.Signal.String() }

// untilSignal ends the context at the first SIGINT or SIGTERM, which asks for a soft stop. The second one exits at once:
// whoever asks twice does not want to wait.
func untilSignal(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case s := <-signals:
			cancel(interrupted{s})
		case <-quit:
			return
		}
		select {
		case <-signals:
			os.Exit(exitInterrupted)
		case <-quit:
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(quit)
		<-done
		cancel(nil)
	}
}

// cli is one invocation.
type cli struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            []string
	now            func() time.Time
	zone           *time.Location // for times that people read

	// The global flags.
	addresses []string
	ca        string
	token     string
	tokenFile string
	namespace string
	format    string
	noColor   bool
	config    string

	namespaceGiven bool // by flag, file or environment, rather than by default
	addressGiven   bool // likewise
	addressTyped   bool // --address stands on the command line itself
	color          bool

	patience time.Duration // how long whoever waits for a run is not told why it does not start

	inspect func(path string) (*app.SnapshotReport, error)                        // reads a snapshot's file
	recover func(context.Context, app.RecoverOptions) (*app.RecoverReport, error) // makes a cluster of a directory

	atEnd []func() // what lets go of connections
}

func newCLI(stdin io.Reader, stdout, stderr io.Writer, env []string) *cli {
	c := &cli{stdin: stdin, stdout: stdout, stderr: stderr, env: env, now: time.Now, zone: time.Local, patience: 5 * time.Second,
		inspect: app.InspectSnapshot, recover: app.Recover}
	// The environment that was handed over counts, not the process's, and a zone that is not known is no reason to fail.
	if name := c.getenv("TZ"); name != "" {
		if zone, err := time.LoadLocation(name); err == nil {
			c.zone = zone
		}
	}
	return c
}

func (c *cli) close() {
	for _, f := range c.atEnd {
		f()
	}
}

// getenv is the last setting of a variable, as in a process.
func (c *cli) getenv(name string) string {
	for i := len(c.env) - 1; i >= 0; i-- {
		if len(c.env[i]) > len(name) && c.env[i][len(name)] == '=' && c.env[i][:len(name)] == name {
			return c.env[i][len(name)+1:]
		}
	}
	return ""
}
