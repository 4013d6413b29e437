package bubble

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// load is the clients of a trial: they submit, repeat, cancel and read, at every node alike, whatever happens to it.
type load struct {
	*world
	docs []*job.Document

	mu    sync.Mutex
	known []job.RunID // accepted, the latest last
	keys  []keyed
	next  int
}

type keyed struct {
	key  string
	body submission
}

// submission is what is asked for, without id and key.
type submission struct {
	Job     string        `json:"job,omitempty"`
	Spec    *job.Document `json:"spec,omitempty"`
	Payload *task         `json:"payload,omitempty"`
}

func handler(name string) *job.Handler { return &job.Handler{Name: name} }

// documents are the jobs. Some want no tick to be given up, others are slow and queue or skip.
func documents(slow bool) []*job.Document {
	every := func(name string, seconds int, do string, overlap job.Overlap, catchUp job.CatchUpPolicy) *job.Document {
		if slow {
			seconds *= 20
		}
		d := &job.Document{Name: name, Handler: handler(do), Schedule: &job.Schedule{Cron: fmt.Sprintf("@every %ds", seconds)}, Overlap: overlap}
		d.Schedule.CatchUp.Policy = catchUp
		return d
	}
	flaky := every("flaky", 5, "flaky", job.OverlapAllow, job.CatchUpAll)
	flaky.Retry = job.Retry{MaxAttempts: 3, Initial: job.Duration(time.Second)}
	once := every("once", 4, "slow", job.OverlapSkipTick, job.CatchUpAll)
	once.OnWorkerLost = job.FailOnLoss
	return []*job.Document{
		every("all", 1, "quick", job.OverlapAllow, job.CatchUpAll),
		every("latest", 2, "quick", job.OverlapAllow, job.CatchUpLatest),
		every("queue", 2, "slow", job.OverlapQueueTick, job.CatchUpAll),
		every("replace", 2, "slow", job.OverlapReplaceRun, job.CatchUpLatest),
		flaky, once,
		{Name: "manual", Handler: handler("quick")},
	}
}

// put brings a document into effect and records when.
func (l *load) put(ctx context.Context, d *job.Document) {
	op := checker.Op{Kind: checker.Put, Asked: l.now(), Job: d.Name, Before: job.At(time.Now())}
	for ctx.Err() == nil {
		j, err := l.sdk.PutJob(ctx, d)
		if err != nil {
			if ctx.Err() == nil && job.CodeOf(err) != job.Unavailable && job.CodeOf(err) != job.Unknown {
				l.t.Errorf("put %s: %v", d.Name, err)
			}
			continue
		}
		if !j.Effective && d.Schedule != nil { // the schedule is not in Raft yet; the same document again changes nothing else
			time.Sleep(100 * time.Millisecond)
			continue
		}
		op.Done, op.After, op.Outcome, op.Version = l.now(), job.At(time.Now()), checker.OK, j.Version
		l.rec.op(op)
		return
	}
}

// run is all clients; it returns when ctx has ended and each has its last answer.
func (l *load) run(ctx context.Context, seed uint64) {
	var all sync.WaitGroup
	for i, turn := range []func(context.Context, *rand.Rand){l.submitOne, l.submitOne, l.submitKeyed, l.readOne, l.cancelOne, l.edit} {
		pause := []time.Duration{500, 500, 700, 300, 1500, 10_000}[i] * time.Millisecond
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(10+i)))
			for ctx.Err() == nil {
				turn(ctx, r)
				select {
				case <-ctx.Done():
				case <-time.After(time.Duration(r.Int64N(int64(2 * pause)))):
				}
			}
		})
	}
	all.Wait()
}

// some makes what a client may ask for: mostly quick, some slow, some of the named job.
func some(r *rand.Rand) submission {
	s := submission{Payload: &task{N: 1 + r.IntN(1000)}}
	switch r.IntN(8) {
	case 0, 1:
		s.Job = "manual"
	case 2:
		s.Spec, s.Payload.For = &job.Document{Handler: handler("work"), OnWorkerLost: job.FailOnLoss}, job.Duration(3*time.Second)
	case 3:
		s.Spec, s.Payload.Fail = &job.Document{Handler: handler("work"), Retry: job.Retry{MaxAttempts: 2, Initial: job.Duration(time.Second)}}, 2
	case 4:
		s.Spec, s.Payload.For = &job.Document{Handler: handler("work")}, job.Duration(15*time.Second)
	default:
		s.Spec = &job.Document{Handler: handler("work")}
	}
	return s
}

