package sim

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// clients are those who use the cluster.
type clients struct {
	sim      *Sim
	over     bool
	jobs     []*simJob
	accepted []job.RunID
	specs    []*job.Document
	texts    []json.RawMessage
	graphs   graphs
	busy     int // requests without an answer
}

// simJob is a job; most tick.
type simJob struct {
	id     job.JobID
	name   string
	policy string
	text   string // with a verb for the edit
	edits  int
	paused bool
	there  bool
	then   func() // once it is there
}

var inline = []string{
	`{"exec":{"command":["work"]}}`,
	`{"exec":{"command":["work"]},"retry":{"max_attempts":3,"initial":"1s"}}`,
	`{"exec":{"command":["work"]},"concurrency":{"key":"k","limit":2}}`,
	`{"exec":{"command":["work"]},"on_worker_lost":"fail"}`,
}

func (c *clients) begin() {
	s := c.sim
	for _, t := range inline {
		d, err := job.ParseSpec([]byte(t))
		if err != nil {
			panic(err)
		}
		c.specs = append(c.specs, d)
		c.texts = append(c.texts, json.RawMessage(fmt.Sprintf(`{"spec":%s}`, t)))
	}
	for i, policy := range []string{"allow", "skip", "queue", "replace"} {
		every := []string{"2s", "3s", "5s", "11s"}[s.rand.IntN(4)]
		catchUp := []string{"all", "latest", "none"}[s.rand.IntN(3)]
		j := &simJob{id: s.newJobID(), name: "tick-" + itoa(i), policy: policy}
		j.text = fmt.Sprintf(`{name: %s, schedule: {cron: "@every %s", catch_up: %s}, overlap: %s, retry: {max_attempts: 2, initial: 1s}, exec: {command: [work, "%%d"]}}`,
			j.name, every, catchUp, policy)
		c.jobs = append(c.jobs, j)
		c.put(j, fmt.Sprintf(j.text, 0), false)
	}
	c.beginGraphs()
	pace := 200*time.Millisecond + s.upTo(3*time.Second)
	var next func()
	next = func() {
		s.after(s.upTo(2*pace), func() {
			if !c.over {
				c.one()
				next()
			}
		})
	}
	next()
}

func (c *clients) stop() { c.over = true }

// calm ends what would go on for ever: pauses, and schedules.
func (c *clients) calm() {
	for _, j := range c.jobs {
		c.pause(j, false) // also one that was never said to be paused: the answer may have been lost
		text := fmt.Sprintf(`{name: %s, schedule: {cron: "0 0 1 1 *"}, overlap: %s, exec: {command: [work]}}`, j.name, j.policy)
		c.put(j, text, true)
	}
}

func (c *clients) one() {
	s := c.sim
	switch k := s.rand.IntN(20); {
	case k == 0:
		j := c.jobs[s.rand.IntN(len(c.jobs))]
		if j.edits++; j.there && j.edits < 6 {
			c.put(j, fmt.Sprintf(j.text, j.edits), false)
		}
	case k == 1:
		if j := c.jobs[s.rand.IntN(len(c.jobs))]; j.there {
			c.pause(j, !j.paused)
		}
	case k <= 3 && len(c.accepted) > 0:
		c.cancel(c.accepted[s.rand.IntN(len(c.accepted))])
	case k <= 6 && len(c.accepted) > 0:
		c.read(c.accepted[s.rand.IntN(len(c.accepted))])
	case k == 7 && c.graphs.jobs[1].there:
		c.submitChain()
	case k == 8 && len(c.graphs.drawn) > 0 && len(c.graphs.trials) < 4:
		c.submitGraph()
	default:
		c.submit()
	}
}

func (s *Sim) entropy() (e [10]byte) {
	for i := range e {
		e[i] = byte(s.rand.Uint64() >> 9)
	}
	return e
}

func (s *Sim) newRunID() job.RunID { return job.MakeRunID(began.Add(s.now), s.entropy()) }
func (s *Sim) newJobID() job.JobID { return job.MakeJobID(began.Add(s.now), s.entropy()) }

