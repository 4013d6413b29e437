package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker"
	"github.com/musterhq/muster/worker/gateway"
	"github.com/musterhq/muster/worker/gateway/output"
)

// take answers the next value of a channel, or fails the test.
func take[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(30 * time.Second):
		t.Fatalf("did not happen: %s", what)
		panic("unreachable")
	}
}

func stopReason(err error) job.Reason {
	var s *worker.Stop
	if errors.As(err, &s) {
		return s.Reason
	}
	return job.NoReason
}

func TestUnacknowledgedResultsComeAgainOnTheNextStream(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	f.leader.autoAck = false
	b := newBlocker()
	f.start(t, f.agentConfig(t, "w1", b.Handlers))
	s1 := f.leader.session(t, "w1")
	done, running := f.assignment("quick"), f.assignment("block")
	f.leader.assign(s1, done, running)
	f.leader.outcome(t, done.Fence)
	take(t, b.running, "block runs")

	f.hangUp(f.address)
	f.leader.await(t, "the stream has ended", func() bool { return f.leader.workers["w1"] == "" })
	if ok := f.leader.assign(s1, f.assignment("quick")); ok[0] {
		t.Error("the broken stream took an assignment")
	}
	f.leader.tell(func() { f.leader.outcomes, f.leader.autoAck = nil, true })
	f.restore(f.address)
	f.leader.session(t, "w1")
	if o := f.leader.outcome(t, done.Fence); o.Kind != job.AttemptSucceeded {
		t.Errorf("resent outcome %+v", o)
	}
	f.leader.mu.Lock()
	hello := f.leader.hellos[len(f.leader.hellos)-1]
	f.leader.mu.Unlock()
	if len(hello.Running) != 2 {
		t.Errorf("the second Hello lists %v, want the running and the unacknowledged attempt", hello.Running)
	}
	close(b.release)
	if o := f.leader.outcome(t, running.Fence); o.Kind != job.AttemptSucceeded {
		t.Errorf("outcome of what ran across the break: %+v", o)
	}
}

func TestResultsOutliveTheAgent(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	f.leader.autoAck = false
	c := f.agentConfig(t, "w1", newBlocker().Handlers)
	c.FlushTimeout = time.Millisecond
	a := f.start(t, c)
	x := f.assignment("quick")
	f.leader.assign(f.leader.session(t, "w1"), x)
	f.leader.outcome(t, x.Fence)
	a.end(t)
	f.leader.await(t, "it is detached", func() bool { return f.leader.workers["w1"] == "" })
	f.leader.tell(func() { f.leader.outcomes, f.leader.autoAck = nil, true })
	b := f.start(t, c)
	f.leader.outcome(t, x.Fence)
	f.leader.session(t, "w1")
	// Delivered twice, it runs once: the spool remembers the fence.
	f.leader.tell(func() { f.leader.outcomes = nil })
	y := f.assignment("quick")
	f.leader.assign(f.leader.session(t, "w1"), x, y)
	f.leader.outcome(t, y.Fence)
	b.end(t)
	for _, o := range f.leader.outcomes { // a result may come twice, a run not
		if o.Fence != y.Fence {
			t.Errorf("outcome after a repeated delivery: %+v", o)
		}
	}
}

func TestALostLeaseStopsTheWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, true)
		b := newBlocker()
		f.start(t, f.agentConfig(t, "w1", b.Handlers))
		killed, kept := f.assignment("block"), f.assignment("block")
		kept.Spec.OnLeaseLost = job.FinishOnLeaseLost
		f.leader.assign(f.leader.session(t, "w1"), killed, kept)
		take(t, b.running, "one runs")
		take(t, b.running, "both run")
		time.Sleep(4 * time.Minute) // heartbeats keep the lease
		f.leader.mu.Lock()
		beats := f.leader.beats
		f.leader.mu.Unlock()
		if beats < 40 || len(b.causes) != 0 {
			t.Fatalf("%d heartbeats, %d attempts stopped under a living lease", beats, len(b.causes))
		}

		cutAt := time.Now()
		f.hangUp(f.address)
		if r := stopReason(<-b.causes); r != job.LeaseLost {
			t.Errorf("stopped because of %v", r)
		}
		// The last acknowledged heartbeat was sent up to 5.25 s before the cut.
		if took := time.Since(cutAt); took > job.LeaseTimeout+300*time.Millisecond || took < job.LeaseTimeout-5500*time.Millisecond {
			t.Errorf("the work was stopped %v after the cut", took)
		}
		time.Sleep(time.Minute)
		if len(b.causes) != 0 {
			t.Error("on_lease_lost: finish was stopped as well")
		}
		f.restore(f.address)
		if o := f.leader.outcome(t, killed.Fence); o.Kind != job.AttemptLost || o.Reason != job.LeaseLost {
			t.Errorf("outcome %+v", o)
		}
		close(b.release)
		if o := f.leader.outcome(t, kept.Fence); o.Kind != job.AttemptSucceeded {
			t.Errorf("outcome %+v", o)
		}
	})
}

