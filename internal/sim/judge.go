package sim

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// led notes that a term began.
func (s *Sim) led(n *node, epoch job.Epoch) {
	if by, twice := s.ledBy[epoch]; twice {
		s.broken("%s leads in epoch %d, and so did %s", n.name, epoch, by)
	}
	s.ledBy[epoch] = n.name
	s.counts["terms"]++
	s.history.Leads = append(s.history.Leads, checker.Lead{Name: n.name, Epoch: epoch, Wall: began.Add(s.now).UnixNano()})
}

const hashEvery = 100

// applied checks what an entry did to a replica; what it says of all of them is looked at once.
func (s *Sim) applied(n *node, index uint64, e *entry, results []fsm.Result) {
	if index%hashEvery == 0 {
		s.compare(n, index)
	}
	if _, seen := s.judged(index); seen {
		return
	}
	for i, c := range e.commands {
		if t, ok := c.(fsm.Tagged); ok {
			c = t.Command
		}
		r := results[i]
		if job.CodeOf(r.Err) == job.Fenced {
			s.counts["commands fenced"]++
			continue
		}
		if r.Err != nil {
			s.counts["commands refused: "+string(job.CodeOf(r.Err))]++
			continue
		}
		switch c := c.(type) {
		case *fsm.Grant:
			s.effective(c.Epoch)
			refused, _ := r.Value.([]int)
			for i := range c.Grants {
				if g := &c.Grants[i]; !slices.Contains(refused, i) {
					s.granted(g)
				}
			}
		case *fsm.PutSchedule:
			if m, ok := r.Value.(job.Mark); ok && m.Version == c.Version {
				s.from[versionOf{c.JobID, c.Version}] = m.From
			}
		case *fsm.Decide:
			s.effective(c.Epoch)
			ticks, _ := r.Value.([]job.Tick)
			s.decided(ticks)
		case *fsm.StoreTicks:
			s.effective(c.Epoch)
		case *fsm.Release:
			s.effective(c.Epoch)
		case *fsm.Fire:
			s.effective(c.Epoch)
		case *fsm.Move:
			s.effective(c.Epoch)
			moved, _ := r.Value.([]job.Moved)
			for _, m := range moved {
				s.moved(m)
			}
		}
	}
}

// judged tells whether an index was looked at before, and notes it.
func (s *Sim) judged(index uint64) (first bool, seen bool) {
	k := s.committed[index]
	seen = k.judged
	k.judged = true
	return !seen, seen
}

// effective: of two leaders only the newer's writes count.
func (s *Sim) effective(epoch job.Epoch) {
	if epoch < s.epoch {
		s.broken("a command of epoch %d was taken after one of epoch %d", epoch, s.epoch)
	}
	s.epoch = epoch
}

// granted: fences only grow.
func (s *Sim) granted(g *job.Grant) {
	last := s.fences[g.RunID]
	if g.Fence < last {
		s.broken("run %s is granted under fence %d after %d", g.RunID, g.Fence, last)
	}
	s.fences[g.RunID] = g.Fence
	s.counts["grants"]++
	if end, ended := s.ends[g.RunID]; ended {
		s.broken("run %s is granted though it has ended: %s", g.RunID, end)
	}
}

// decided: no tick is ahead of the median clock (L8). Only one clock is wrong at a time, so that is true time.
func (s *Sim) decided(ticks []job.Tick) {
	now := job.At(s.median().Add(jitter + 5*time.Millisecond))
	for i := range ticks {
		if t := &ticks[i]; max(t.ScheduledAt, t.Until) > now {
			s.broken("the tick of %s is decided at %s", t.ScheduledAt, now)
		}
		s.counts["ticks decided"] += ticks[i].Ticks()
	}
}

// moved: terminal is final (D4).
func (s *Sim) moved(m job.Moved) {
	if !m.Applied || m.Run == nil {
		return
	}
	if end, ended := s.ends[m.Run.ID]; ended {
		s.broken("run %s was %s and is moved to %s", m.Run.ID, end, m.Run.State)
	}
	if m.Run.State.Terminal() {
		s.ends[m.Run.ID] = m.Run.State
		s.counts["runs "+m.Run.State.String()]++
	}
}

// compare: the same log is the same state.
func (s *Sim) compare(n *node, index uint64) {
	h, err := n.state.Hash()
	if err != nil {
		s.broken("%s cannot hash its state: %v", n.name, err)
		return
	}
	s.history.Digests = append(s.history.Digests, checker.Digest{Name: n.name, Index: index, Hash: hex.EncodeToString(h[:8])})
	if first, known := s.hashes[index]; !known {
		s.hashes[index] = hashed{n.name, h}
	} else if first.hash != h {
		s.broken("at %d the state of %s is not that of %s", index, n.name, first.by)
	}
}

// began notes that work truly started.
func (s *Sim) began(w *worker, a *attempt) {
	s.note("start", w.name, a.RunID[:], uint64(a.Fence))
	s.starts = append(s.starts, &started{worker: w, attempt: a, at: s.now})
	s.history.Work = append(s.history.Work, checker.Work{Event: checker.Start, Run: a.RunID, Attempt: a.Attempt, Fence: a.Fence,
		Life: w.pid, At: moment(s.now), Wall: began.Add(s.now).UnixNano()})
}

func (s *Sim) ended(w *worker, a *attempt) {
	s.note("end", w.name, a.RunID[:], a.code)
	for _, x := range slices.Backward(s.starts) {
		if x.attempt == a {
			x.end = s.now
			break
		}
	}
	s.history.Work = append(s.history.Work, checker.Work{Event: checker.End, Run: a.RunID, Attempt: a.Attempt, Fence: a.Fence,
		Life: w.pid, At: moment(s.now), Wall: began.Add(s.now).UnixNano(), Code: a.code})
}

