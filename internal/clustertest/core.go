// Package clustertest is a scheduler in one process for tests: the real state machine, store, queue and term, over a log
// that is a mutex and workers that are functions. It is meant for synctest bubbles, where its hours cost nothing, and a
// test holds every lever: which step fails and how, when the leader is deposed, what workers do.
package clustertest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sort"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/musterhq/muster/cluster"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
	"github.com/musterhq/muster/storage/memory"
	"github.com/musterhq/muster/storage/replicated"
)

// Core is one node's scheduling parts. It outlives its leaders: Depose and Lead change them.
type Core struct {
	t       testing.TB
	State   *fsm.State
	Log     *Log
	Store   *replicated.Store
	Queue   *memory.Queue
	Control *cluster.Control
	Workers *Workers
	// Configure changes what terms work with, from the next one on; nil: nothing.
	Configure func(*scheduler.Config)

	mu    sync.Mutex
	term  *scheduler.Term
	end   context.CancelFunc
	ended chan error
	ids   uint64
}

// New makes a core without a leader. It is taken down with the test.
func New(t testing.TB) *Core {
	c := &Core{t: t, State: fsm.New()}
	c.Log = &Log{state: c.State}
	c.Store = replicated.New(c.Log, c.State)
	c.Queue = memory.New(0)
	c.Control = cluster.NewControl(c.Log, c.State)
	c.Workers = newWorkers(c)
	return c
}

type testClock struct{ start time.Time }

func (testClock) Now() time.Time           { return time.Now() }
func (c testClock) Elapsed() time.Duration { return time.Since(c.start) }

