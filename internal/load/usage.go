package load

import (
	"math"
	"os"
	"strconv"
	"strings"
)

// usage is what a process, or the whole machine, has used so far. NaN: not to be had.
type usage struct {
	cpu  float64 // seconds
	rss  float64 // bytes
	peak float64 // bytes
}

var unknown = usage{math.NaN(), math.NaN(), math.NaN()}

// ticksPerSecond is the unit of CPU time in /proc: it has been 100 on all of Linux's ports that matter for long.
const ticksPerSecond = 100

// processUsage reads /proc, where there is one.
func processUsage(pid int) usage {
	u := unknown
	fields := statFields(pid)
	if len(fields) < 18 {
		return u
	}
	user, err1 := strconv.ParseFloat(fields[14], 64)
	system, err2 := strconv.ParseFloat(fields[15], 64)
	if err1 == nil && err2 == nil {
		u.cpu = (user + system) / ticksPerSecond
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return u
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		if kb, err := strconv.ParseFloat(f[1], 64); err == nil {
			switch f[0] {
			case "VmRSS:":
				u.rss = kb * 1024
			case "VmHWM:":
				u.peak = kb * 1024
			}
		}
	}
	return u
}

// statFields are those of /proc/PID/stat, by the numbers of its manual page, from 1 on; the name is left out. None: there is
// no such process, or no /proc.
func statFields(pid int) []string {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	// The name may hold anything; what follows its last parenthesis are the fields from 3 on.
	text := string(stat)
	return append([]string{"", "", ""}, strings.Fields(text[strings.LastIndexByte(text, ')')+1:])...)
}

// machineCPU is the CPU seconds of everybody on the machine; NaN where it cannot be told.
func machineCPU() float64 {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return math.NaN()
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	f := strings.Fields(line) // cpu user nice system idle iowait irq softirq steal
	if len(f) < 9 {
		return math.NaN()
	}
	sum := 0.0
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		v, err := strconv.ParseFloat(f[i], 64)
		if err != nil {
			return math.NaN()
		}
		sum += v
	}
	return sum / ticksPerSecond
}
