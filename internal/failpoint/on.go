//go:build failpoints && linux

package failpoint

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// armed is what this process was told to do when it started.
var armed = mustParse(os.Getenv("MUSTER_FAILPOINT"))

// Hit says that the process has come to a place.
func Hit(name string) {
	if !known(name) {
		panic("failpoint: " + name + " is not in the list of points")
	}
	if armed != nil && armed.name == name && armed.due(armed.hits.Add(1)) {
		armed.act()
	}
}

func known(name string) bool {
	return slices.ContainsFunc(Points(), func(p Point) bool { return p.Name == name })
}

// order is one armed place.
type order struct {
	name   string
	signal unix.Signal
	at     int64 // the hit
	every  int64 // and each so many after it; 0: only that one
	hits   atomic.Int64
}

func mustParse(text string) *order {
	if text == "" {
		return nil
	}
	o, err := parse(text)
	if err != nil {
		panic(fmt.Sprintf("MUSTER_FAILPOINT=%s: %v", text, err))
	}
	return o
}

// parse reads NAME=kill|stop@N[/M].
func parse(text string) (*order, error) {
	name, rest, _ := strings.Cut(text, "=")
	action, count, _ := strings.Cut(rest, "@")
	at, every, repeats := strings.Cut(count, "/")
	o := &order{name: name}
	if !known(name) {
		return nil, fmt.Errorf("there is no point %q", name)
	}
	switch action {
	case "kill":
		o.signal = unix.SIGKILL
	case "stop":
		o.signal = unix.SIGSTOP
	default:
		return nil, fmt.Errorf("%q is neither kill nor stop", action)
	}
	var err error
	if o.at, err = strconv.ParseInt(at, 10, 64); err != nil || o.at < 1 {
		return nil, fmt.Errorf("%q is not the number of a hit, from 1 on", at)
	}
	if repeats {
		if o.every, err = strconv.ParseInt(every, 10, 64); err != nil || o.every < 1 {
			return nil, fmt.Errorf("%q is not a number of hits, from 1 on", every)
		}
	}
	return o, nil
}

// due tells whether the n-th hit is one at which to act.
func (o *order) due(n int64) bool {
	return n == o.at || o.every > 0 && n > o.at && (n-o.at)%o.every == 0
}

// act sends the signal to this very thread, so that it goes no further before it has come.
func (o *order) act() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), o.signal); err != nil {
		panic(fmt.Sprintf("failpoint: %s: %v", o.name, err))
	}
}
