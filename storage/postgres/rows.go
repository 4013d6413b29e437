package postgres

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/musterhq/muster/job"
)

// column is one column of muster.runs: its name, its type, and both ways between a row and its value in Postgres's binary
// format, which is the same in results, in COPY and in the elements of an array.
type column struct {
	name string
	oid  uint32
	// put appends the value; false, and nothing appended, stands for NULL.
	put func(b []byte, r *job.Run) ([]byte, bool)
	// take sets the field from a value that is not NULL. Columns that are derived from others have none.
	take func(r *job.Run, v []byte)
}

// width is which columns a query reads.
type width int

const (
	narrow width = iota // what the leader needs of a live row
	full                // all of a run
)

// columns are those of a new row, in the order in which they are read: first the narrow ones, then those that make a row
// wide, then those that are only written. Root runs have no root_id; zero numbers, times and texts are NULL.
var columns = []column{
	{"id", pgtype.UUIDOID, func(b []byte, r *job.Run) ([]byte, bool) { return append(b, r.ID[:]...), true }, func(r *job.Run, v []byte) { copy(r.ID[:], v) }},
	{"root_id", pgtype.UUIDOID, func(b []byte, r *job.Run) ([]byte, bool) {
		if r.IsRoot() {
			return b, false
		}
		return append(b, r.RootID[:]...), true
	}, func(r *job.Run, v []byte) { copy(r.RootID[:], v) }},
	{"namespace", pgtype.TextOID, func(b []byte, r *job.Run) ([]byte, bool) { return append(b, r.Namespace...), true }, func(r *job.Run, v []byte) { r.Namespace = string(v) }},
	idColumn("job_id", func(r *job.Run) *[16]byte { return (*[16]byte)(&r.JobID) }),
	textColumn("job", func(r *job.Run) *string { return &r.Job }),
	int8Column("job_version", func(r *job.Run) *uint64 { return &r.JobVersion }),
	textColumn("task", func(r *job.Run) *string { return &r.Task }),
	int2Column("trigger", func(r *job.Run) *uint8 { return (*uint8)(&r.Trigger) }, true),
	int2Column("state", func(r *job.Run) *uint8 { return (*uint8)(&r.State) }, true),
	int2Column("reason", func(r *job.Run) *uint8 { return (*uint8)(&r.Reason) }, false),
	int2Column("priority", func(r *job.Run) *uint8 { return &r.Priority }, true),
	int4Column("attempt", func(r *job.Run) *uint32 { return &r.Attempt }),
	int4Column("losses", func(r *job.Run) *uint32 { return &r.Losses }),
	int4Column("failures", func(r *job.Run) *uint32 { return &r.Failures }),
	textColumn("worker", func(r *job.Run) *string { return &r.Worker }),
	int8Column("fence", func(r *job.Run) *uint64 { return (*uint64)(&r.Fence) }),
	timeColumn("scheduled_at", func(r *job.Run) *job.Instant { return &r.ScheduledAt }, false),
	timeColumn("created_at", func(r *job.Run) *job.Instant { return &r.CreatedAt }, true),
	timeColumn("ready_at", func(r *job.Run) *job.Instant { return &r.ReadyAt }, false),
	timeColumn("queued_at", func(r *job.Run) *job.Instant { return &r.QueuedAt }, false),
	timeColumn("started_at", func(r *job.Run) *job.Instant { return &r.StartedAt }, false),
	timeColumn("finished_at", func(r *job.Run) *job.Instant { return &r.FinishedAt }, false),
	timeColumn("deadline_at", func(r *job.Run) *job.Instant { return &r.DeadlineAt }, false),
	timeColumn("start_by", func(r *job.Run) *job.Instant { return &r.StartBy }, false),
	timeColumn("cancel_at", func(r *job.Run) *job.Instant { return &r.CancelAt }, false),
	int2Column("cancel_reason", func(r *job.Run) *uint8 { return (*uint8)(&r.CancelReason) }, false),
	textColumn("lane", func(r *job.Run) *string { return &r.Lane }),
	idColumn("retry_of", func(r *job.Run) *[16]byte { return (*[16]byte)(&r.RetryOf) }),
	idColumn("canonical_id", func(r *job.Run) *[16]byte { return (*[16]byte)(&r.CanonicalID) }),
	textColumn("backfill_id", func(r *job.Run) *string { return &r.BackfillID }),
	textColumn("key", func(r *job.Run) *string { return &r.Key }),
	{"body_hash", pgtype.ByteaOID, func(b []byte, r *job.Run) ([]byte, bool) { return append(b, r.BodyHash...), len(r.BodyHash) > 0 }, func(r *job.Run, v []byte) { r.BodyHash = clone(v) }},
	{"exit_code", pgtype.Int4OID, func(b []byte, r *job.Run) ([]byte, bool) {
		if r.ExitCode == 0 {
			return b, false
		}
		return binary.BigEndian.AppendUint32(b, uint32(r.ExitCode)), true
	}, func(r *job.Run, v []byte) { r.ExitCode = int32(binary.BigEndian.Uint32(v)) }},
	int4Column("item", func(r *job.Run) *uint32 { return &r.Item }),
	int4Column("items", func(r *job.Run) *uint32 { return &r.Items }),
	idColumn("parent_id", func(r *job.Run) *[16]byte { return (*[16]byte)(&r.ParentID) }),
	int2Column("depth", func(r *job.Run) *uint8 { return &r.Depth }, false),
	idColumn("reused_from", func(r *job.Run) *[16]byte { return (*[16]byte)(&r.ReusedFrom) }),

	{"labels", pgtype.TextOID, putLabels, func(r *job.Run, v []byte) { r.Labels = takeLabels(v) }},
	jsonColumn("payload", func(r *job.Run) *json.RawMessage { return &r.Payload }),
	jsonColumn("spec", func(r *job.Run) *json.RawMessage { return &r.Spec }),
	jsonColumn("result", func(r *job.Run) *json.RawMessage { return &r.Result }),
	textColumn("error", func(r *job.Run) *string { return &r.Error }),
	{"upstreams", pgtype.TextOID, putUpstreams, takeUpstreams},

	{"lane_hash", pgtype.Int8OID, func(b []byte, r *job.Run) ([]byte, bool) {
		return binary.BigEndian.AppendUint64(b, uint64(laneHash(r.LaneKey()))), true
	}, nil},
	{"lane_order", pgtype.Int8OID, func(b []byte, r *job.Run) ([]byte, bool) {
		return binary.BigEndian.AppendUint64(b, uint64(r.Entry().Order())), true
	}, nil},
}

