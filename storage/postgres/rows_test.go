package postgres

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/musterhq/muster/job"
)

// insert stores rows past the store, by COPY. It also proves that appendCopyRow writes what Postgres reads.
func insert(t *testing.T, c *pgx.Conn, runs ...*job.Run) {
	t.Helper()
	b := append([]byte("PGCOPY\n\xff\r\n\x00"), 0, 0, 0, 0, 0, 0, 0, 0)
	for _, r := range runs {
		b = appendCopyRow(b, r)
	}
	b = append(b, 0xff, 0xff)
	if _, err := c.PgConn().CopyFrom(t.Context(), bytes.NewReader(b), "COPY muster.runs ("+columnList+") FROM STDIN BINARY"); err != nil {
		t.Fatalf("copy %d runs: %v", len(runs), err)
	}
}

// randomID is an id of a time.
func randomID(at job.Instant) job.RunID {
	var e [10]byte
	binary.BigEndian.PutUint64(e[:8], rand.Uint64())
	binary.BigEndian.PutUint16(e[8:], uint16(rand.Uint32()))
	return job.MakeRunID(at.Time(), e)
}

func nowMs() job.Instant { return job.At(time.Now().Truncate(time.Millisecond)) }

// aRun is a queued run of no job.
func aRun(at job.Instant, change ...func(*job.Run)) *job.Run {
	r := &job.Run{ID: randomID(at), Namespace: "default", Trigger: job.ByAPI, State: job.Queued, Priority: 5, CreatedAt: at, QueuedAt: at,
		Lane: "default|@exec=|", Spec: json.RawMessage(`{"exec":{"command":["/bin/true"]}}`), Home: job.HomePostgres}
	for _, c := range change {
		c(r)
	}
	return r
}

// ended makes a run one that succeeded at a time.
func ended(at job.Instant) func(*job.Run) {
	return func(r *job.Run) {
		r.State, r.FinishedAt, r.StartedAt, r.Attempt, r.Fence, r.Worker = job.Succeeded, at, at, 1, 1<<32|1, "w"
	}
}

// randomRun fills each field or leaves it out.
func randomRun(rng *rand.Rand) *job.Run {
	maybe := func(f func()) {
		if rng.IntN(2) == 0 {
			f()
		}
	}
	at := func() job.Instant { return job.Instant(1_700_000_000_000_000 + rng.Int64N(1e15)) }
	text := func() string {
		return []string{"x", "a b", "é€\U0001F680", `quote " back \ slash`, strings.Repeat("long ", 500)}[rng.IntN(5)]
	}
	r := &job.Run{ID: randomID(at()), Namespace: "ns" + text(), Trigger: job.Trigger(1 + rng.IntN(6)), State: job.State(1 + rng.IntN(9)),
		Priority: uint8(rng.IntN(10)), CreatedAt: at(), Home: job.HomePostgres}
	maybe(func() { r.RootID = randomID(at()) })
	maybe(func() { r.JobID = job.JobID(randomID(at())) })
	for _, f := range []*string{&r.Job, &r.Task, &r.Worker, &r.Lane, &r.BackfillID, &r.Key, &r.Error} {
		maybe(func() { *f = text() })
	}
	for _, f := range []*job.Instant{&r.ScheduledAt, &r.ReadyAt, &r.QueuedAt, &r.StartedAt, &r.FinishedAt, &r.DeadlineAt, &r.StartBy, &r.CancelAt} {
		maybe(func() { *f = at() })
	}
	maybe(func() { r.ScheduledAt = -1 })              // before 1970
	maybe(func() { r.ReadyAt = postgresEpoch })       // what is 0 for Postgres
	maybe(func() { r.QueuedAt = postgresEpoch - 17 }) // and before it
	maybe(func() { r.JobVersion = rng.Uint64() >> 1 })
	maybe(func() { r.Fence = job.Fence(rng.Uint64() >> 1) })
	for _, f := range []*uint32{&r.Attempt, &r.Losses, &r.Failures} {
		maybe(func() { *f = rng.Uint32() >> 1 })
	}
	for _, f := range []*uint32{&r.Item, &r.Items} {
		maybe(func() { *f = rng.Uint32() >> 1 })
	}
	maybe(func() { r.ParentID, r.ReusedFrom, r.Depth = randomID(at()), randomID(at()), uint8(rng.IntN(9)) })
	maybe(func() {
		r.Upstreams = []job.UpstreamRun{{Job: "load", RunID: randomID(at())}, {Job: "x.y", RunID: randomID(at()), Coalesced: 7}}
	})
	maybe(func() { r.Reason = job.Reason(rng.IntN(35)) })
	maybe(func() { r.CancelReason = job.OverlapReplaced })
	maybe(func() { r.ExitCode = int32(rng.Uint32()) })
	maybe(func() { r.RetryOf, r.CanonicalID = randomID(at()), randomID(at()) })
	maybe(func() { r.BodyHash = []byte{0, 1, 255} })
	maybe(func() { r.Labels = map[string]string{"a": text(), "b": ""} })
	for _, f := range []*json.RawMessage{&r.Payload, &r.Spec, &r.Result} {
		maybe(func() { *f = json.RawMessage(`{"b":1, "a":[1.50,"é\u0000"], "b":2}`) }) // byte for byte, as it came
	}
	return r
}

