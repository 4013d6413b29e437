//go:build unix

// Command run starts a private PostgreSQL and a private Redis whose data stays in a directory, and then a command that
// finds them in MUSTER_POSTGRES and MUSTER_REDIS. When the command ends, they end. Without a command it prints the two and
// goes on until Ctrl-C. For make up, and for CI.
//
// A server that ends by itself, or that you kill, stays down until the signal HUP: that starts what does not run. The
// processes are in the files DIR/pid (of this program), DIR/postgres/pid and DIR/redis/pid; DIR/env is for a shell to read.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/musterhq/muster/internal/servers"
)

func main() {
	dir := flag.String("dir", "", "keep the data in this directory; default: a new one, which goes with the servers")
	durable := flag.Bool("durable", false, "wait for the disk at each commit; with --dir always")
	settings := map[string]string{}
	flag.Func("set", "give PostgreSQL the setting `NAME=VALUE`; can be repeated", func(s string) error {
		name, value, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("write NAME=VALUE")
		}
		settings[name] = value
		return nil
	})
	missing := flag.Bool("missing", false, "only print what is not installed")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: run [--dir DIR | --durable] [--set NAME=VALUE...] [COMMAND ARGUMENTS...]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if *missing {
		for _, p := range servers.Missing() {
			fmt.Println(p)
		}
		return
	}
	code, err := run(servers.PostgresOptions{Dir: *dir, Durable: *durable || *dir != "", Settings: settings}, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// server is what PostgreSQL and Redis have in common.
type server interface {
	Start(context.Context) error
	PID() int
	Close() error
}

func run(o servers.PostgresOptions, command []string) (code int, err error) {
	dir := o.Dir
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	ctx := context.Background()
	p, r, err := start(ctx, o)
	if err != nil {
		return 1, err
	}
	all := map[string]server{"PostgreSQL": p, "Redis": r}
	var files []string
	defer func() {
		for _, s := range all {
			err = errors.Join(err, s.Close())
		}
		for _, f := range files { // now, that nothing runs
			os.Remove(f)
		}
	}()
	settings := []string{"MUSTER_POSTGRES=" + p.URL, "MUSTER_REDIS=" + r.URL}
	if dir != "" {
		for name, text := range map[string]string{
			"pid": strconv.Itoa(os.Getpid()) + "\n",
			"env": "export '" + strings.Join(settings, "'\nexport '") + "'\n",
		} {
			file := filepath.Join(dir, name)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				return 1, err
			}
			files = append(files, file)
		}
	}
	var c *exec.Cmd
	var ended chan error // never, without a command
	if len(command) == 0 {
		fmt.Println(strings.Join(settings, "\n"))
	} else {
		c = exec.Command(command[0], command[1:]...)
		c.Env = append(os.Environ(), settings...)
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C comes by us, once
		if err := c.Start(); err != nil {
			return 1, err
		}
		ended = make(chan error, 1)
		go func() { ended <- c.Wait() }()
	}

	down := map[string]bool{} // what is known to be
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case err := <-ended:
			exit := (*exec.ExitError)(nil)
			if errors.As(err, &exit) {
				return max(exit.ExitCode(), 1), nil
			}
			return 0, err
		case s := <-signals:
			switch {
			case s == syscall.SIGHUP:
				for name, s := range all {
					if s.PID() != 0 {
						continue
					}
					if err := s.Start(ctx); err != nil {
						fmt.Fprintln(os.Stderr, err)
						continue
					}
					down[name] = false
					fmt.Printf("%s is started again, as process %d\n", name, s.PID())
				}
			case c == nil:
				return 0, nil
			default:
				c.Process.Signal(syscall.SIGTERM)
			}
		case <-look.C:
			for name, s := range all {
				if !down[name] && s.PID() == 0 {
					down[name] = true
					fmt.Printf("%s has ended\n", name)
				}
			}
		}
	}
}

// start starts both. As root, the servers' users may not be let into the directory (below /root, for example): then it
// becomes a link to one that they may enter.
func start(ctx context.Context, o servers.PostgresOptions) (*servers.Postgres, *servers.Redis, error) {
	dir := o.Dir
	within := func(name string) string { return "" }
	if dir != "" {
		real, err := filepath.EvalSymlinks(dir)
		if os.IsNotExist(err) {
			os.Remove(dir) // a link to what is gone
			if err = os.MkdirAll(dir, 0o711); err == nil {
				real, err = filepath.EvalSymlinks(dir)
			}
		}
		if err == nil && os.Geteuid() == 0 { // on the way to what others own
			err = os.Chmod(real, 0o711)
		}
		if err != nil {
			return nil, nil, err
		}
		within = func(name string) string { return filepath.Join(real, name) }
		if pid := runningIn(dir); pid != 0 {
			return nil, nil, fmt.Errorf("process %d runs the servers in %s already", pid, dir)
		}
	}
	inside := o
	inside.Dir = within("postgres")
	p, err := servers.StartPostgres(ctx, inside)
	if info, _ := os.Lstat(dir); errors.Is(err, servers.ErrClosed) && info != nil && info.IsDir() {
		if err := linkElsewhere(dir, within("")); err != nil {
			return nil, nil, err
		}
		return start(ctx, o)
	}
	if err != nil {
		return nil, nil, err
	}
	r, err := servers.StartRedis(ctx, servers.RedisOptions{Dir: within("redis")})
	if err != nil {
		return nil, nil, errors.Join(err, p.Close())
	}
	return p, r, nil
}

func runningIn(dir string) int {
	b, _ := os.ReadFile(filepath.Join(dir, "pid"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	if pid > 1 && syscall.Kill(pid, 0) == nil {
		return pid
	}
	return 0
}

func linkElsewhere(dir, real string) error {
	elsewhere, err := os.MkdirTemp("/var/tmp", "muster-up-")
	if err != nil {
		return err
	}
	fmt.Printf("The servers' users may not enter %s: the data is in %s\n", dir, elsewhere)
	os.Remove(filepath.Join(real, "postgres"))
	if err := os.Remove(dir); err != nil {
		return fmt.Errorf("make %s a link to %s: %w", dir, elsewhere, err)
	}
	return os.Symlink(elsewhere, dir)
}
