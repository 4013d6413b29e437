package gateway_test

import (
	"testing"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
	"github.com/musterhq/muster/worker/gateway"
	"github.com/musterhq/muster/worker/gateway/output"
)

var (
	_ scheduler.Gateways = (*gateway.Gateway)(nil)
	_ gateway.Output     = (*output.Store)(nil)
)

func TestAnAttemptGoesRoundAndIsForgotten(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	a := f.start(t, f.agentConfig(t, "w1", newBlocker().Handlers))
	s := f.leader.session(t, "w1")
	x := f.assignment("quick")
	if ok := f.leader.assign(s, x); !ok[0] {
		t.Fatal("an idle stream did not take an assignment")
	}
	o := f.leader.outcome(t, x.Fence)
	if o.RunID != x.RunID || o.Kind != job.AttemptSucceeded || string(o.Result) != `{"ok":true}` || o.Worker != "w1" || o.Attempt != 1 {
		t.Fatalf("outcome %+v", o)
	}
	a.end(t)
	if n := a.Stats().HeldResults; n != 0 {
		t.Errorf("%d results are held after their acknowledgement", n)
	}
	f.leader.await(t, "the session is detached", func() bool { return len(f.leader.detached) > 0 })
	if ok := f.leader.assign(s, f.assignment("quick")); ok[0] {
		t.Error("an assignment to a session that is gone was not undeliverable")
	}
}
