package relay

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/workerpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSurplus(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		streams map[string]int
		node    string
		want    int
	}{
		"one node has them all because it is alone": {map[string]int{"a": 100}, "a", 0},
		"nobody":                                      {map[string]int{"a": 0, "b": 0}, "a", 0},
		"three nodes, two workers each":               {map[string]int{"a": 2, "b": 2, "c": 2}, "a", 0},
		"three of six are borne":                      {map[string]int{"a": 3, "b": 3, "c": 0}, "a", 0},
		"four of six are not":                         {map[string]int{"a": 4, "b": 2, "c": 0}, "a", 1},
		"all of six":                                  {map[string]int{"a": 6, "b": 0, "c": 0}, "a", 1},
		"nine too many of hundreds are borne":         {map[string]int{"a": 34, "b": 25, "c": 16}, "a", 0},
		"ten are not":                                 {map[string]int{"a": 35, "b": 25, "c": 15}, "a", 1},
		"less than a fifth too many of thousands are": {map[string]int{"a": 1190, "b": 1000, "c": 810}, "a", 0},
		"more gives up a twentieth at a time":         {map[string]int{"a": 3000, "b": 0, "c": 0}, "a", 150},
		"and not more than too many":                  {map[string]int{"a": 1210, "b": 1000, "c": 790}, "a", 60},
		"who has too few is left alone":               {map[string]int{"a": 3000, "b": 0, "c": 0}, "b", 0},
	} {
		if got := surplus(c.streams)[c.node]; got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func deliveries(n int) []job.Delivery {
	d := make([]job.Delivery, n)
	for i := range d {
		d[i] = job.Delivery{Session: "s", Assignment: &job.Assignment{Fence: job.Fence(i + 1), Attempt: 1}}
	}
	return d
}

func newTable() *workerpb.SpecTable {
	return workerpb.NewSpecTable(new(workerpb.SpecCache), workerpb.MaxLinkSpecs)
}

func errandOf(n int) *errand { return &errand{deliveries: deliveries(n), done: make(chan struct{})} }

func TestWhatWasNotSentIsWithdrawnAndWhatWasIsUnknown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newOutbox(200*time.Millisecond, func() {})
		e := errandOf(maxBatch + 10)
		b.offer(e)
		m, _ := b.take(newTable())
		if len(m.Batches) != 1 || len(m.Batches[0].Sessions[0].Assignments) != maxBatch {
			t.Fatalf("the first message has %d batches", len(m.Batches))
		}
		time.Sleep(200 * time.Millisecond)
		if sent, _, unknown := b.withdraw(e); sent != maxBatch || unknown != maxBatch {
			t.Errorf("%d sent, %d unknown", sent, unknown)
		}
		b.sent()
		if _, some := b.gather(newTable()); some {
			t.Error("what was withdrawn is sent")
		}
		if b.offer(errandOf(1)) {
			t.Error("a node that owes an answer got another batch")
		}
		// Late, it says that one was not written: the term was told that it may have been.
		late, err := b.answered(&workerpb.AssignReply{Number: m.Batches[0].Number, Refused: []uint32{7}})
		if err != nil || len(late) != 1 || late[0].Fence != 8 {
			t.Errorf("late: %v, %v", late, err)
		}
		if !b.offer(errandOf(1)) {
			t.Error("a node that answered gets nothing")
		}
	})
}

func TestRefusalsInTimeAreTheCallers(t *testing.T) {
	t.Parallel()
	b := newOutbox(time.Minute, func() {})
	e := errandOf(3)
	b.offer(e)
	m, _ := b.take(newTable())
	if late, err := b.answered(&workerpb.AssignReply{Number: m.Batches[0].Number, Refused: []uint32{1}}); err != nil || len(late) != 0 {
		t.Fatalf("late: %v, %v", late, err)
	}
	<-e.done
	if sent, refused, unknown := b.withdraw(e); sent != 3 || !refused[1] || len(refused) != 1 || unknown != 0 {
		t.Errorf("%d sent, %v refused, %d unknown", sent, refused, unknown)
	}
	if _, err := b.answered(&workerpb.AssignReply{Number: m.Batches[0].Number}); err == nil {
		t.Error("a second answer was taken")
	}
}

func TestTheEndOfALinkAnswersThoseWhoWait(t *testing.T) {
	t.Parallel()
	b := newOutbox(time.Minute, func() {})
	sent, queued := errandOf(2), errandOf(2)
	b.offer(sent)
	b.take(newTable())
	b.offer(queued)
	b.close()
	<-sent.done
	<-queued.done
	if n, _, unknown := b.withdraw(sent); n != 2 || unknown != 2 {
		t.Errorf("of what was sent: %d, %d unknown", n, unknown)
	}
	if n, _, _ := b.withdraw(queued); n != 0 {
		t.Errorf("of what was not: %d", n)
	}
	last := errandOf(1)
	b.offer(last)
	<-last.done
	if n, _, _ := b.withdraw(last); n != 0 {
		t.Error("a dead link took an assignment")
	}
}

func TestMessagesAreBoundedAndDocumentsTravelOnce(t *testing.T) {
	t.Parallel()
	b := newOutbox(time.Minute, func() {})
	table := newTable()
	e := errandOf(600)
	doc := &job.Document{Name: strings.Repeat("x", 20<<10)}
	for i := range e.deliveries {
		e.deliveries[i].Payload = make([]byte, 8<<10)
		e.deliveries[i].Spec = doc
	}
	b.offer(e)
	specs, all := 0, 0
	for all < 600 {
		m, _ := b.take(table)
		b.sent()
		specs += len(m.Specs)
		size := 0
		for _, x := range m.Batches {
			for _, s := range x.Sessions {
				all += len(s.Assignments)
				for _, a := range s.Assignments {
					size += len(a.Payload)
				}
			}
		}
		if size > maxMessage {
			t.Fatalf("a message of %d bytes", size)
		}
	}
	if specs != 1 {
		t.Errorf("the document travelled %d times", specs)
	}
}

func TestTheWindow(t *testing.T) {
	t.Parallel()
	w := window{maxResults: 10, maxBytes: 1000}
	if w.take(8, 100) != nil {
		t.Error("there is room")
	}
	second, third := w.take(5, 100), w.take(1, 100)
	if second == nil || third == nil {
		t.Fatal("there is no room, and nobody overtakes")
	}
	w.taken(3, 30)
	select {
	case <-second:
	default:
		t.Error("there is room for the second")
	}
	select {
	case <-third:
		t.Error("there is none for the third")
	default:
	}
	w.taken(13, 200)
	<-third
	w.taken(14, 300)
	if w.take(50, 5000) != nil {
		t.Error("one piece always goes")
	}
}
