package worker

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// bootID is the kernel's name for the time since the machine started.
var bootID = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
})

// processStart is when a process started, in clock ticks since boot, and its group if it is alive (0 for a zombie).
func processStart(pid int) (start uint64, group int, err error) {
	var buf [1024]byte // a line of numbers and a name of at most 16 bytes
	fd, err := syscall.Open("/proc/"+strconv.Itoa(pid)+"/stat", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("read the start time of process %d: %w", pid, err)
	}
	n, err := syscall.Read(fd, buf[:])
	syscall.Close(fd)
	if err != nil {
		return 0, 0, fmt.Errorf("read the start time of process %d: %w", pid, err)
	}
	// The name may hold blanks and parentheses; the numbers follow the last one.
	b := buf[:n]
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, 0, fmt.Errorf("read the start time of process %d: it is not there", pid)
	}
	state := byte(0)
	field := 3
	for f := range bytes.FieldsSeq(b[i+1:]) {
		switch field {
		case 3:
			state = f[0]
		case 5:
			group, _ = strconv.Atoi(string(f))
		case 22:
			start, err = strconv.ParseUint(string(f), 10, 64)
			if state == 'Z' || state == 'X' {
				group = 0
			}
			return start, group, err
		}
		field++
	}
	return 0, 0, fmt.Errorf("read the start time of process %d: it is not there", pid)
}

// livingGroups lists the processes that are not zombies, by their group.
func livingGroups() (map[int][]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	groups := map[int][]int{}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if _, group, err := processStart(pid); err == nil && group != 0 { // one that ended meanwhile is no error
			groups[group] = append(groups[group], pid)
		}
	}
	return groups, nil
}

// groupMembers lists the living members of one group.
func groupMembers(pgid int) []int {
	groups, err := livingGroups()
	if err != nil {
		return nil
	}
	return groups[pgid]
}

// isRecorded tells whether the group with these living members is the recorded one.
func isRecorded(r processRecord, members []int) bool {
	if len(members) == 0 {
		return false
	}
	if start, _, err := processStart(r.pgid); err == nil { // the leader is there, if only as a zombie
		return start == r.start
	}
	mark := []byte("MUSTER_FENCE=" + fenceText(r.fence))
	return slices.ContainsFunc(members, func(pid int) bool {
		env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if err != nil {
			return false
		}
		for kv := range bytes.SplitSeq(env, []byte{0}) {
			if bytes.Equal(kv, mark) {
				return true
			}
		}
		return false
	})
}

func killGroup(pgid int) error {
	if err := syscall.Kill(-pgid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("kill process group %d: %w", pgid, err)
	}
	return nil
}
