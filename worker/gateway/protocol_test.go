package gateway_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/gateway"
	"github.com/musterhq/muster/worker/gateway/output"
	"github.com/musterhq/muster/worker/workerpb"
)

// rawWorker speaks the protocol by hand, as a worker in another language would.
type rawWorker struct {
	t    testing.TB
	rpc  *connect.BidiStreamForClient[workerpb.WorkerMessage, workerpb.NodeMessage]
	name string
}

func (f *fixture) raw(t testing.TB, name string) *rawWorker {
	t.Helper()
	return f.rawOver(t, name, f.client(t))
}

func (f *fixture) rawOver(t testing.TB, name string, c *http.Client, o ...connect.ClientOption) *rawWorker {
	ctx, cancel := context.WithCancel(context.Background())
	rpc := workerpb.NewWorkerServiceClient(c, f.address, o...).Attach(ctx)
	t.Cleanup(func() {
		cancel()
		rpc.CloseRequest()
		rpc.CloseResponse()
	})
	return &rawWorker{t: t, rpc: rpc, name: name}
}

func (w *rawWorker) send(m *workerpb.WorkerMessage) {
	w.t.Helper()
	if err := w.rpc.Send(m); err != nil {
		w.t.Fatal(err)
	}
}

func (w *rawWorker) hello(number uint64, running ...uint64) *workerpb.WorkerMessage {
	return &workerpb.WorkerMessage{Hello: &workerpb.Hello{Name: w.name, Boot: "b", DataId: "d-" + w.name, Slots: 100, Running: running, Resync: number}}
}

// until receives messages until one has what is wanted.
func (w *rawWorker) until(what string, want func(*workerpb.NodeMessage) bool) *workerpb.NodeMessage {
	w.t.Helper()
	for {
		m, err := w.rpc.Receive()
		if err != nil {
			w.t.Fatalf("waiting for %s: %v", what, err)
		}
		if want(m) {
			return m
		}
	}
}

func (w *rawWorker) attach() *rawWorker {
	w.t.Helper()
	w.send(w.hello(0))
	w.until("a welcome", func(m *workerpb.NodeMessage) bool { return m.Welcome.GetStatus() == workerpb.Welcome_STATUS_ACCEPTED })
	return w
}

func TestTheSameProtocolOverGRPC(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	w := f.rawOver(t, "w1", f.client(t), connect.WithGRPC()).attach()
	x := f.assignment("quick")
	f.leader.assign(f.leader.session(t, "w1"), x)
	m := w.until("an assignment", func(m *workerpb.NodeMessage) bool { return len(m.Assignments) > 0 })
	if m.Assignments[0].GetFence() != uint64(x.Fence) || m.Specs[0].GetId() != m.Assignments[0].GetSpec() {
		t.Errorf("message %v", m)
	}
}

func TestAssignmentsOfAnEarlierSessionAreNotWrittenAfterAHello(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	w := f.raw(t, "w1").attach()
	first := f.leader.session(t, "w1")
	w.send(w.hello(1 << 63)) // with new facts, unasked
	m := w.until("a welcome", func(m *workerpb.NodeMessage) bool { return m.Welcome != nil })
	if m.Welcome.GetResync() != 1<<63 || job.SessionID(m.Welcome.GetSession()) == first {
		t.Errorf("welcome %v", m.Welcome)
	}
	f.leader.await(t, "the first session is detached", func() bool { return len(f.leader.detached) == 1 })
	if ok := f.leader.assign(first, f.assignment("quick")); ok[0] {
		t.Error("an assignment to the earlier session was taken")
	}
	if ok := f.leader.assign(f.leader.session(t, "w1"), f.assignment("quick")); !ok[0] {
		t.Error("an assignment to the new session was not taken")
	}
}

// slowLeader takes its time over a Hello.
type slowLeader struct {
	*leader
	asked, answer chan struct{}
}

func (l *slowLeader) Attach(ctx context.Context, session job.SessionID, node string, h job.WorkerHello) ([]job.Fence, error) {
	close(l.asked)
	<-l.answer
	return l.leader.Attach(ctx, session, node, h)
}

