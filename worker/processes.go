package worker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
)

// Processes is a table on disk of the process groups that this worker runs. An agent that was killed leaves it behind;
// the next one kills what it names before it says hello (L4), for by then those attempts may be running elsewhere.
//
// It needs no fsync: it has to survive the death of the agent, not of the machine, which takes the processes with it.
// What a process number means is checked by the start time of the process, so a recycled number is never a victim.
//
// One window remains: a process runs for some microseconds before its record is written. In it the parent-death signal,
// set before the command is executed, already kills the command itself.
type Processes struct {
	mu   sync.Mutex
	path string
	f    *os.File
	size int64                 // of what is written and whole
	live map[int]processRecord // by process group
	left []processRecord       // of the agent before, until KillRecorded has dealt with them
}

// processRecord is 32 bytes on disk: CRC-32C of the rest, kind, process group, fence, start time.
type processRecord struct {
	kind  byte // 'S' started, 'E' ended
	pgid  int
	fence job.Fence
	start uint64 // of the leader, in the clock ticks of /proc/PID/stat
}

const (
	processMagic      = "muster processes 1\n"
	processHeaderSize = 64 // magic and boot id, padded with zeros
	processRecordSize = 32
	processLogMax     = 1 << 20 // compacted beyond, unless most of it is alive
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (r processRecord) append(b []byte) []byte {
	at := len(b)
	b = append(b, 0, 0, 0, 0, r.kind, 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(r.pgid))
	b = binary.BigEndian.AppendUint64(b, uint64(r.fence))
	b = binary.BigEndian.AppendUint64(b, r.start)
	binary.BigEndian.PutUint32(b[at:], crc32.Checksum(b[at+4:], castagnoli))
	return b
}

func readProcessRecord(b []byte) (r processRecord, ok bool) {
	if len(b) < processRecordSize || binary.BigEndian.Uint32(b) != crc32.Checksum(b[4:processRecordSize], castagnoli) {
		return r, false
	}
	return processRecord{
		kind: b[4], pgid: int(binary.BigEndian.Uint64(b[8:])), fence: job.Fence(binary.BigEndian.Uint64(b[16:])),
		start: binary.BigEndian.Uint64(b[24:]),
	}, true
}

// OpenProcesses opens the table in dir, which the caller has locked against a second agent. What a former agent left in
// it stays until KillRecorded is called.
func OpenProcesses(dir string) (*Processes, error) {
	p := &Processes{path: filepath.Join(dir, "processes"), live: map[int]processRecord{}}
	b, err := os.ReadFile(p.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open the table of processes: %w", err)
	}
	p.left = decodeProcesses(b, bootID())
	if err := p.rewrite(); err != nil {
		return nil, fmt.Errorf("open the table of processes: %w", err)
	}
	return p, nil
}

// decodeProcesses reads what is recorded as running. Another boot's processes are gone, and a torn tail is the record of
// a process whose agent died while starting it.
func decodeProcesses(b []byte, boot string) []processRecord {
	if len(b) < processHeaderSize || string(b[:processHeaderSize]) != processHeader(boot) {
		return nil
	}
	running := map[int]processRecord{}
	for b = b[processHeaderSize:]; ; b = b[processRecordSize:] {
		r, ok := readProcessRecord(b)
		if !ok {
			break
		}
		switch {
		case r.kind == 'S' && r.pgid > 1: // 0, 1 and below would make kill(-pgid) hit everybody
			running[r.pgid] = r
		case r.kind == 'E' && running[r.pgid].start == r.start:
			delete(running, r.pgid)
		}
	}
	var rs []processRecord
	for _, r := range running {
		rs = append(rs, r)
	}
	return rs
}

func processHeader(boot string) string {
	h := make([]byte, processHeaderSize)
	copy(h, processMagic+boot)
	return string(h)
}

// rewrite makes a file of what is alive or left over. p.mu is held, or nobody else knows p yet.
func (p *Processes) rewrite() error {
	b := []byte(processHeader(bootID()))
	for _, r := range p.left {
		b = r.append(b)
	}
	for _, r := range p.live {
		b = r.append(b)
	}
	f, err := replaceFile(p.path, b)
	if err != nil {
		return err
	}
	if p.f != nil {
		p.f.Close()
	}
	p.f, p.size = f, int64(len(b))
	return nil
}

// replaceFile puts a file with this content at path, at once, and returns it open for writing.
func replaceFile(path string, content []byte) (*os.File, error) {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(content); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		f.Close()
		os.Remove(tmp)
		return nil, err
	}
	return f, nil
}