// Lead begins a term and attaches the workers to it.
func (c *Core) Lead() {
	c.t.Helper()
	ctx, end := context.WithCancel(context.Background())
	var term *scheduler.Term
	for {
		var err error
		config := scheduler.Config{
			Control: c.Control, Store: c.Store, Queue: c.Queue, Gateways: c.Workers, Clock: testClock{time.Now().Add(-time.Hour)},
			Jitter: func() float64 { return 0.5 }, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		}
		if c.Configure != nil {
			c.Configure(&config)
		}
		term, err = scheduler.Begin(ctx, config)
		if err == nil {
			break
		}
		if code := job.CodeOf(err); code != job.Unavailable && code != job.Unknown {
			c.t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // as cluster.Node does
	}
	ended := make(chan error, 1)
	c.mu.Lock()
	c.term, c.end, c.ended = term, end, ended
	c.mu.Unlock()
	go func() { ended <- term.Run(ctx) }()
	c.Workers.attachAll(term)
}

// Depose ends the term, as a crash of the leader does: nothing that it had in memory survives.
func (c *Core) Depose() {
	c.t.Helper()
	c.mu.Lock()
	end, ended := c.end, c.ended
	c.term, c.end, c.ended = nil, nil, nil
	c.mu.Unlock()
	if end == nil {
		return
	}
	end()
	if err := <-ended; err != nil {
		c.t.Errorf("the term did not outlast a failure: %v", err)
	}
}

// Term is the one that leads, or nil.
func (c *Core) Term() *scheduler.Term {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.term
}

// NewID makes a run id for now.
func (c *Core) NewID() job.RunID {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ids++
	var e [10]byte
	e[7], e[8], e[9] = byte(c.ids>>16), byte(c.ids>>8), byte(c.ids)
	return job.MakeRunID(time.Now(), e)
}

// Apply stores a job and makes its schedule tick, as the API does.
func (c *Core) Apply(document string) *job.Job {
	c.t.Helper()
	d, err := job.ParseDocument([]byte(document))
	if err != nil {
		c.t.Fatal(err)
	}
	var e [10]byte
	id := c.NewID()
	copy(e[:], id[6:])
	j, err := retry(func() (*job.Job, error) {
		return c.Store.PutJob(context.Background(), job.PutJob{ID: job.MakeJobID(time.Now(), e), Spec: d, At: job.At(time.Now())})
	})
	if err != nil {
		c.t.Fatal(err)
	}
	if mark, ticks, err := job.MarkOf(j.ID, j.Version, j.Spec); err != nil {
		c.t.Fatal(err)
	} else if ticks {
		if _, err := retry(func() (job.Mark, error) { return c.Control.PutSchedule(context.Background(), mark) }); err != nil {
			c.t.Fatal(err)
		}
	}
	return j
}

// Submit stores a run of an inline spec or, with of, of a job, and hints at it.
func (c *Core) Submit(s job.Submission, of *job.Job) *job.Run {
	c.t.Helper()
	if s.ID.IsZero() {
		s.ID = c.NewID()
	}
	if s.Namespace == "" {
		s.Namespace = "default"
	}
	r, err := job.Birth(&s, of, job.At(time.Now()))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Home = job.HomeQuorum
	got, err := retry(func() (*job.Run, error) {
		receipts, err := c.Store.Submit(context.Background(), []*job.Run{r})
		if err != nil {
			return nil, err
		}
		return receipts[0].Run, receipts[0].Err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	if t := c.Term(); t != nil {
		t.Born([]*job.Run{got})
	}
	return got
}

// Spec parses an inline spec.
func (c *Core) Spec(document string) *job.Document {
	c.t.Helper()
	d, err := job.ParseSpec([]byte(document))
	if err != nil {
		c.t.Fatal(err)
	}
	return d
}

// Cancel stores an intent and hints at it.
func (c *Core) Cancel(id job.RunID) {
	c.t.Helper()
	if _, err := retry(func() ([]job.Receipt, error) {
		return c.Store.Cancel(context.Background(), []job.CancelIntent{{ID: id, At: job.At(time.Now())}})
	}); err != nil {
		c.t.Fatal(err)
	}
	if t := c.Term(); t != nil {
		t.CancelRequested([]job.RunID{id})
	}
}

// Run reads a run.
func (c *Core) Run(id job.RunID) *job.Run {
	c.t.Helper()
	r, err := c.Store.Run(context.Background(), id)
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// RunsOf reads all runs of a job, in the order of their ids.
func (c *Core) RunsOf(j *job.Job) []*job.Run {
	c.t.Helper()
	var out []*job.Run
	q := job.RunQuery{Namespace: j.Namespace, Job: j.Name, Limit: 1000}
	for {
		page, err := c.Store.Runs(context.Background(), q)
		if err != nil {
			c.t.Fatal(err)
		}
		out = append(out, page.Runs...)
		if q.Before = page.Next; q.Before.IsZero() {
			break
		}
	}
	sort.Slice(out, func(a, b int) bool { return string(out[a].ID[:]) < string(out[b].ID[:]) })
	return out
}

// Ticks reads a job's whole ledger, oldest first.
func (c *Core) Ticks(j *job.Job) []job.Tick {
	c.t.Helper()
	ticks, err := c.Store.Ticks(context.Background(), job.TickQuery{JobID: j.ID, Limit: 10_000})
	if err != nil {
		c.t.Fatal(err)
	}
	sort.Slice(ticks, func(a, b int) bool { return ticks[a].ScheduledAt < ticks[b].ScheduledAt })
	return ticks
}

// retry repeats what a caller of the API would: every write here is safe to repeat.
func retry[T any](f func() (T, error)) (T, error) {
	for i := 0; ; i++ {
		v, err := f()
		if code := job.CodeOf(err); code != job.Unavailable && code != job.Unknown || i == 1000 {
			return v, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Log is the shortest of logs: an entry is committed when it is applied. It fails on cue.
type Log struct {
	state *fsm.State

	mu    sync.Mutex
	index uint64
	delay time.Duration
	fail  func(commands []fsm.Command) Failure
}

// Failure is how a proposal fails.
type Failure int

const (
	NoFailure   Failure = iota
	NotDone             // Unavailable: nothing happened
	DoneUnknown         // committed, and the answer is lost
	LostUnknown         // not committed, and nobody knows
)

// Fail sets what decides how each proposal fails; nil: none does.
func (l *Log) Fail(f func(commands []fsm.Command) Failure) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = f
}

// Delay makes each commit take a while.
func (l *Log) Delay(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = d
}

// Propose implements replicated.Proposer and cluster.Proposer.
func (l *Log) Propose(ctx context.Context, commands ...fsm.Command) ([]fsm.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, &job.Error{Code: job.Unavailable, Message: "the caller is gone", Cause: err}
	}
	if n := fsm.Size(commands...); n > cluster.MaxProposalBytes {
		return nil, job.Errorf(job.Invalid, "too_large", "the request needs a log entry of %d bytes", n)
	}
	l.mu.Lock()
	delay, how := l.delay, NoFailure
	if l.fail != nil {
		how = l.fail(commands)
	}
	l.mu.Unlock()
	if delay > 0 {
		time.Sleep(delay)
	}
	switch how {
	case NotDone:
		return nil, job.Errorf(job.Unavailable, "test", "not done, on cue")
	case LostUnknown:
		return nil, job.Errorf(job.Unknown, "test", "lost, on cue")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	data, err := fsm.EncodeEntry(fsm.Origin{}, job.At(time.Now()), commands...)
	if err != nil {
		return nil, err
	}
	l.index++
	results := l.state.Apply(&raft.Log{Index: l.index, Term: 1, Type: raft.LogCommand, Data: data}).([]fsm.Result)
	if how == DoneUnknown {
		return nil, job.Errorf(job.Unknown, "test", "done, and the answer lost, on cue")
	}
	return results, nil
}

// Chaos fails a share of proposals in every way, by a seed.
func Chaos(seed uint64, share float64) func([]fsm.Command) Failure {
	r := rand.New(rand.NewPCG(seed, 1))
	return func([]fsm.Command) Failure {
		if r.Float64() >= share {
			return NoFailure
		}
		return []Failure{NotDone, DoneUnknown, LostUnknown}[r.IntN(3)]
	}
}

var _ fmt.Stringer = Failure(0)

func (f Failure) String() string {
	return [...]string{"no failure", "not done", "done, unknown", "lost, unknown"}[f]
}