// narrowCount and fullCount are how many of columns each width reads.
var narrowCount, fullCount = func() (int, int) {
	n, f := 0, 0
	for i, c := range columns {
		if c.name == "labels" {
			n = i
		}
		if c.take != nil {
			f = i + 1
		}
	}
	return n, f
}()

// columnList names the columns of a new row, and selectList those that a width reads, of a table called r.
var columnList = strings.Join(names(columns, ""), ", ")

func selectList(w width) string { return strings.Join(names(columns[:w.count()], "r."), ", ") }

func (w width) count() int {
	if w == narrow {
		return narrowCount
	}
	return fullCount
}

func namesOf(list []*column, prefix string) []string {
	all := make([]string, len(list))
	for i, c := range list {
		all[i] = prefix + c.name
	}
	return all
}

func names(list []column, prefix string) []string {
	all := make([]string, len(list))
	for i, c := range list {
		all[i] = prefix + c.name
	}
	return all
}

// decodeRun reads a row of a width in the binary format. It keeps nothing of values.
func decodeRun(w width, values [][]byte) (*job.Run, error) {
	if len(values) < w.count() {
		return nil, fmt.Errorf("a run has %d columns, not %d", w.count(), len(values))
	}
	r := &job.Run{Home: job.HomePostgres}
	for i := range columns[:w.count()] {
		if v := values[i]; v != nil {
			columns[i].take(r, v)
		}
	}
	return r, nil
}

// collectRuns reads all rows of a query for runs.
func collectRuns(w width, rows pgx.Rows, err error) ([]*job.Run, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var runs []*job.Run
	for rows.Next() {
		r, err := decodeRun(w, rows.RawValues())
		if err != nil {
			return nil, err
		}
		runs = append(runs, r)
	}
	return runs, rows.Err()
}

// appendCopyRow appends a new row of all columns as COPY's binary format has it.
func appendCopyRow(b []byte, r *job.Run) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(columns)))
	for i := range columns {
		b = appendField(b, &columns[i], r)
	}
	return b
}

// appendArray appends one column of many rows as a binary array, for unnest.
func appendArray(b []byte, c *column, runs []*job.Run) []byte {
	if len(runs) == 0 {
		b = binary.BigEndian.AppendUint32(b, 0)
		b = binary.BigEndian.AppendUint32(b, 0)
		return binary.BigEndian.AppendUint32(b, c.oid)
	}
	b = binary.BigEndian.AppendUint32(b, 1) // dimensions
	b = binary.BigEndian.AppendUint32(b, 1) // may hold NULL
	b = binary.BigEndian.AppendUint32(b, c.oid)
	b = binary.BigEndian.AppendUint32(b, uint32(len(runs)))
	b = binary.BigEndian.AppendUint32(b, 1) // the first index
	for _, r := range runs {
		b = appendField(b, c, r)
	}
	return b
}

