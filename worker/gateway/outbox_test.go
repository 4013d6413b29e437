package gateway

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/workerpb"
)

// patience of the tests below, which run in bubbles: time costs nothing there.
const patience = 50 * time.Millisecond

func assignments(n int) []*job.Assignment {
	as := make([]*job.Assignment, n)
	for i := range as {
		as[i] = &job.Assignment{Fence: job.Fence(i + 1), Attempt: 1}
	}
	return as
}

func seated() *outbox {
	b := newOutbox(func() {})
	b.begin("s", false)
	b.greet("s", &workerpb.Welcome{})
	b.take(nil)
	b.sent()
	return b
}

// put offers and answers the offer with what is certain at once.
func put(b *outbox, n int) (*offer, int, bool) {
	o := &offer{session: "s", items: assignments(n), done: make(chan struct{})}
	b.put(o, patience)
	taken, final := b.taken(o)
	return o, taken, final
}

func TestAnIdleStreamTakesAMessageAtOnce(t *testing.T) {
	t.Parallel()
	b := seated()
	if _, n, final := put(b, maxBatch); n != maxBatch || !final {
		t.Errorf("taken %d, final %v", n, final)
	}
	b = seated()
	o, n, final := put(b, maxBatch+10)
	if n != maxBatch || final {
		t.Errorf("of more than a message %d were taken, final %v", n, final)
	}
	_, batch, _ := b.take(nil)
	if len(batch) != maxBatch {
		t.Errorf("the message has %d", len(batch))
	}
	if n := b.withdraw(o); n != maxBatch {
		t.Errorf("withdrawn while the first message is written: %d stay", n)
	}
	if b.sent(); b.queued != 0 || b.bytes != 0 || len(b.offers) != 0 {
		t.Errorf("left behind: %d queued, %d bytes", b.queued, b.bytes)
	}
}

func TestWhatABusyStreamDidNotTakeIsWithdrawn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := seated()
		put(b, 1)
		b.take(nil) // and it hangs
		o, n, final := put(b, 5)
		if n != 0 || final {
			t.Fatalf("a busy stream took %d, final %v", n, final)
		}
		time.Sleep(patience)
		if n := b.withdraw(o); n != 0 {
			t.Fatalf("%d were taken by a writer that hangs", n)
		}
		time.Sleep(time.Millisecond)
		if _, n, final := put(b, 5); n != 0 || !final {
			t.Errorf("a stream that has been stuck took %d, final %v", n, final)
		}
		b.sent()
		if _, n, final := put(b, 5); n != 5 || !final {
			t.Errorf("a stream that is free again took %d, final %v", n, final)
		}
		if _, batch, _ := b.take(nil); len(batch) != 5 {
			t.Errorf("%d are written", len(batch))
		}
	})
}

func TestNothingOfAnEarlierSessionIsWritten(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*outbox){
		"a new session":  func(b *outbox) { b.begin("t", false) },
		"no session":     func(b *outbox) { b.begin("", false) },
		"a closed box":   (*outbox).close,
		"a refusal":      func(b *outbox) { b.refuse(&workerpb.Welcome{}) },
		"a full outbox":  func(b *outbox) { b.addAcks(make([]*workerpb.Ack, maxHints+1)) },
		"a leaving node": func(b *outbox) { b.askMove(); b.begin("t", false) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := seated()
			put(b, 1)
			b.take(nil)
			waiting, _, _ := put(b, 3)
			end(b)
			select {
			case <-waiting.done:
			default:
				t.Error("who waits is not told")
			}
			if n := b.withdraw(waiting); n != 0 {
				t.Errorf("%d count as written", n)
			}
			b.sent()
			if _, n, final := put(b, 1); n != 0 || !final {
				t.Errorf("%d of an offer to the earlier session were taken", n)
			}
			if len(b.offers) != 0 {
				t.Error("offers are left")
			}
		})
	}
}

func TestAnswersToHeartbeatsMerge(t *testing.T) {
	t.Parallel()
	b := seated()
	b.acknowledge(1, "s", true, []job.Fence{7})
	b.acknowledge(2, "", false, nil)
	b.acknowledge(3, "s", true, []job.Fence{8})
	b.acknowledge(4, "old", true, []job.Fence{9}) // asked in another session: no renewal, and it kills nothing
	m, _, _ := b.take(nil)
	a := m.HeartbeatAck
	if !a.Renewed || a.Seq != 3 || len(a.Unknown) != 2 {
		t.Errorf("answer %v", a)
	}
	b.sent()
	b.acknowledge(5, "old", true, []job.Fence{9})
	if m, _, _ = b.take(nil); m.HeartbeatAck.Renewed || len(m.HeartbeatAck.Unknown) != 0 {
		t.Errorf("answer %v", m.HeartbeatAck)
	}
}

func TestMessagesAreBoundedInBytes(t *testing.T) {
	t.Parallel()
	b := seated()
	o := &offer{session: "s", items: assignments(100), done: make(chan struct{})}
	for _, a := range o.items {
		a.Payload = json.RawMessage(`"` + strings.Repeat("x", 60<<10) + `"`)
	}
	b.put(o, patience)
	all := 0
	for all < 100 {
		m, batch, _ := b.take(nil)
		_, m.Assignments = workerpb.NewSpecTable(nil, 1).Fill(batch)
		size := 0
		for _, x := range m.Assignments {
			size += len(x.Payload)
		}
		if size > maxBatchBytes {
			t.Fatalf("a message carries %d bytes", size)
		}
		all += len(batch)
		b.sent()
	}
	if !o.ended || b.bytes != 0 || b.queued != 0 {
		t.Errorf("ended %v, %d bytes, %d queued", o.ended, b.bytes, b.queued)
	}
}