// one is a client that asks one node, once.
func (l *load) one(r *rand.Rand) (node string, c *client.Client) {
	n := l.nodes[r.IntN(len(l.nodes))]
	for n.gone.Load() {
		n = l.nodes[r.IntN(len(l.nodes))]
	}
	return n.name, l.clientOf(n)
}

// answered records the end of a request.
func (l *load) answered(op checker.Op, run *job.Run, err error) checker.Outcome {
	op.Done, op.Outcome = l.now(), checker.OK
	if err != nil {
		op.Problem, op.Outcome = err.Error(), checker.Refused
		switch job.CodeOf(err) {
		case job.NotFound:
			op.Status = 404
		case job.Unknown:
			op.Outcome = checker.Unknown
		case job.Internal, job.Invalid:
			l.t.Errorf("%s of %s at %s: %v", op.Kind, op.ID, op.Node, err)
			op.Outcome = checker.Unknown
		}
	} else {
		op.Answer = run
		if op.Kind == checker.Submit {
			l.mu.Lock()
			l.known = append(l.known, run.ID)
			l.mu.Unlock()
		}
	}
	l.rec.op(op)
	return op.Outcome
}

func (l *load) submit(ctx context.Context, r *rand.Rand, s submission, id job.RunID, key string) checker.Outcome {
	body, err := json.Marshal(s)
	if err != nil {
		l.t.Error(err)
	}
	node, c := l.one(r)
	op := checker.Op{Kind: checker.Submit, Asked: l.now(), Node: node, ID: id, Key: key, Body: body}
	run, err := c.Submit(context.WithoutCancel(ctx), client.Submission{Job: s.Job, Spec: s.Spec, Payload: s.Payload, ID: id, Key: key})
	return l.answered(op, run, err)
}

// submitOne asks again, of another node perhaps, with the same id when it does not know.
func (l *load) submitOne(ctx context.Context, r *rand.Rand) {
	s, id := some(r), client.NewRunID()
	for range 3 {
		if l.submit(ctx, r, s, id, "") != checker.Unknown {
			return
		}
	}
}

// submitKeyed uses a new key, or a known one with the same body, or with another; often two at once.
func (l *load) submitKeyed(ctx context.Context, r *rand.Rand) {
	l.mu.Lock()
	l.next++
	k := keyed{fmt.Sprintf("order-%d", l.next), some(r)}
	if n := len(l.keys); n > 0 && r.IntN(2) == 0 {
		k = l.keys[n-1-r.IntN(min(n, 20))]
		if r.IntN(5) == 0 {
			k.body.Payload = &task{N: -1}
		}
	} else {
		l.keys = append(l.keys, k)
	}
	l.mu.Unlock()
	var all sync.WaitGroup
	for range 1 + r.IntN(2) {
		own := rand.New(rand.NewPCG(r.Uint64(), 0))
		all.Go(func() { l.submit(ctx, own, k.body, client.NewRunID(), k.key) })
	}
	all.Wait()
}

// pick answers a run that was accepted, one of the latest.
func (l *load) pick(r *rand.Rand, latest int) (id job.RunID, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.known)
	if n == 0 {
		return id, false
	}
	return l.known[n-1-r.IntN(min(n, latest))], true
}

func (l *load) cancelOne(ctx context.Context, r *rand.Rand) {
	id, ok := l.pick(r, 10)
	if !ok {
		return
	}
	node, c := l.one(r)
	op := checker.Op{Kind: checker.Cancel, Asked: l.now(), Node: node, ID: id}
	run, err := c.Cancel(context.WithoutCancel(ctx), id)
	l.answered(op, run, err)
}

// readOne looks at a run that was accepted; a node that answers must know it, and what it tells must go forward.
func (l *load) readOne(ctx context.Context, r *rand.Rand) {
	id, ok := l.pick(r, 40)
	if !ok {
		return
	}
	node, c := l.one(r)
	op := checker.Op{Kind: checker.Read, Asked: l.now(), Node: node, ID: id}
	run, err := c.Run(ctx, id)
	if err == nil || job.CodeOf(err) == job.NotFound {
		l.answered(op, run, err)
	}
}

// edit makes a new version of a job, so that ticks have more than one owner.
func (l *load) edit(ctx context.Context, r *rand.Rand) {
	l.mu.Lock()
	d := *l.docs[r.IntN(len(l.docs))]
	p := r.IntN(10)
	d.Priority = &p
	l.mu.Unlock()
	l.put(ctx, &d)
}
