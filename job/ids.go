package job

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"time"

	"github.com/google/uuid"
)

// RunID names a run. It is a UUIDv7, so ids sort by the time in them: the time of birth, or of the tick. It is made
// before the first write attempt and repeating it is the same run (S10).
type RunID [16]byte

// JobID names a job for as long as it exists; one deleted and created again under the same name has another.
type JobID [16]byte

// MakeRunID builds an id from a time and randomness, which the caller brings.
func MakeRunID(at time.Time, entropy [10]byte) RunID {
	return RunID(makeUUIDv7(at.UnixMilli(), entropy))
}

// MakeJobID builds an id from a time and randomness, which the caller brings.
func MakeJobID(at time.Time, entropy [10]byte) JobID {
	return JobID(makeUUIDv7(at.UnixMilli(), entropy))
}

// TickRunID is the id of the run of one tick, the same on whichever node and however often it is derived (D2).
func TickRunID(j JobID, scheduledAt Instant) RunID {
	return derive("tick", scheduledAt, j[:])
}

// RetryRunID is the id of the run that retries a terminal run, the same however often the request is repeated.
func RetryRunID(of RunID, finishedAt Instant) RunID {
	return derive("retry", finishedAt, of[:])
}

// TaskRunID is the id of a task's run within a root run, or with item > 0 of the run of one item of its list. It carries
// the root's time, so that stores keep a root and its task runs together.
func TaskRunID(root RunID, task string, item uint32) RunID {
	from := append(append([]byte(task), 0), root[:]...)
	return derive("task", At(root.Time()), binary.BigEndian.AppendUint32(from, item))
}

// ChildRunID is the id of the run that an attempt of a task's run_job makes.
func ChildRunID(task RunID, attempt uint32) RunID {
	return derive("child", At(task.Time()), binary.BigEndian.AppendUint32(slices.Clone(task[:]), attempt))
}

// DependencyRunID is the id of the run of a job whose dependencies were satisfied, the last of them at a time, by these runs.
func DependencyRunID(j JobID, at Instant, by []UpstreamRun) RunID {
	from := slices.Clone(j[:])
	for i := range by {
		from = append(from, by[i].RunID[:]...)
	}
	return derive("dependency", at, from)
}

func derive(kind string, at Instant, from []byte) RunID {
	h := sha256.New()
	h.Write([]byte(kind))
	h.Write(from)
	var t [8]byte
	binary.BigEndian.PutUint64(t[:], uint64(at))
	h.Write(t[:])
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	return RunID(makeUUIDv7(at.Time().UnixMilli(), [10]byte(sum[:10])))
}

func makeUUIDv7(ms int64, entropy [10]byte) [16]byte {
	var id [16]byte
	binary.BigEndian.PutUint64(id[:8], uint64(ms)<<16)
	copy(id[6:], entropy[:])
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// ParseRunID reads the text form.
func ParseRunID(s string) (RunID, error) {
	id, err := parseUUID(s)
	return RunID(id), err
}

// ParseJobID reads the text form.
func ParseJobID(s string) (JobID, error) {
	id, err := parseUUID(s)
	return JobID(id), err
}

func parseUUID(s string) ([16]byte, error) {
	// uuid.Parse also takes braces and URNs; one thing has one spelling here.
	if len(s) != 36 {
		return [16]byte{}, Errorf(Invalid, "invalid_id", "%.64q is not an id; ids look like 0192f3a4-7c1e-7abc-8def-0123456789ab", s)
	}
	id, err := uuid.Parse(s)
	if err != nil || id.Version() != 7 {
		return [16]byte{}, Errorf(Invalid, "invalid_id", "%.64q is not an id; ids are UUIDs of version 7, such as 0192f3a4-7c1e-7abc-8def-0123456789ab", s)
	}
	return id, nil
}

// Time is the time in the id, in milliseconds.
func (id RunID) Time() time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16)).UTC()
}

// IsZero tells whether no id is set.
func (id RunID) IsZero() bool { return id == RunID{} }

// IsZero tells whether no id is set.
func (id JobID) IsZero() bool { return id == JobID{} }

func (id RunID) String() string { return uuidText(id) }
func (id JobID) String() string { return uuidText(id) }

// MarshalText writes the form that ParseRunID reads.
func (id RunID) MarshalText() ([]byte, error) { return []byte(uuidText(id)), nil }

// MarshalText writes the form that ParseJobID reads.
func (id JobID) MarshalText() ([]byte, error) { return []byte(uuidText(id)), nil }

// UnmarshalText is ParseRunID.
func (id *RunID) UnmarshalText(b []byte) (err error) { *id, err = ParseRunID(string(b)); return err }

// UnmarshalText is ParseJobID.
func (id *JobID) UnmarshalText(b []byte) (err error) { *id, err = ParseJobID(string(b)); return err }

func uuidText(id [16]byte) string {
	var b [36]byte
	hex.Encode(b[:8], id[:4])
	b[8] = '-'
	hex.Encode(b[9:13], id[4:6])
	b[13] = '-'
	hex.Encode(b[14:18], id[6:8])
	b[18] = '-'
	hex.Encode(b[19:23], id[8:10])
	b[23] = '-'
	hex.Encode(b[24:], id[10:])
	return string(b[:])
}

// Epoch numbers the reigns of leaders. It only grows; whatever carries a lower one is refused (L1).
type Epoch uint32

// Fence numbers the grants of all leases: epoch << 32 | sequence. It only grows, and reaches the work itself (L3).
type Fence uint64

// MakeFence puts a fence together.
func MakeFence(e Epoch, sequence uint32) Fence { return Fence(uint64(e)<<32 | uint64(sequence)) }

// Epoch is the reign in which the fence was issued.
func (f Fence) Epoch() Epoch { return Epoch(f >> 32) }