// A new leader that was not told yet what a worker runs knows none of it. A heartbeat from before the Hello must not ask it,
// or the worker kills all that it runs.
func TestHeartbeatsDoNotOvertakeAHello(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	w := f.raw(t, "w1").attach()
	const fence = 7
	thaw := make(chan struct{})
	f.leader.tell(func() { f.leader.freeze, f.leader.granted[fence] = thaw, true })
	for seq := range uint64(2) {
		w.send(&workerpb.WorkerMessage{Heartbeat: &workerpb.Heartbeat{Seq: seq + 1, Running: []uint64{fence}}})
	}
	time.Sleep(50 * time.Millisecond)
	next := &slowLeader{newLeader(), make(chan struct{}), make(chan struct{})}
	next.gateway, next.granted[fence] = f.gateway, true
	f.gateway.SetLeader(next)
	m := w.until("a resync", func(m *workerpb.NodeMessage) bool { return m.Resync != 0 })
	w.send(w.hello(m.Resync, fence))
	<-next.asked
	close(thaw)
	time.Sleep(50 * time.Millisecond)
	close(next.answer)
	w.until("a welcome", func(m *workerpb.NodeMessage) bool {
		if len(m.HeartbeatAck.GetUnknown()) > 0 {
			t.Errorf("the worker is told to stop what it has a right to: %v", m.HeartbeatAck)
		}
		return m.Welcome != nil
	})
}

func TestADeposedLeadersEpochIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	f.raw(t, "w1").attach()
	s := f.leader.session(t, "w1")
	newer, older := f.assignment("quick"), f.assignment("quick")
	newer.Fence = job.MakeFence(7, 1)
	older.Fence = job.MakeFence(6, 99)
	if ok := f.leader.assign(s, newer); !ok[0] {
		t.Fatal("not taken")
	}
	if ok := f.leader.assign(s, older); ok[0] {
		t.Error("an assignment of a lower epoch was taken")
	}
}

func TestAHungWorkerCostsTheLeaderNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	f.raw(t, "hung").attach() // and never reads again
	hung := f.leader.session(t, "hung")
	b := newBlocker()
	f.start(t, f.agentConfig(t, "alive", b.Handlers))
	alive := f.leader.session(t, "alive")

	big := json.RawMessage(`"` + strings.Repeat("x", 60<<10) + `"`)
	refused, slow := 0, 0
	for range 600 { // 36 MB: far more than windows and buffers take
		x := f.assignment("quick")
		x.Payload = big
		began := time.Now()
		if ok := f.leader.assign(hung, x); !ok[0] {
			refused++
		}
		if time.Since(began) > 40*time.Millisecond {
			slow++
		}
	}
	if refused < 100 {
		t.Errorf("%d of 600 assignments to a hung worker were undeliverable", refused)
	}
	if slow > 30 { // the patience is spent about once; the rest is this machine
		t.Errorf("%d of 600 calls waited", slow)
	}
	x := f.assignment("quick")
	d := []job.Delivery{{Session: hung, Assignment: f.assignment("quick")}, {Session: alive, Assignment: x}}
	if ok := f.gateway.Assign(t.Context(), d); ok[0] || !ok[1] {
		t.Errorf("a batch for both: %v", ok)
	}
	f.leader.outcome(t, x.Fence)
}

func TestARevokedCredentialEndsTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var revoked atomic.Bool
		f := newFixture(t, true, func(c *gateway.Config) {
			c.Authorize = func(*http.Request, job.WorkerHello) error {
				if revoked.Load() {
					return job.Errorf(job.Forbidden, "", "the certificate was revoked")
				}
				return nil
			}
		})
		w := f.raw(t, "w1").attach()
		w.send(&workerpb.WorkerMessage{Heartbeat: &workerpb.Heartbeat{Seq: 1}})
		w.until("an answer", func(m *workerpb.NodeMessage) bool { return m.HeartbeatAck.GetRenewed() })
		revoked.Store(true)
		w.send(&workerpb.WorkerMessage{Heartbeat: &workerpb.Heartbeat{Seq: 2}})
		m := w.until("a refusal", func(m *workerpb.NodeMessage) bool { return m.Welcome != nil })
		if m.Welcome.GetStatus() != workerpb.Welcome_STATUS_REFUSED || m.Welcome.GetCode() != "forbidden" {
			t.Errorf("welcome %v", m.Welcome)
		}
		f.leader.await(t, "it is detached", func() bool { return len(f.leader.detached) == 1 })
	})
}

func TestASilentWorkerIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, true)
		f.raw(t, "w1").attach()
		began := time.Now()
		f.leader.await(t, "it is detached", func() bool { return len(f.leader.detached) == 1 })
		if d := time.Since(began); d < 14*time.Second || d > 16*time.Second {
			t.Errorf("cut off after %v, want 15 s", d)
		}
	})
}

func TestBrokenMessagesEndTheStreamWithTheField(t *testing.T) {
	t.Parallel()
	id := make([]byte, 16)
	for want, m := range map[string]*workerpb.WorkerMessage{
		"hello: must come first": {Heartbeat: &workerpb.Heartbeat{}},
		"hello.name":             {Hello: &workerpb.Hello{Name: "../x", Boot: "b", DataId: "d", Slots: 1}},
		"hello.boot":             {Hello: &workerpb.Hello{Name: "x", DataId: "d", Slots: 1}},
		"hello.data_id":          {Hello: &workerpb.Hello{Name: "x", Boot: "b", Slots: 1}},
		"hello.slots":            {Hello: &workerpb.Hello{Name: "x", Boot: "b", DataId: "d"}},
		"result.run_id":          {Hello: okHello, Results: []*workerpb.Result{{RunId: []byte("short"), Fence: 1, Attempt: 1, Kind: 1}}},
		"result.fence":           {Hello: okHello, Results: []*workerpb.Result{{RunId: id, Attempt: 1, Kind: 1}}},
		"result.kind":            {Hello: okHello, Results: []*workerpb.Result{{RunId: id, Fence: 1, Attempt: 1, Kind: 9}}},
		"started.run_id":         {Hello: okHello, Started: []*workerpb.Started{{Fence: 1}}},
		"output.attempt":         {Hello: okHello, Output: []*workerpb.Output{{RunId: id, Fence: 1}}},
		"output.data":            {Hello: okHello, Output: []*workerpb.Output{{RunId: id, Fence: 1, Attempt: 1, Data: make([]byte, 2<<20)}}},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, false)
			w := f.raw(t, "x")
			w.rpc.Send(m)
			var err error
			for err == nil {
				_, err = w.rpc.Receive()
			}
			if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), want) {
				t.Errorf("the stream ended with %v", err)
			}
		})
	}
}

// Two bytes on the wire take over a hundred in memory.
func TestMessagesOfManyEmptyPartsAreNotDecoded(t *testing.T) {
	t.Parallel()
	empty := &workerpb.Started{}
	for name, m := range map[string]*workerpb.WorkerMessage{
		"starts":    {Started: slices.Repeat([]*workerpb.Started{empty}, 1<<17)},
		"executors": {Hello: &workerpb.Hello{Name: "x", Boot: "b", DataId: "d", Slots: 1, Executors: make([]string, 1<<17)}},
	} {
		f := newFixture(t, false)
		w := f.raw(t, "x")
		w.rpc.Send(m)
		if _, err := w.rpc.Receive(); connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "parts") {
			t.Errorf("%s: the stream ended with %v", name, err)
		}
	}
	f := newFixture(t, false)
	w := f.rawOver(t, "x", f.client(t), connect.WithProtoJSON())
	w.rpc.Send(&workerpb.WorkerMessage{Hello: okHello})
	if m, err := w.rpc.Receive(); err == nil {
		t.Errorf("JSON, which has no such bound, was answered %v", m)
	}
}

var okHello = &workerpb.Hello{Name: "x", Boot: "b", DataId: "d", Slots: 1}

