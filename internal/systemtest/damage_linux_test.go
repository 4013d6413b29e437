package systemtest

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// raftLog is the file with a node's log.
func (c *cluster) raftLog(n *process) string {
	return filepath.Join(c.dir, n.name, "raft", "raft", "raft.db")
}

func edit(t *testing.T, name string, change func(f *os.File, size int64) error) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil {
		err = change(f, info.Size())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// endedBySelf waits whether a process ends.
func (s *process) endedBySelf(limit time.Duration) (error, bool) {
	select {
	case err := <-s.ended:
		s.cmd = nil
		s.life.Dead = now()
		return err, true
	case <-time.After(limit):
		return nil, false
	}
}

const boltPage = 4096

// TestDamagedLog damages the log of a node that was killed: it must not vote on the strength of what it no longer knows.
// Either it refuses to start and says what to do, and that works; or it joins again.
func TestDamagedLog(t *testing.T) {
	long(t)
	c := newCluster(t, shape{nodes: 3, workers: 2, jobs: 30, slots: slots})
	c.start()
	c.settle(3*time.Second, 4*time.Second)
	old := filepath.Join(c.dir, "old.db")
	var said []string
	for _, d := range []struct {
		name   string
		before func(n *process)
		damage func(file string)
	}{
		{"meta page", nil, func(file string) {
			edit(t, file, func(f *os.File, _ int64) error { // four bytes of the newer of the two
				var tx [2]uint64
				for i := range tx {
					b := make([]byte, 8)
					if _, err := f.ReadAt(b, int64(i)*boltPage+16+48); err != nil {
						return err
					}
					tx[i] = binary.NativeEndian.Uint64(b)
				}
				at := int64(0)
				if tx[1] > tx[0] {
					at = boltPage
				}
				_, err := f.WriteAt([]byte{0xde, 0xad, 0xbe, 0xef}, at+16+16)
				return err
			})
		}},
		{"data pages", nil, func(file string) {
			edit(t, file, func(f *os.File, size int64) error { // the head of each page but the first ones
				for at := int64(4 * boltPage); at < size; at += boltPage {
					if _, err := f.WriteAt([]byte(strings.Repeat("x", 64)), at); err != nil {
						return err
					}
				}
				return nil
			})
		}},
		{"truncated", nil, func(file string) {
			edit(t, file, func(f *os.File, size int64) error { return f.Truncate(size / 2 / boltPage * boltPage) })
		}},
		{"old copy", func(n *process) {
			n.kill() // so that the copy is one that could be
			copyFile(t, c.raftLog(n), old)
			n.start()
			c.awaitWhole()
			c.settle(4*time.Second, 5*time.Second)
		}, func(file string) { copyFile(t, old, file) }},
		{"deleted", nil, func(file string) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		n := c.followers()[c.rand.IntN(2)]
		if d.before != nil {
			d.before(n)
		}
		n.kill()
		d.damage(c.raftLog(n))
		n.start()
		what := "joined again by itself"
		if err, ended := n.endedBySelf(8 * time.Second); ended {
			why := lastLine(n.tail())
			if err == nil || !strings.Contains(why, "move "+filepath.Dir(c.raftLog(n))+" away") {
				t.Errorf("%s: it ended with %v and does not say what to do: %s", d.name, err, why)
			}
			why, _, _ = strings.Cut(why, ";")
			what = "refused: " + strings.ReplaceAll(why, c.dir+"/", "")
			raft := filepath.Dir(c.raftLog(n))
			if err := os.Rename(raft, fmt.Sprintf("%s.%s", raft, strings.ReplaceAll(d.name, " ", "-"))); err != nil {
				t.Fatal(err)
			}
			n.start()
		}
		t.Logf("%s: %s", d.name, what)
		said = append(said, fmt.Sprintf("%-12s %s", d.name+":", what))
		c.awaitWhole()
		c.settle(2*time.Second, 3*time.Second)
	}
	_, r := c.end()
	row(t, r, "%s", strings.Join(said, "\n"))
}

// lastLine is what a process said last.
func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}
