// Package storagetest is the contract of storage.Store as a suite: every store runs it, and what the scheduler relies on
// and is not here is a hole. Faulty wraps a store and fails on cue, for tests of those who use one.
package storagetest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
)

// Run judges a store. open makes an empty one, closed through t.Cleanup; every subtest opens its own. See Decider for what
// a store over Raft adds.
func Run(t *testing.T, open func(t *testing.T) storage.Store) {
	for _, part := range []struct {
		name  string
		cases []testCase
	}{
		{"definitions", definitions},
		{"dependencies", dependencies},
		{"versions", versions},
		{"births", births},
		{"cancel", cancels},
		{"moves", moves},
		{"backlog", backlogs},
		{"ticks", ticks},
		{"reads", reads},
		{"prune", prunes},
		{"tasks", tasks},
		{"edges", edges},
	} {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			for _, c := range part.cases {
				t.Run(c.name, func(t *testing.T) {
					t.Parallel()
					c.test(newFixture(t, open(t)))
				})
			}
		})
	}
}

type testCase struct {
	name string
	test func(*fixture)
}

// fixture is one store under test, at epoch 1, with helpers that fail the test.
type fixture struct {
	*testing.T
	storage.Store
	ctx context.Context
	now job.Instant
}

func newFixture(t *testing.T, s storage.Store) *fixture {
	t.Helper()
	// Whole milliseconds, since that is what ids hold; the real time, since stores may place rows by it.
	f := &fixture{T: t, Store: s, ctx: context.Background(), now: job.At(time.Now().Truncate(time.Millisecond))}
	if _, err := s.Raise(f.ctx, 1); err != nil {
		t.Fatalf("raise epoch 1: %v", err)
	}
	return f
}

// ids are unique across parallel tests, so that they can share a database.
var ids atomic.Uint64

func entropy() (e [10]byte) {
	n := ids.Add(1)
	binary.BigEndian.PutUint64(e[:8], n)
	binary.BigEndian.PutUint16(e[8:], uint16(n))
	return e
}

func runID(at job.Instant) job.RunID { return job.MakeRunID(at.Time(), entropy()) }

func jobID(at job.Instant) job.JobID { return job.MakeJobID(at.Time(), entropy()) }

func (f *fixture) document(name string, change ...func(*job.Document)) *job.Document {
	d := &job.Document{Name: name, Namespace: "default", Exec: &job.Exec{Command: []string{"/bin/true"}},
		Payload: json.RawMessage(`{"from":"document"}`), Labels: map[string]string{"team": "billing"}}
	for _, c := range change {
		c(d)
	}
	return d
}

func (f *fixture) put(d *job.Document) *job.Job {
	f.Helper()
	j, err := f.PutJob(f.ctx, job.PutJob{ID: jobID(f.now), Spec: d, At: f.now})
	if err != nil {
		f.Fatalf("put job %s: %v", d.Name, err)
	}
	return j
}

// run makes the row of a birth at a time, as a node does.
func (f *fixture) run(at job.Instant, change ...func(*job.Run)) *job.Run {
	r := &job.Run{ID: runID(at), Namespace: "default", Trigger: job.ByAPI, State: job.Queued, Priority: 5, CreatedAt: at, QueuedAt: at,
		Lane: "default|@exec=|", Spec: json.RawMessage(`{"exec":{"command":["/bin/true"]}}`), Home: job.HomeQuorum}
	for _, c := range change {
		c(r)
	}
	return r
}

func ofJob(j *job.Job) func(*job.Run) {
	return func(r *job.Run) {
		r.Namespace, r.JobID, r.Job, r.JobVersion, r.Spec = j.Namespace, j.ID, j.Name, j.Version, nil
	}
}

// submit stores births, one receipt each without an error, and answers what is stored.
func (f *fixture) submit(runs ...*job.Run) []*job.Run {
	f.Helper()
	receipts, err := f.Submit(f.ctx, copies(runs))
	if err != nil || len(receipts) != len(runs) {
		f.Fatalf("submit %d runs: %d receipts, %v", len(runs), len(receipts), err)
	}
	stored := make([]*job.Run, len(runs))
	for i, r := range receipts {
		if r.Err != nil || r.Run == nil {
			f.Fatalf("submit run %d: %+v", i, r)
		}
		stored[i] = r.Run
	}
	return stored
}