func TestALeaseCountsFromBeforeTheHeartbeatWasSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, true)
		b := newBlocker()
		f.start(t, f.agentConfig(t, "w1", b.Handlers))
		f.leader.assign(f.leader.session(t, "w1"), f.assignment("block"))
		<-b.running
		began := time.Now()
		freeze := make(chan struct{})
		f.leader.tell(func() { f.leader.freeze = freeze })
		time.Sleep(5900 * time.Millisecond) // the first heartbeat goes out after 5 s
		close(freeze)
		synctest.Wait()
		f.hangUp(f.address)
		<-b.causes
		if took := time.Since(began); took < 34*time.Second || took > 35500*time.Millisecond {
			t.Errorf("the lease ended after %v, want 30 s from the sending at 5 s, not from the answer at 5.9 s", took)
		}
	})
}

func TestANodeWithoutALeaderRenewsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, true)
		b := newBlocker()
		f.start(t, f.agentConfig(t, "w1", b.Handlers))
		f.leader.assign(f.leader.session(t, "w1"), f.assignment("block"))
		<-b.running
		time.Sleep(time.Minute + time.Second)
		f.gateway.SetLeader(nil)
		began := time.Now()
		if r := stopReason(<-b.causes); r != job.LeaseLost {
			t.Errorf("stopped because of %v", r)
		}
		if took := time.Since(began); took < 24*time.Second || took > 31*time.Second {
			t.Errorf("the lease ended %v after the last leader", took)
		}
	})
}

func TestAHandlerThatNeverEndsIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, true)
		release, runs := make(chan struct{}), make(chan struct{})
		h := &worker.Handlers{}
		h.Handle("stubborn", func(context.Context, json.RawMessage) (json.RawMessage, error) {
			close(runs)
			<-release
			return nil, nil
		})
		a := f.start(t, f.agentConfig(t, "w1", h))
		f.leader.assign(f.leader.session(t, "w1"), f.assignment("stubborn"))
		<-runs
		a.stop()
		err := <-a.done
		a.done <- nil
		if err == nil || !strings.Contains(err.Error(), "1 attempts did not stop") {
			t.Errorf("it ended with %v", err)
		}
		close(release)
	})
}

func TestASilentNodeIsLeftForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, true)
		l2 := newLeader()
		g2, second := f.addGateway(t, "n2", l2)
		l2.gateway = g2
		c := f.agentConfig(t, "w1", newBlocker().Handlers)
		c.Addresses = []string{f.address, second}
		f.start(t, c)
		// Wherever it attached, freeze that node's leader: heartbeats are no longer answered.
		var first, other *leader
		for first == nil {
			time.Sleep(10 * time.Millisecond)
			for l, o := range map[*leader]*leader{f.leader: l2, l2: f.leader} {
				l.mu.Lock()
				if l.workers["w1"] != "" {
					first, other = l, o
				}
				l.mu.Unlock()
			}
		}
		freeze := make(chan struct{})
		first.tell(func() { first.freeze = freeze })
		frozenAt := time.Now()
		other.session(t, "w1")
		if took := time.Since(frozenAt); took > 7*time.Second || took < 5*time.Second {
			t.Errorf("left after %v, want about 6 s", took)
		}
		close(freeze)
	})
}

func TestWithoutALeaderWorkersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, true)
		f.gateway.SetLeader(nil)
		f.start(t, f.agentConfig(t, "w1", newBlocker().Handlers))
		time.Sleep(10 * time.Second) // less than half a lease: it stays
		f.leader.mu.Lock()
		if len(f.leader.hellos) != 0 {
			t.Error("a leader that was not set heard a Hello")
		}
		f.leader.mu.Unlock()
		f.gateway.SetLeader(f.leader)
		synctest.Wait()
		if f.leader.workers["w1"] == "" {
			t.Fatal("the waiting worker was not attached at once when there was a leader")
		}
		if n := len(f.leader.hellos); n != 1 {
			t.Errorf("%d Hellos reached the leader", n)
		}
	})
}

func TestANewLeaderHearsOfEverything(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	f.leader.autoAck = false
	b := newBlocker()
	f.start(t, f.agentConfig(t, "w1", b.Handlers))
	old := f.leader.session(t, "w1")
	running, held := f.assignment("block"), f.assignment("quick")
	f.leader.assign(old, running, held)
	take(t, b.running, "it runs")
	f.leader.outcome(t, held.Fence)

	next := newLeader()
	next.gateway = f.gateway
	next.granted[running.Fence], next.granted[held.Fence] = true, true
	f.gateway.SetLeader(next)
	s := next.session(t, "w1")
	if s == old {
		t.Fatal("the session did not change with the leader")
	}
	if ok := f.leader.assign(old, f.assignment("quick")); ok[0] {
		t.Error("the deposed leader's assignment was taken")
	}
	next.outcome(t, held.Fence)
	if h := next.hellos[0]; len(h.Running) != 2 {
		t.Errorf("the Hello to the new leader lists %v", h.Running)
	}
	if len(b.causes) != 0 {
		t.Error("a change of leader stopped work")
	}
	close(b.release)
	next.outcome(t, running.Fence)
	f.leader.mu.Lock()
	defer f.leader.mu.Unlock()
	if len(f.leader.detached) != 0 && !relayed { // a link that ends takes its sessions with it
		t.Error("the deposed leader was told of a detach")
	}
}

func TestFencesThatALeaderDoesNotKnowAreStopped(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	b := newBlocker()
	f.start(t, f.agentConfig(t, "w1", b.Handlers))
	x := f.assignment("block")
	f.leader.assign(f.leader.session(t, "w1"), x)
	take(t, b.running, "it runs")
	next := newLeader() // knows of no grant
	next.gateway = f.gateway
	f.gateway.SetLeader(next)
	if r := stopReason(take(t, b.causes, "it is stopped")); r != job.LeaseLost {
		t.Errorf("stopped because of %v", r)
	}
	if o := next.outcome(t, x.Fence); o.Kind != job.AttemptLost {
		t.Errorf("outcome %+v", o)
	}
}

func TestCancelTimeoutAndDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, true)
		b := newBlocker()
		f.start(t, f.agentConfig(t, "w1", b.Handlers))
		s := f.leader.session(t, "w1")
		cancelled, timed, late, over := f.assignment("block"), f.assignment("block"), f.assignment("block"), f.assignment("block")
		timed.Spec.Timeout = job.Duration(time.Minute)
		late.Spec.Timeout = job.Duration(time.Hour)
		late.DeadlineAt = job.At(time.Now().Add(2 * time.Minute))
		over.DeadlineAt = job.At(time.Now().Add(-time.Second))
		began := time.Now()
		f.leader.assign(s, cancelled, timed, late, over)
		f.gateway.Stop(context.Background(), []job.StopOrder{{Session: s, RunID: cancelled.RunID, Fence: cancelled.Fence, Reason: job.CancelRequested}})
		for _, w := range []struct {
			a      *job.Assignment
			kind   job.OutcomeKind
			reason job.Reason
			after  time.Duration
		}{
			{cancelled, job.AttemptCancelled, job.CancelRequested, 0},
			{over, job.AttemptFailed, job.DeadlineExceeded, 0},
			{timed, job.AttemptFailed, job.TimedOut, time.Minute},
			{late, job.AttemptFailed, job.DeadlineExceeded, 2 * time.Minute},
		} {
			o := f.leader.outcome(t, w.a.Fence)
			if o.Kind != w.kind || o.Reason != w.reason || time.Since(began).Round(time.Second) != w.after {
				t.Errorf("outcome %+v after %v, want %v %v after %v", o, time.Since(began), w.kind, w.reason, w.after)
			}
		}
		if n := len(f.leader.started); n != 2 {
			t.Errorf("%d starts were announced, want those of the two that ran for a while", n)
		}
	})
}

