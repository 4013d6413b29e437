package load

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Stores is where a node of ours keeps its state: empty databases of servers that run already.
type Stores struct {
	// Postgres and Redis are the URLs of the databases; Redis may be "".
	Postgres, Redis string
	// About is what the servers say of themselves: versions, and the settings that decide about speed and durability.
	About string
	// PostgresPID is the postmaster's process and RedisPID the server's, for their CPU; 0: whoever listens on the port in
	// the URL, if that is this machine's.
	PostgresPID, RedisPID int
	// Counters answers what the servers have done so far, such as "Postgres transactions": figures are made of how much
	// that grows. nil: they do not tell.
	Counters func(ctx context.Context) (map[string]float64, error)
	// Drop removes the databases. It is called once.
	Drop func() error
}

func (s *Stores) drop() error {
	if s == nil || s.Drop == nil {
		return nil
	}
	drop := s.Drop
	s.Drop = nil
	return drop()
}

// find settles whose CPU is counted; what is not found stays 0, and its figures are left out.
func (s *Stores) find() {
	if s.PostgresPID == 0 {
		s.PostgresPID = listener(s.Postgres, 5432)
	}
	if s.RedisPID == 0 {
		s.RedisPID = listener(s.Redis, 6379)
	}
}

// usage answers the CPU of both servers, with the processes below them.
func (s *Stores) usage() (postgres, redis usage) {
	if s == nil {
		return unknown, unknown
	}
	return treeUsage(s.PostgresPID), treeUsage(s.RedisPID)
}

// count answers the counters; none if they cannot be had.
func (s *Stores) count(ctx context.Context) map[string]float64 {
	if s == nil || s.Counters == nil {
		return nil
	}
	m, err := s.Counters(ctx)
	if err != nil {
		return nil
	}
	return m
}

// grown sets a figure for each counter: by how much it grew, divided by per.
func (b *bench) grown(what, suffix, unit string, before, now map[string]float64, per float64) {
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if was, ok := before[name]; ok {
			b.set(what+name+suffix, unit, (now[name]-was)/per)
		}
	}
}

// treeUsage is the CPU time of a process and of all below it. What those used that ended meanwhile is their parent's. The
// memory of Postgres's processes is shared, so a sum of it would mean nothing: it is not answered.
func treeUsage(root int) usage {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if root == 0 || err != nil {
		return unknown
	}
	type process struct {
		parent int
		cpu    float64
	}
	all := map[int]process{}
	for _, path := range stats {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		f := statFields(pid)
		if len(f) < 18 { // it has ended
			continue
		}
		p := process{}
		p.parent, _ = strconv.Atoi(f[4])
		for _, ticks := range f[14:18] { // utime, stime, and those of children that ended
			v, _ := strconv.ParseFloat(ticks, 64)
			p.cpu += v / ticksPerSecond
		}
		all[pid] = p
	}
	if _, ok := all[root]; !ok {
		return unknown
	}
	u := usage{rss: math.NaN(), peak: math.NaN()}
	for pid, p := range all {
		for at := pid; at != 0; at = all[at].parent {
			if at == root {
				u.cpu += p.cpu
				break
			}
		}
	}
	return u
}

// listener is the process that listens on the port of a URL, if that is on this machine and /proc tells.
func listener(server string, port int) int {
	u, err := url.Parse(server)
	if server == "" || err != nil {
		return 0
	}
	if host := u.Hostname(); host != "localhost" {
		if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
			return 0
		}
	}
	if p := u.Port(); p != "" {
		if port, err = strconv.Atoi(p); err != nil {
			return 0
		}
	}
	sockets := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		data, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for line := range bytes.Lines(data) {
			// Number, local address, remote address, state (0A: listening), queues, timer, retransmits, user, timeout, inode.
			if f := strings.Fields(string(line)); len(f) > 9 && f[3] == "0A" && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
				sockets["socket:["+f[9]+"]"] = true
			}
		}
	}
	holders := map[int]bool{}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*") // those of other users are not readable
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && sockets[to] {
			if pid, err := strconv.Atoi(strings.Split(link, "/")[2]); err == nil {
				holders[pid] = true
			}
		}
	}
	for pid := range holders { // a child may hold its parent's socket for a moment
		if f := statFields(pid); len(f) > 4 {
			if parent, err := strconv.Atoi(f[4]); err == nil && !holders[parent] {
				return pid
			}
		}
	}
	return 0
}