func TestMoreThanTheWindowEndsTheStream(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false, func(c *gateway.Config) { c.MaxUnackedResults = 5 })
	f.leader.block = make(chan struct{})
	defer close(f.leader.block)
	w := f.raw(t, "w1").attach()
	m := &workerpb.WorkerMessage{}
	for i := range 20 {
		m.Results = append(m.Results, &workerpb.Result{RunId: make([]byte, 16), Fence: uint64(i + 1), Attempt: 1, Kind: 1})
	}
	w.send(m)
	var err error
	for err == nil {
		_, err = w.rpc.Receive()
	}
	if connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestAResultThatCannotBeKeptFailsTheRun(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	w := f.raw(t, "w1").attach()
	id := make([]byte, 16)
	w.send(&workerpb.WorkerMessage{Results: []*workerpb.Result{
		{RunId: id, Fence: 1, Attempt: 1, Kind: 1, Result: []byte("{not json")},
		{RunId: id, Fence: 2, Attempt: 1, Kind: 1, Result: []byte(`"` + strings.Repeat("x", 65<<10) + `"`)},
		{RunId: id, Fence: 3, Attempt: 1, Kind: 2, Error: "a\x00b" + strings.Repeat("é", 8<<10)},
	}})
	for f1 := job.Fence(1); f1 <= 2; f1++ {
		if o := f.leader.outcome(t, f1); o.Kind != job.AttemptFailed || o.Reason != job.InvalidResult || !o.Permanent || o.Result != nil {
			t.Errorf("outcome %+v", o)
		}
	}
	if o := f.leader.outcome(t, 3); len(o.Error) > workerpb.MaxErrorBytes+2 || strings.ContainsRune(o.Error, 0) {
		t.Errorf("an error of %d bytes was kept", len(o.Error))
	}
}

func TestEachDocumentTravelsOncePerStream(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	w := f.raw(t, "w1").attach()
	s := f.leader.session(t, "w1")
	// Three times through more documents than the table holds, by new addresses each time, and one too large for it.
	var table [workerpb.MaxSpecs + 1]string
	sent := 0
	check := func(n int) {
		for n > 0 {
			m := w.until("assignments", func(m *workerpb.NodeMessage) bool { return len(m.Assignments) > 0 })
			for _, x := range m.Specs {
				table[x.GetId()] = string(x.GetDocument())
				sent++
			}
			for _, x := range m.Assignments {
				doc := table[x.GetSpec()]
				if x.GetSpec() == 0 {
					doc = string(x.GetDocument())
				}
				var d job.Document
				if err := json.Unmarshal([]byte(doc), &d); err != nil || d.Handler == nil || d.Handler.Name != x.GetJob() {
					t.Fatalf("assignment of job %s has document %.100s", x.GetJob(), doc)
				}
				n--
			}
		}
	}
	for round, kinds := range []int{3, 3, 400, 400} {
		var as []*job.Assignment
		for i := range kinds {
			x := f.assignment(fmt.Sprintf("h%d", i))
			x.Job = x.Spec.Handler.Name
			as = append(as, x)
		}
		big := f.assignment("big")
		big.Job, big.Spec.Description = "big", strings.Repeat("x", 40<<10)
		ok := f.leader.assign(s, append(as, big)...)
		check(kinds + 1)
		if !ok[0] {
			t.Fatal("not taken")
		}
		if round == 1 && sent != 3 {
			t.Errorf("%d documents were put into the table for twice the same three", sent)
		}
	}
}