func TestACommandRunsThroughAllOfIt(t *testing.T) {
	t.Parallel()
	store, err := output.Open(t.TempDir(), output.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Shut()
	// This node has not heard of the leases yet; but it handed the attempts over itself.
	f := newFixture(t, false, func(c *gateway.Config) {
		c.Output = store
		c.Holds = func(string, job.RunID, job.Fence) bool { return false }
	})
	c := f.agentConfig(t, "w1", nil)
	c.Exec = &worker.ExecConfig{Allow: []string{"*"}}
	f.start(t, c)
	s := f.leader.session(t, "w1")
	if h := f.leader.hellos[0]; len(h.Executors) != 1 || h.Executors[0] != "exec" || h.DataID == "" {
		t.Errorf("hello %+v", h)
	}
	good, bad := f.assignment("-"), f.assignment("-")
	good.Spec = &job.Document{Exec: &job.Exec{Command: []string{"/bin/sh", "-c", "echo fence $MUSTER_FENCE"}}}
	bad.Spec = &job.Document{Exec: &job.Exec{Command: []string{"/bin/sh", "-c", "exit 3"}}}
	f.leader.assign(s, good, bad)
	if o := f.leader.outcome(t, good.Fence); o.Kind != job.AttemptSucceeded {
		t.Errorf("outcome %+v", o)
	}
	if o := f.leader.outcome(t, bad.Fence); o.Kind != job.AttemptFailed || o.ExitCode != 3 {
		t.Errorf("outcome %+v", o)
	}
	pieces, _, err := store.Read(good.RunID, 1, 0, 1000)
	if want := fmt.Sprintf("fence %d\n", good.Fence); err != nil || len(pieces) != 1 || string(pieces[0].Data) != want {
		t.Errorf("output %+v, want %q: %v", pieces, want, err)
	}
}

func TestMoreThanTheSlotsIsGivenBack(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	b := newBlocker()
	c := f.agentConfig(t, "w1", b.Handlers)
	c.Slots = 3
	f.start(t, c)
	s := f.leader.session(t, "w1")
	one, two, over := f.assignment("block"), f.assignment("block"), f.assignment("block")
	two.Spec.Slots = 2
	f.leader.assign(s, one, two, over)
	if o := f.leader.outcome(t, over.Fence); o.Kind != job.AttemptReturned {
		t.Errorf("outcome %+v", o)
	}
	close(b.release)
	f.leader.outcome(t, one.Fence)
	f.leader.outcome(t, two.Fence)
}

func TestAnOldFenceNeverRuns(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	var ran atomic.Int32
	h := &worker.Handlers{}
	h.Handle("count", func(context.Context, json.RawMessage) (json.RawMessage, error) { ran.Add(1); return nil, nil })
	a := f.start(t, f.agentConfig(t, "w1", h))
	s := f.leader.session(t, "w1")
	old, same, end := f.assignment("count"), f.assignment("count"), f.assignment("count")
	old.RunID = same.RunID
	f.leader.assign(s, same, same, old, end)
	f.leader.outcome(t, end.Fence)
	a.end(t) // whatever else it ran, it has told now
	f.leader.mu.Lock()
	defer f.leader.mu.Unlock()
	for _, o := range f.leader.outcomes {
		if o.Fence == old.Fence {
			t.Errorf("the older fence ran: %+v", o)
		}
	}
	if n := ran.Load(); n != 2 {
		t.Errorf("%d attempts ran, want one each of the newer fence and the end", n)
	}
}

func TestAWorkerThatStopsFinishesOrGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, true)
		b := newBlocker()
		c := f.agentConfig(t, "w1", b.Handlers)
		c.DrainTimeout = 20 * time.Second
		a := f.start(t, c)
		s := f.leader.session(t, "w1")
		x := f.assignment("block")
		f.leader.assign(s, x)
		<-b.running
		a.stop()
		synctest.Wait()
		f.leader.mu.Lock()
		last, session := f.leader.hellos[len(f.leader.hellos)-1], f.leader.workers["w1"]
		f.leader.mu.Unlock()
		if last.Slots != 0 || len(last.Running) != 1 {
			t.Errorf("the leaving Hello says %d slots, %d running", last.Slots, len(last.Running))
		}
		if ok := f.leader.assign(session, f.assignment("quick")); ok[0] {
			t.Error("a leaving worker was assigned work")
		}
		began := time.Now()
		if r := stopReason(<-b.causes); r != job.WorkerStopped || time.Since(began) != 20*time.Second {
			t.Errorf("stopped because of %v after %v", r, time.Since(began))
		}
		if o := f.leader.outcome(t, x.Fence); o.Kind != job.AttemptReturned {
			t.Errorf("outcome %+v", o)
		}
		a.end(t)
	})
}

