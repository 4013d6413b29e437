package systemtest

import (
	"encoding/json"
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

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// historyWriter is the first argument that turns the test's own binary into the command that its jobs run.
const historyWriter = "history-writer"

// exitFailedOnPurpose is how a command ends that was told to fail; the code means nothing to anyone else.
const exitFailedOnPurpose = 7

// writer is one such command: it notes that it starts, works for a while, and notes that it ends. Notes go to a file of
// their own, one write each, so that a killed writer leaves whole lines and none of them passes through Muster.
type writer struct {
	dir    string
	worker string // whose command it is, if there are several
	line   checker.Work
}

func writeHistory(args []string) int {
	fs := flag.NewFlagSet(historyWriter, flag.ContinueOnError)
	dir := fs.String("dir", "", "")
	work := fs.Duration("for", 0, "how long to work")
	child := fs.Duration("child", 0, "how long a process lives that is left beside")
	fail := fs.Uint("fail", 0, "how many attempts fail")
	echo := fs.Bool("echo", false, "what it was given is its result")
	failGiven := fs.String("fail-given", "", "it fails if it was given this")
	beside := fs.Int("beside", 0, "the life of the parent; set for the process that is left beside")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	w := writer{dir: *dir, line: checker.Work{Pid: os.Getpid(), ScheduledAt: os.Getenv("MUSTER_SCHEDULED_AT"), Job: os.Getenv("MUSTER_JOB"), Life: *beside, Given: os.Getenv(given)}}
	var err error
	if w.line.Run, err = job.ParseRunID(os.Getenv("MUSTER_RUN_ID")); err != nil {
		return 2
	}
	attempt, _ := strconv.ParseUint(os.Getenv("MUSTER_ATTEMPT"), 10, 32)
	fence, _ := strconv.ParseUint(os.Getenv("MUSTER_FENCE"), 10, 64)
	w.line.Attempt, w.line.Fence = uint32(attempt), job.Fence(fence)
	if *beside == 0 {
		w.line.Life = os.Getppid()
	}
	if name, err := os.ReadFile(workerFile(*dir, w.line.Life)); err == nil {
		w.worker = string(name)
	}
	if *beside != 0 {
		return w.beside(*work)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	if err := w.start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if *child > 0 {
		c := exec.Command(os.Args[0], historyWriter, "-dir", *dir, "-for", child.String(), "-beside", strconv.Itoa(w.line.Life))
		if err := c.Start(); err != nil {
			return 2
		}
		defer c.Wait()
	}
	select {
	case <-time.After(*work):
	case <-stop:
		w.line.Signal = int(syscall.SIGTERM)
		w.note(checker.End)
		return 128 + int(syscall.SIGTERM)
	}
	if *echo {
		if err := os.WriteFile(os.Getenv("MUSTER_RESULT_FILE"), asJSON(w.line.Given), 0o600); err != nil {
			return 2
		}
	}
	if w.line.Attempt <= uint32(*fail) || *failGiven != "" && w.line.Given == *failGiven {
		w.line.Code = exitFailedOnPurpose
	}
	if err := w.note(checker.End); err != nil {
		return 2
	}
	return w.line.Code
}

// given is the variable in which a document passes something on, for the command to note.
const given = "GIVEN"

// asJSON is a text as the JSON that it is, or as a JSON string.
func asJSON(text string) []byte {
	if json.Valid([]byte(text)) {
		return []byte(text)
	}
	b, err := json.Marshal(text)
	if err != nil {
		panic(err) // a string can be JSON
	}
	return b
}

// start notes the start. The lock says to the commands of later lives of the same worker that this one is alive, for as long as the kernel
// keeps its files open, and no longer.
func (w *writer) start() error {
	if err := w.lock(); err != nil {
		return err
	}
	if err := w.note(checker.Start); err != nil {
		return err
	}
	lives, err := filepath.Glob(w.lifeFile(0))
	if err != nil {
		return err
	}
	for _, name := range lives {
		if name == w.lifeFile(w.line.Life) {
			continue
		}
		if alive, err := held(name); err != nil {
			return err
		} else if alive {
			if w.line.Alive, err = strconv.Atoi(name[strings.LastIndexByte(name, '-')+1:]); err != nil {
				return err
			}
			w.note(checker.Stray)
			w.line.Alive = 0
		}
	}
	return nil
}

// beside is the process that a command leaves beside itself: if only the command is killed, it stays.
func (w *writer) beside(d time.Duration) int {
	if w.lock() != nil {
		return 2
	}
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if w.note(checker.Beat) != nil {
			return 2
		}
	}
	return 0
}

// lifeFile is locked by all that a life's commands are; 0 means the pattern for all lives of the same worker.
func (w *writer) lifeFile(life int) string {
	name := "life-" + w.worker + "-"
	if life == 0 {
		return filepath.Join(w.dir, name+"*")
	}
	return filepath.Join(w.dir, name+strconv.Itoa(life))
}

// workerFile says which worker a process is.
func workerFile(dir string, pid int) string { return filepath.Join(dir, "worker-"+strconv.Itoa(pid)) }

func (w *writer) lock() error {
	f, err := os.OpenFile(w.lifeFile(w.line.Life), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	fd := f.Fd()
	keepOpen = append(keepOpen, f)
	return unix.FcntlFlock(fd, unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK})
}

// keepOpen holds a lock's file until the process ends.
var keepOpen []*os.File

// held asks, without taking it, whether anybody holds the lock of a file.
func held(name string) (bool, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, err
	}
	return lock.Type != unix.F_UNLCK, nil
}

func (w *writer) note(e checker.Event) error {
	w.line.Event, w.line.At, w.line.Wall = e, now(), time.Now().UnixNano()
	b, err := json.Marshal(checker.Line{Work: &w.line})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(w.dir, workFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(append(b, '\n'))
	return err
}

// now is the machine's clock that runs since boot.
func now() checker.Moment {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("CLOCK_BOOTTIME cannot be read: " + err.Error())
	}
	return checker.Moment(t.Nano())
}