// A run of any content is written by COPY and by arrays, and read back in both widths.
func TestRows(t *testing.T) {
	t.Parallel()
	url := database(t)
	c := connect(t, url)
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	var runs []*job.Run
	for range 300 {
		runs = append(runs, randomRun(rng))
	}
	insert(t, c, runs[:150]...)
	// The rest by one INSERT over binary arrays.
	params, formats, selects := [][]byte{}, []int16{}, []string{}
	for i := range columns {
		params, formats = append(params, appendArray(nil, &columns[i], runs[150:])), append(formats, 1)
		typeName := ask[string](t, c, "SELECT format_type($1, NULL)", columns[i].oid)
		selects = append(selects, fmt.Sprintf("$%d::%s[]", i+1, typeName))
	}
	res := c.PgConn().ExecParams(t.Context(), "INSERT INTO muster.runs ("+columnList+") SELECT * FROM unnest("+strings.Join(selects, ", ")+")", params, nil, formats, nil).Read()
	if res.Err != nil {
		t.Fatal(res.Err)
	}
	for _, w := range []width{full, narrow} {
		rows, err := c.Query(t.Context(), "SELECT "+selectList(w)+" FROM muster.runs r")
		got, err := collectRuns(w, rows, err)
		if err != nil {
			t.Fatal(err)
		}
		byID := map[job.RunID]*job.Run{}
		for _, r := range got {
			byID[r.ID] = r
		}
		for _, want := range runs {
			if w == narrow {
				n := *want
				n.Labels, n.Payload, n.Spec, n.Result, n.Error, n.Upstreams = nil, nil, nil, nil, "", nil
				want = &n
			}
			if d := cmp.Diff(want, byID[want.ID]); d != "" {
				t.Fatalf("seed %d, width %d (-want +got):\n%s", seed, w, d)
			}
		}
	}
	for _, r := range runs {
		var hash, order int64
		if err := c.QueryRow(t.Context(), "SELECT lane_hash, lane_order FROM muster.runs WHERE id = $1", r.ID[:]).Scan(&hash, &order); err != nil {
			t.Fatal(err)
		}
		if hash != laneHash(r.LaneKey()) || order != r.Entry().Order() {
			t.Fatalf("run %s has lane hash %d and order %d", r.ID, hash, order)
		}
	}
}

// The list of columns is that of the table, so that a migration cannot add one that nobody reads or writes.
func TestColumns(t *testing.T) {
	t.Parallel()
	c := connect(t, database(t))
	rows, err := c.Query(t.Context(), "SELECT attname::text FROM pg_attribute WHERE attrelid = 'muster.runs'::regclass AND attnum > 0 AND NOT attisdropped")
	table, err := collect(rows, err, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	ours := names(columns, "")
	slices.Sort(table)
	slices.Sort(ours)
	if !slices.Equal(table, ours) {
		t.Errorf("the table has %v, the code %v", table, ours)
	}
	if laneHash("default|@exec=|") != 6722055475683169310 {
		t.Errorf("the hash of a lane is on disk and must not change: %d", laneHash("default|@exec=|"))
	}
}