func TestADrainedWorkerEndsByItself(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	b := newBlocker()
	c := f.agentConfig(t, "w1", b.Handlers)
	c.DrainTimeout = time.Minute
	a := f.start(t, c)
	s := f.leader.session(t, "w1")
	x := f.assignment("block")
	f.leader.assign(s, x)
	take(t, b.running, "it runs")
	if !f.gateway.Drain(s) {
		t.Fatal("the session is gone")
	}
	f.leader.await(t, "the leaving Hello", func() bool { return f.leader.hellos[len(f.leader.hellos)-1].Slots == 0 })
	close(b.release)
	if err := take(t, a.done, "the agent ends"); err != nil {
		t.Errorf("it ended with %v", err)
	}
	a.done <- nil
	if o := f.leader.outcome(t, x.Fence); o.Kind != job.AttemptSucceeded {
		t.Errorf("outcome %+v", o)
	}
}

func TestANamesakeIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	f.leader.refuse = job.Errorf(job.Conflict, "worker_name_taken", "a worker named w1 is attached already")
	c := f.agentConfig(t, "w1", newBlocker().Handlers)
	f.start(t, c)
	f.leader.await(t, "it tries again", func() bool { return len(f.leader.hellos) >= 2 })
	f.leader.tell(func() { f.leader.refuse = nil })
	f.leader.session(t, "w1") // when the name is free

	other, err := worker.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Run(t.Context()); job.CodeOf(err) != job.Conflict {
		t.Errorf("a second agent in the same data directory: %v", err)
	}
}

func TestAnUnauthorizedWorkerEndsWithTheReason(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false, func(c *gateway.Config) {
		c.Authorize = func(_ *http.Request, h job.WorkerHello) error {
			return job.Errorf(job.Forbidden, "", "the certificate is not for %s", h.Name)
		}
	})
	a := f.start(t, f.agentConfig(t, "w1", newBlocker().Handlers))
	err := take(t, a.done, "the agent ends")
	if job.CodeOf(err) != job.Forbidden || job.AsError(err).Message != "the certificate is not for w1" {
		t.Errorf("it ended with %v", err)
	}
	a.done <- nil
}

func TestAFullLeaderStopsResultsButNotHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, true, func(c *gateway.Config) { c.MaxUnackedResults = 10 })
		f.leader.block = make(chan struct{})
		f.start(t, f.agentConfig(t, "w1", newBlocker().Handlers))
		s := f.leader.session(t, "w1")
		var all []*job.Assignment
		for range 40 {
			all = append(all, f.assignment("quick"))
		}
		f.leader.assign(s, all...)
		time.Sleep(time.Minute)
		f.leader.mu.Lock()
		beats, same := f.leader.beats, f.leader.workers["w1"] == s
		block := f.leader.block
		f.leader.block = nil
		f.leader.mu.Unlock()
		if beats < 10 || !same {
			t.Errorf("%d heartbeats in a minute, same session: %v", beats, same)
		}
		close(block)
		for _, x := range all {
			f.leader.outcome(t, x.Fence)
		}
	})
}

func TestANodeThatStopsSendsItsWorkersAway(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	l2 := newLeader()
	g2, second := f.addGateway(t, "n2", l2)
	l2.gateway = g2
	b := newBlocker()
	c := f.agentConfig(t, "w1", b.Handlers)
	c.Addresses = []string{f.address}
	f.hangUp(second)
	c.Addresses = append(c.Addresses, second)
	f.start(t, c)
	x := f.assignment("block")
	f.leader.assign(f.leader.session(t, "w1"), x)
	take(t, b.running, "it runs")
	l2.granted[x.Fence] = true
	f.restore(second)
	if err := f.gateway.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	l2.session(t, "w1")
	close(b.release)
	if o := l2.outcome(t, x.Fence); o.Kind != job.AttemptSucceeded {
		t.Errorf("outcome %+v", o)
	}
}