// copies keeps a store from changing or keeping what the test compares with.
func copies(runs []*job.Run) []*job.Run {
	c := make([]*job.Run, len(runs))
	for i, r := range runs {
		n := *r
		c[i] = &n
	}
	return c
}

func (f *fixture) read(id job.RunID) *job.Run {
	f.Helper()
	r, err := f.Run(f.ctx, id)
	if err != nil {
		f.Fatalf("read run %s: %v", id, err)
	}
	return r
}

// Run keeps testing.T's method of that name out of the way.
func (f *fixture) Run(ctx context.Context, id job.RunID) (*job.Run, error) {
	return f.Store.Run(ctx, id)
}

// raise raises the epoch, or is refused, and checks which one stands.
func (f *fixture) raise(to, stands job.Epoch, want job.Code) {
	f.Helper()
	got, err := f.Raise(f.ctx, to)
	f.code(fmt.Sprintf("raise to %d", to), err, want)
	if got != stands {
		f.Fatalf("raise to %d: the store answers %d, want %d", to, got, stands)
	}
}

func (f *fixture) move(moves ...job.Move) []job.Moved {
	f.Helper()
	answers, err := f.Move(f.ctx, 1, moves)
	if err != nil || len(answers) != len(moves) {
		f.Fatalf("move: %d answers for %d moves, %v", len(answers), len(moves), err)
	}
	return answers
}

func success(id job.RunID, fence job.Fence, at job.Instant) job.Move {
	return job.Move{ID: id, State: job.Succeeded, Fence: fence, Attempt: 1, Worker: "w1", StartedAt: at, FinishedAt: at.Add(time.Second),
		Result: json.RawMessage(`{"ok":true}`)}
}

// retry is the move after a failed attempt.
func retry(id job.RunID, fence job.Fence, attempt uint32, at job.Instant) job.Move {
	return job.Move{ID: id, State: job.Scheduled, Reason: job.RetryBackoff, Fence: fence, Attempt: attempt, Failures: attempt, Worker: "w1",
		StartedAt: at, FinishedAt: at.Add(time.Second), ReadyAt: at.Add(time.Minute), Error: "exit 1", ExitCode: 1,
		Ended: &job.Attempt{RunID: id, Attempt: attempt, Fence: fence, Worker: "w1", StartedAt: at, FinishedAt: at.Add(time.Second),
			State: job.Failed, Reason: job.ExitCode, Error: "exit 1", ExitCode: 1}}
}

func (f *fixture) runs(q job.RunQuery) []job.RunID {
	f.Helper()
	page, err := f.Runs(f.ctx, q)
	if err != nil {
		f.Fatalf("list runs %+v: %v", q, err)
	}
	return idsOf(page.Runs)
}

func idsOf(runs []*job.Run) []job.RunID {
	var list []job.RunID
	for _, r := range runs {
		if r == nil {
			list = append(list, job.RunID{})
			continue
		}
		list = append(list, r.ID)
	}
	return list
}

// same compares what a store answers with what was given to it: an absent map or slice equals an empty one, and a root's
// id may be filled in.
func same(want, got any) string {
	return cmp.Diff(want, got, cmpopts.EquateEmpty(), cmp.Transformer("root", func(r job.Run) any {
		type plain job.Run
		if r.RootID == r.ID {
			r.RootID = job.RunID{}
		}
		r.Home = 0
		return plain(r)
	}))
}

func (f *fixture) equal(what string, want, got any) {
	f.Helper()
	if d := same(want, got); d != "" {
		f.Fatalf("%s (-want +got):\n%s", what, d)
	}
}

func (f *fixture) code(what string, err error, want job.Code) {
	f.Helper()
	if job.CodeOf(err) != want {
		f.Fatalf("%s: %v, want the code %q", what, err, want)
	}
}

func name(i int) string { return fmt.Sprintf("job-%03d", i) }