var errProcessesClosed = errors.New("the table of processes is closed")

// add records a process group whose leader has just been started; the function it returns takes it out again. A nil
// table records nothing.
func (p *Processes) add(fence job.Fence, pgid int) (forget func(), err error) {
	if p == nil {
		return func() {}, nil
	}
	start, _, err := processStart(pgid)
	if err != nil {
		return nil, err
	}
	r := processRecord{'S', pgid, fence, start}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.append(r); err != nil {
		return nil, fmt.Errorf("record the process: %w", err)
	}
	p.live[pgid] = r
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.live, pgid)
		r.kind = 'E'
		// If this cannot be written, the next agent finds a number whose start time does not match.
		p.append(r)
	}, nil
}

func (p *Processes) append(r processRecord) error {
	if p.f == nil {
		return errProcessesClosed
	}
	if p.size > processLogMax && p.size > 4*processRecordSize*int64(len(p.live)+len(p.left)) {
		if err := p.rewrite(); err != nil {
			return err
		}
	}
	var buf [processRecordSize]byte
	if _, err := p.f.WriteAt(r.append(buf[:0]), p.size); err != nil {
		return err // what was written of it lies beyond p.size and is written over
	}
	p.size += processRecordSize
	return nil
}

// Len is how many processes are recorded as running.
func (p *Processes) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.live)
}

// KillRecorded kills the process groups that a former agent left running, waits until they are gone, and says how many
// there were. It is called before the worker's hello. On an error what is not known to be gone stays recorded.
//
// A group is the recorded one if its leader is alive with the recorded start time. Is the leader dead (the parent-death
// signal reaches only him), then it is the recorded one if any member carries the attempt's MUSTER_FENCE in its
// environment: while one does, the group's number cannot have been given away. A group that cannot be told is left
// alone.
func (p *Processes) KillRecorded(ctx context.Context) (killed int, err error) {
	p.mu.Lock()
	left := p.left
	p.mu.Unlock()
	if len(left) > 0 {
		if killed, left, err = killGroups(ctx, left); err != nil {
			err = fmt.Errorf("kill what the former agent left: %w", err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = left
	if rerr := p.rewrite(); err == nil && rerr != nil {
		err = fmt.Errorf("write the table of processes: %w", rerr)
	}
	return killed, err
}

func killGroups(ctx context.Context, records []processRecord) (killed int, left []processRecord, err error) {
	groups, err := livingGroups()
	if err != nil {
		return 0, records, err
	}
	var dying []processRecord
	for _, r := range records {
		if isRecorded(r, groups[r.pgid]) {
			if err := killGroup(r.pgid); err != nil {
				return killed, records, err
			}
			dying = append(dying, r)
			killed++
		}
	}
	pause := time.Millisecond
	for {
		if groups, err = livingGroups(); err != nil {
			return killed, dying, err
		}
		still := dying[:0]
		for _, r := range dying {
			if isRecorded(r, groups[r.pgid]) {
				killGroup(r.pgid) // again: a member may have forked meanwhile
				still = append(still, r)
			}
		}
		if dying = still; len(dying) == 0 {
			return killed, nil, nil
		}
		select {
		case <-ctx.Done():
			return killed, dying, context.Cause(ctx)
		case <-time.After(pause): // the system tells nobody when somebody else's child is gone
			pause = min(2*pause, 100*time.Millisecond)
		}
	}
}

// Close closes the file. It is called after the last attempt has ended.
func (p *Processes) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.f == nil {
		return nil
	}
	err := p.f.Close()
	p.f = nil
	return err
}