// quiet tells whether all is done.
func (s *Sim) quiet() bool { return s.unfinished() == "" }

// unfinished says what there is still to do.
func (s *Sim) unfinished() string {
	if s.clients.busy > 0 {
		return fmt.Sprintf("%d requests wait", s.clients.busy)
	}
	l := s.leading()
	if l == nil || l.term == nil {
		return "nobody leads"
	}
	for _, j := range s.clients.jobs {
		if m, ok := l.state.Mark(j.id); j.there && (!ok || len(m.Earlier) > 0 || m.At < m.From) {
			return fmt.Sprintf("ticks of %s are not decided: %t, version %d from %s, decided up to %s, %d versions before it", j.name, ok, m.Version, m.From, m.At, len(m.Earlier))
		}
	}
	v := l.state.View()
	for r := range v.Live(job.RunID{}) {
		why, _ := l.term.Explain(context.Background(), r)
		return fmt.Sprintf("%d runs live, such as %s of %q: %s (%s): %s", v.Fill().LiveRuns, r.ID, r.Job, r.State, r.Reason, why)
	}
	if v.Fires() {
		return "jobs are due after others"
	}
	if g := l.state.Grants(); len(g) > 0 {
		return fmt.Sprintf("%d leases stand", len(g))
	}
	for _, w := range s.workers {
		if w.up && len(w.held)+len(w.attempts) > 0 {
			return fmt.Sprintf("%s holds %d results and runs %d", w.name, len(w.held), len(w.attempts))
		}
	}
	for _, n := range s.nodes {
		if n.up && n.raft.applied != l.raft.applied {
			return fmt.Sprintf("%s has applied %d of %d", n.name, n.raft.applied, l.raft.applied)
		}
	}
	return ""
}

// judge completes the history and has the checker judge it.
func (s *Sim) judge() *checker.Report {
	l := s.leading()
	if l == nil {
		s.broken("nobody leads in the end")
		return nil
	}
	for _, n := range s.nodes {
		if n.up && n.raft.applied == l.raft.applied {
			s.compare(n, l.raft.applied)
		}
	}
	ctx := context.Background()
	v := l.state.View()
	for _, j := range s.clients.jobs {
		m, ok := l.state.Mark(j.id)
		if !ok {
			if j.there {
				s.broken("the mark of %s is gone", j.name)
			}
			continue
		}
		jb := checker.Job{ID: j.id, Name: j.name, Until: m.At}
		for x := range v.Versions(j.id) {
			from, effective := s.from[versionOf{j.id, x.Version}]
			if !effective {
				continue // the store has it, and Raft was never told before the next one came (L7)
			}
			if x.From != from {
				s.broken("version %d of %s ticks from %s, and its row says %s", x.Version, j.name, from, x.From)
			}
			jb.Versions = append(jb.Versions, *x)
		}
		for t := range v.Ticks(j.id, 0) {
			k := checker.Tick{Tick: *t}
			if t.Disposition == job.TickRun {
				k.RunID = t.RunID()
			}
			jb.Ticks = append(jb.Ticks, k)
		}
		s.history.Jobs = append(s.history.Jobs, jb)
	}
	note := func(r *job.Run) {
		attempts, err := l.store.Attempts(ctx, r.ID)
		if err != nil {
			s.broken("attempts of %s: %v", r.ID, err)
		}
		if r.Attempt > 0 && (len(attempts) == 0 || attempts[len(attempts)-1].Attempt < r.Attempt) {
			attempts = append(attempts, job.Attempt{RunID: r.ID, Attempt: r.Attempt, Fence: r.Fence, Worker: r.Worker, State: r.State, Reason: r.Reason, StartedAt: r.StartedAt, FinishedAt: r.FinishedAt})
		}
		s.history.Runs = append(s.history.Runs, checker.Run{Run: *r, Attempts: attempts})
	}
	for r := range v.Runs(fsm.Which{Live: true, History: true}) {
		note(r)
		for below := range v.Runs(fsm.Which{Live: true, History: true, RootID: r.ID}) {
			note(below)
		}
	}
	s.clients.graphs.history(s, l)
	s.history.Refusals = []checker.Refusal{{Kind: checker.LateWorker, N: 1}, {Kind: checker.LateLeader, N: 1}} // judged over all seeds
	report := checker.Judge(&s.history)
	for _, x := range report.Violations {
		s.broken("%s", x)
	}
	s.exercised(report)
	s.clients.graphs.judge(s)
	s.overlaps("the concurrency key", 2, func(a *attempt) bool { return a.Spec.Concurrency != nil && a.Spec.Concurrency.Key == "k" })
	for _, j := range s.clients.jobs[1:] {
		s.overlaps(j.name, 1, func(a *attempt) bool { return a.Job == j.name })
	}
	return report
}

// overlaps: of some attempts never more than so many run at once, as long as their workers get to run.
func (s *Sim) overlaps(what string, most int, of func(*attempt) bool) {
	var live []*started
	for _, x := range s.starts {
		if !of(x.attempt) || s.disturbed(x) {
			continue
		}
		live = slices.DeleteFunc(live, func(y *started) bool { return y.end != 0 && y.end <= x.at })
		if live = append(live, x); len(live) > most {
			s.broken("%s: %d attempts run at once, %d may", what, len(live), most)
			return
		}
	}
}

// disturbed: the worker of an attempt was frozen or killed about then, so its end is not in anybody's hands.
func (s *Sim) disturbed(x *started) bool {
	if x.end == 0 {
		return true
	}
	return slices.ContainsFunc(s.history.Faults, func(f checker.Fault) bool {
		return f.Name == x.worker.name && f.Kind == checker.Pause && f.From <= moment(x.end) && f.To >= moment(x.at)
	})
}