func TestOutputIsKeptOnTheNode(t *testing.T) {
	t.Parallel()
	store, err := output.Open(t.TempDir(), output.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Shut()
	f := newFixture(t, false, func(c *gateway.Config) { c.Output = store })
	f.start(t, f.agentConfig(t, "w1", newBlocker().Handlers))
	x := f.assignment("write")
	read := make(chan int, 1)
	go func() {
		n := 0
		if err := store.Follow(t.Context(), x.RunID, 1, 0, func(p output.Piece) error { n += len(p.Data); return nil }); err != nil {
			t.Error(err)
		}
		read <- n
	}()
	f.leader.assign(f.leader.session(t, "w1"), x)
	f.leader.outcome(t, x.Fence)
	want := 100 * len("a line of output that is long enough to matter\n")
	// Output goes before the result, and the acknowledgement ends the followers.
	pieces, next, err := store.Read(x.RunID, 1, 0, 1<<20)
	if err != nil || next != int64(want) || len(pieces) != 1 {
		t.Errorf("read %d pieces up to %d of %d: %v", len(pieces), next, want, err)
	}
	if n := take(t, read, "the follower is done"); n != want {
		t.Errorf("a follower read %d of %d bytes", n, want)
	}
}

// Output is taken from whoever holds the run: by what was handed over here, or by what this node knows.
func TestOutputOfOthersIsDropped(t *testing.T) {
	t.Parallel()
	store, err := output.Open(t.TempDir(), output.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Shut()
	var known *job.Assignment
	f := newFixture(t, false, func(c *gateway.Config) {
		c.Output = store
		c.Holds = func(worker string, run job.RunID, fence job.Fence) bool {
			return worker == "w1" && run == known.RunID && fence == known.Fence
		}
	})
	known = f.assignment("-")
	given, foreign := f.assignment("-"), f.assignment("-")
	w := f.raw(t, "w1").attach()
	f.leader.assign(f.leader.session(t, "w1"), given)
	w.until("the assignment", func(m *workerpb.NodeMessage) bool { return len(m.Assignments) > 0 })
	m := &workerpb.WorkerMessage{}
	for _, a := range []*job.Assignment{known, given, foreign} {
		m.Output = append(m.Output, &workerpb.Output{RunId: a.RunID[:], Fence: uint64(a.Fence), Attempt: 1, Data: []byte("hello")})
	}
	// The fence of one run does not open another.
	m.Output = append(m.Output, &workerpb.Output{RunId: foreign.RunID[:], Fence: uint64(given.Fence), Attempt: 1, Data: []byte("hello")})
	m.Heartbeat = &workerpb.Heartbeat{Seq: 1}
	w.send(m)
	w.send(&workerpb.WorkerMessage{Heartbeat: &workerpb.Heartbeat{Seq: 2}}) // answered after the first message was taken
	w.until("the second answer", func(m *workerpb.NodeMessage) bool { return m.GetHeartbeatAck().GetSeq() == 2 })
	for name, want := range map[string]struct {
		a    *job.Assignment
		kept int
	}{"known": {known, 1}, "given": {given, 1}, "foreign": {foreign, 0}} {
		if pieces, _, err := store.Read(want.a.RunID, 1, 0, 1000); err != nil || len(pieces) != want.kept {
			t.Errorf("%s: %d pieces kept, want %d: %v", name, len(pieces), want.kept, err)
		}
	}
}

// lateLeader opens a session and then fails to say so.
type lateLeader struct{ *leader }

func (l *lateLeader) Attach(ctx context.Context, session job.SessionID, node string, h job.WorkerHello) ([]job.Fence, error) {
	if _, err := l.leader.Attach(ctx, session, node, h); err != nil {
		return nil, err
	}
	return nil, job.Errorf(job.Unavailable, "", "the answer was lost")
}

func TestASessionWhoseAnswerWasLostIsDetached(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	late := &lateLeader{newLeader()}
	late.gateway = f.gateway
	f.gateway.SetLeader(late)
	w := f.raw(t, "w1")
	w.send(w.hello(0))
	var err error
	for err == nil {
		var m *workerpb.NodeMessage
		if m, err = w.rpc.Receive(); err == nil && m.Resync != 0 {
			w.send(w.hello(m.Resync))
		}
	}
	if connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("the stream ended with %v", err)
	}
	late.await(t, "the session is detached", func() bool { return len(late.detached) > 0 && len(late.sessions) == 0 })
}

func TestARefusedResultIsForgotten(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	f.leader.autoAck = false
	a := f.start(t, f.agentConfig(t, "w1", newBlocker().Handlers))
	s := f.leader.session(t, "w1")
	x := f.assignment("quick")
	f.leader.assign(s, x)
	f.leader.outcome(t, x.Fence)
	if n := a.Stats().HeldResults; n != 1 {
		t.Errorf("%d results are held before the acknowledgement", n)
	}
	f.gateway.Acknowledge(t.Context(), []job.Ack{{Session: s, RunID: x.RunID, Fence: x.Fence, Refused: true}})
	for range 3000 {
		if a.Stats().HeldResults == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("a refused result is held")
}