// request has a node do something for a caller, who waits for so long and then does not know. A refusal or the lack of an
// answer may be followed by the same request to another node.
func (c *clients) request(what string, repeat int, do func(ctx context.Context, n *node) error, done func(n *node, asked time.Duration, err error)) {
	s := c.sim
	n := s.anyNode()
	asked := s.now
	if !n.up || n.frozen && s.rand.IntN(2) == 0 {
		if repeat > 0 {
			s.after(s.upTo(time.Second), func() { c.request(what, repeat-1, do, done) })
		}
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := false
	c.busy++
	finish := func(err error) {
		if over {
			return
		}
		over = true
		c.busy--
		cancel()
		s.note(what, n.name, string(job.CodeOf(err)))
		if err != nil {
			s.counts["requests "+string(job.CodeOf(err))]++
		}
		if code := job.CodeOf(err); code == job.Internal || code == job.Fenced {
			s.broken("%s through %s: %v", what, n.name, err)
		}
		done(n, asked, err)
		if code := job.CodeOf(err); repeat > 0 && (code == job.Unknown || code == job.Unavailable) {
			s.after(s.upTo(time.Second), func() { c.request(what, repeat-1, do, done) })
		}
	}
	s.after(12*time.Second, func() { finish(mayHappen()) })
	s.spawn(&n.host, what, func() {
		err := do(ctx, n)
		s.after(s.delay(), func() { finish(err) })
	})
}

func outcome(err error) checker.Outcome {
	switch job.CodeOf(err) {
	case "":
		return checker.OK
	case job.Unknown:
		return checker.Unknown
	}
	return checker.Refused
}

func (c *clients) submit() {
	s := c.sim
	i := s.rand.IntN(len(c.specs))
	sub := job.Submission{ID: s.newRunID(), Namespace: "default", Spec: c.specs[i]}
	if s.rand.IntN(5) == 0 {
		sub.RunAt = job.At(began.Add(s.now + s.upTo(20*time.Second)))
	}
	if s.rand.IntN(5) == 0 {
		sub.Key = "key-" + itoa(s.rand.IntN(8))
		i = int(sub.Key[4]-'0') % len(c.specs) // one body for a key
		sub.Spec, sub.RunAt = c.specs[i], 0
	}
	c.send(sub, c.texts[i])
}

func (c *clients) send(sub job.Submission, body json.RawMessage) {
	s := c.sim
	hash := sha256.Sum256(body)
	var answer *job.Run
	c.request("submit", 8, func(ctx context.Context, n *node) (err error) {
		var of *job.Job
		if sub.Job != "" {
			if of, err = n.store.Job(ctx, sub.Namespace, sub.Job); err != nil {
				return err
			}
		}
		r, err := job.Birth(&sub, of, job.At(n.now()))
		if err != nil {
			return err
		}
		r.Home = job.HomeQuorum
		if sub.Key != "" {
			r.BodyHash = hash[:]
		}
		receipts, err := n.store.Submit(ctx, []*job.Run{r})
		if err == nil {
			err = receipts[0].Err
		}
		if err != nil {
			return err
		}
		answer = receipts[0].Run
		c.hint(n, func(to *node) { to.term.Born([]*job.Run{answer}) })
		return nil
	}, func(n *node, asked time.Duration, err error) {
		op := checker.Op{Kind: checker.Submit, Asked: moment(asked), Done: moment(s.now), Outcome: outcome(err), Node: n.name, ID: sub.ID, Key: sub.Key, Body: body}
		if err == nil {
			op.Answer = answer
			c.accepted = append(c.accepted, answer.ID)
		}
		s.history.Ops = append(s.history.Ops, op)
	})
}

// hint tells the leader something, or does not.
func (c *clients) hint(n *node, f func(to *node)) {
	s := c.sim
	to := n
	if n.raft.leader >= 0 {
		to = s.nodes[n.raft.leader]
	}
	if s.rand.IntN(10) == 0 {
		return
	}
	s.datagram(&n.host, &to.host, func() {
		if to.term != nil {
			f(to)
		}
	})
}

func (c *clients) cancel(id job.RunID) {
	s := c.sim
	var answer *job.Run
	c.request("cancel", 5, func(ctx context.Context, n *node) error {
		receipts, err := n.store.Cancel(ctx, []job.CancelIntent{{ID: id, At: job.At(n.now())}})
		if err == nil {
			err = receipts[0].Err
		}
		if err == nil {
			answer = receipts[0].Run
			c.hint(n, func(to *node) { to.term.CancelRequested([]job.RunID{id}) })
		}
		return err
	}, func(n *node, asked time.Duration, err error) {
		s.history.Ops = append(s.history.Ops, checker.Op{Kind: checker.Cancel, Asked: moment(asked), Done: moment(s.now), Outcome: outcome(err), Node: n.name, ID: id, Answer: answer})
	})
}

func (c *clients) read(id job.RunID) {
	s := c.sim
	var answer *job.Run
	c.request("read", 0, func(ctx context.Context, n *node) (err error) {
		if n.raft.applied < n.floor {
			return notLeader() // it has just started and does not know all that it had told
		}
		answer, err = n.store.Run(ctx, id)
		return err
	}, func(n *node, asked time.Duration, err error) {
		if err == nil { // a node that lags may not know it: that is for others to judge
			s.history.Ops = append(s.history.Ops, checker.Op{Kind: checker.Read, Asked: moment(asked), Done: moment(s.now), Outcome: checker.OK, Node: n.name, ID: id, Answer: answer})
		}
	})
}

// put applies a job: the store, Raft, the answer (L7).
func (c *clients) put(j *simJob, text string, last bool) {
	d, err := job.ParseDocument([]byte(text))
	if err != nil {
		panic(err)
	}
	repeat := 5
	if last {
		repeat = 1000
	}
	c.request("put", repeat, func(ctx context.Context, n *node) error {
		if c.over && !last {
			return nil // of no use any more
		}
		stored, err := n.store.PutJob(ctx, job.PutJob{ID: j.id, Spec: d, At: job.At(n.now())})
		if err != nil {
			return err
		}
		j.there = true
		mark, ticks, err := job.MarkOf(stored.ID, stored.Version, stored.Spec)
		if err != nil || !ticks {
			return err
		}
		_, err = n.control.PutSchedule(ctx, mark)
		if job.CodeOf(err) == job.Conflict {
			return nil
		}
		return err
	}, func(_ *node, _ time.Duration, err error) {
		if then := j.then; err == nil && j.there && then != nil {
			j.then = nil
			then()
		}
	})
}

func (c *clients) pause(j *simJob, paused bool) {
	c.request("pause", 1000, func(ctx context.Context, n *node) error {
		if c.over && paused {
			return nil // asked before, and of no use any more
		}
		change := n.control.ResumeJob
		if paused {
			change = n.control.PauseJob
		}
		err := change(ctx, j.id)
		if err == nil {
			j.paused = paused
			c.hint(n, func(to *node) { to.term.ScheduleChanged() })
		}
		return err
	}, func(*node, time.Duration, error) {})
}