// appendField appends a value after its length, as COPY and arrays have it.
func appendField(b []byte, c *column, r *job.Run) []byte {
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	b, ok := c.put(b, r)
	n := uint32(len(b) - at - 4)
	if !ok {
		n = 0xffffffff
	}
	binary.BigEndian.PutUint32(b[at:], n)
	return b
}

// laneHash is lane_hash: it spreads lanes, whose names may be long, over an index of numbers.
func laneHash(lane job.LaneKey) int64 {
	h := fnv.New64a()
	h.Write([]byte(lane))
	return int64(h.Sum64())
}

// postgresEpoch is the instant from which Postgres counts microseconds: 2000-01-01.
const postgresEpoch job.Instant = 946_684_800_000_000

func putInstant(b []byte, at job.Instant) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(at-postgresEpoch))
}

func takeInstant(v []byte) job.Instant {
	return job.Instant(binary.BigEndian.Uint64(v)) + postgresEpoch
}

func clone(v []byte) []byte { return append([]byte(nil), v...) }

func idColumn(name string, field func(*job.Run) *[16]byte) column {
	return column{name, pgtype.UUIDOID, func(b []byte, r *job.Run) ([]byte, bool) {
		id := field(r)
		if *id == [16]byte{} {
			return b, false
		}
		return append(b, id[:]...), true
	}, func(r *job.Run, v []byte) { copy(field(r)[:], v) }}
}

func textColumn(name string, field func(*job.Run) *string) column {
	return column{name, pgtype.TextOID, func(b []byte, r *job.Run) ([]byte, bool) {
		s := *field(r)
		return append(b, s...), s != ""
	}, func(r *job.Run, v []byte) { *field(r) = string(v) }}
}

func jsonColumn(name string, field func(*job.Run) *json.RawMessage) column {
	return column{name, pgtype.TextOID, func(b []byte, r *job.Run) ([]byte, bool) {
		s := *field(r)
		return append(b, s...), len(s) > 0
	}, func(r *job.Run, v []byte) { *field(r) = clone(v) }}
}

func timeColumn(name string, field func(*job.Run) *job.Instant, always bool) column {
	return column{name, pgtype.TimestamptzOID, func(b []byte, r *job.Run) ([]byte, bool) {
		at := *field(r)
		if at == 0 && !always {
			return b, false
		}
		return putInstant(b, at), true
	}, func(r *job.Run, v []byte) { *field(r) = takeInstant(v) }}
}

func int8Column(name string, field func(*job.Run) *uint64) column {
	return column{name, pgtype.Int8OID, func(b []byte, r *job.Run) ([]byte, bool) {
		n := *field(r)
		if n == 0 {
			return b, false
		}
		return binary.BigEndian.AppendUint64(b, n), true
	}, func(r *job.Run, v []byte) { *field(r) = binary.BigEndian.Uint64(v) }}
}

func int4Column(name string, field func(*job.Run) *uint32) column {
	return column{name, pgtype.Int4OID, func(b []byte, r *job.Run) ([]byte, bool) {
		n := *field(r)
		if n == 0 {
			return b, false
		}
		return binary.BigEndian.AppendUint32(b, n), true
	}, func(r *job.Run, v []byte) { *field(r) = binary.BigEndian.Uint32(v) }}
}

func int2Column(name string, field func(*job.Run) *uint8, always bool) column {
	return column{name, pgtype.Int2OID, func(b []byte, r *job.Run) ([]byte, bool) {
		n := *field(r)
		if n == 0 && !always {
			return b, false
		}
		return binary.BigEndian.AppendUint16(b, uint16(n)), true
	}, func(r *job.Run, v []byte) { *field(r) = uint8(binary.BigEndian.Uint16(v)) }}
}

// putLabels writes labels with their keys in order, so that a label can be looked for in the text.
func putLabels(b []byte, r *job.Run) ([]byte, bool) {
	if len(r.Labels) == 0 {
		return b, false
	}
	text, _ := json.Marshal(r.Labels) // a map of texts always can be
	return append(b, text...), true
}

func takeLabels(v []byte) (labels map[string]string) {
	_ = json.Unmarshal(v, &labels) // what was not written by us stays out
	return labels
}

func putUpstreams(b []byte, r *job.Run) ([]byte, bool) {
	if len(r.Upstreams) == 0 {
		return b, false
	}
	text, _ := json.Marshal(r.Upstreams) // names, ids and numbers always can be
	return append(b, text...), true
}

func takeUpstreams(r *job.Run, v []byte) {
	_ = json.Unmarshal(v, &r.Upstreams) // what was not written by us stays out
}
