package worker

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/workerpb"
)

func deskAssignment(run, fence int, slots int) *job.Assignment {
	return &job.Assignment{RunID: job.RunID{14: byte(run >> 8), 15: byte(run)}, Fence: job.Fence(fence), Attempt: 1, Spec: &job.Document{Slots: slots}}
}

func TestDeskAdmits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*desk)
		run    int
		fence  int
		slots  int
		want   string
	}{
		"what fits":                   {run: 2, fence: 10, slots: 1, want: "runs"},
		"what takes all slots":        {run: 2, fence: 10, slots: 3, want: "runs"},
		"no slots means one":          {run: 2, fence: 10, want: "runs"},
		"a retry of a run it knows":   {run: 1, fence: 6, want: "runs"},
		"more than its slots":         {run: 2, fence: 10, slots: 4, want: "returned: the worker has no free slot"},
		"the same fence again":        {run: 1, fence: 5, want: "dropped"},
		"an older fence":              {run: 1, fence: 4, want: "dropped"},
		"anything while it leaves":    {run: 2, fence: 10, change: func(d *desk) { d.leaving = true }, want: "returned: the worker is stopping"},
		"anything with a full spool":  {run: 2, fence: 10, change: func(d *desk) { d.full = true }, want: "returned: the worker holds too many unacknowledged results"},
		"a fence of an earlier life":  {run: 7, fence: 70, change: func(d *desk) { d.resume(job.Outcome{RunID: job.RunID{15: 7}, Fence: 70, Attempt: 1, Kind: 1}) }, want: "dropped"},
		"an old fence after many new": {run: 1, fence: 5, change: func(d *desk) { noteMany(d, maxRecent-1) }, want: "dropped"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(4)
			if first, _ := d.admit(deskAssignment(1, 5, 1), 1); first == nil {
				t.Fatal("an empty desk has no room")
			}
			if c.change != nil {
				c.change(&d)
			}
			a, r := d.admit(deskAssignment(c.run, c.fence, c.slots), 1)
			got := "dropped"
			switch {
			case a != nil:
				got = "runs"
			case r != nil:
				got = "returned: " + r.outcome.Error
				if r.outcome.Kind != job.AttemptReturned || d.held[job.Fence(c.fence)] != r {
					t.Errorf("outcome %+v", r.outcome)
				}
			}
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func noteMany(d *desk, n int) {
	for i := range n {
		d.seen.note(job.RunID{0: 1, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}, 1)
	}
}

func TestRecentFencesAreBounded(t *testing.T) {
	t.Parallel()
	d := newDesk(1)
	noteMany(&d, 5*maxRecent)
	if n := len(d.seen.young) + len(d.seen.old); n > 2*maxRecent {
		t.Errorf("%d fences are remembered", n)
	}
}

// Whatever happens, in any order: each result is listed until it is acknowledged, sent once per session, within the
// window, in the order of the ends, and never before the output that belongs in front of it.
func TestDeskKeepsResults(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const slots = 20
		d := newDesk(slots)
		window := &workerpb.Welcome{MaxUnackedResults: 5, MaxUnackedBytes: 2000}
		d.reseat(window)
		running := map[job.Fence]*attempt{}
		inHand := map[job.Fence]bool{}
		sent := map[job.Fence]bool{} // in this session, not acknowledged
		var ends []job.Fence         // in order
		next, through := 1, uint64(0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1:
				a, _ := d.admit(deskAssignment(next, next, 1), 1)
				inHand[job.Fence(next)] = true
				if a != nil {
					running[a.Fence] = a
				} else {
					ends = append(ends, job.Fence(next))
				}
				next++
			case 2:
				for f, a := range running {
					size := rapid.SampledFrom([]int{0, 10, 1500, 5000}).Draw(t, "size")
					o := job.Outcome{RunID: a.RunID, Fence: f, Attempt: 1, Kind: 1, Result: json.RawMessage(`"` + strings.Repeat("x", size) + `"`)}
					d.finish(a, o, uint64(rapid.IntRange(0, 10).Draw(t, "after")))
					delete(running, f)
					ends = append(ends, f)
					break
				}
			case 3:
				d.queue = append(d.queue, d.finished...)
				d.finished = nil
				through = max(through, uint64(rapid.IntRange(0, 10).Draw(t, "through")))
				last := -1
				for _, r := range d.take(through) {
					f := job.Fence(r.GetFence())
					if sent[f] || !inHand[f] || d.held[f] == nil {
						t.Fatalf("fence %d was sent twice in a session, or is not in hand", f)
					}
					if d.held[f].after > through {
						t.Fatalf("fence %d overtook its output", f)
					}
					sent[f] = true
					for i, e := range ends {
						if e == f {
							if i < last {
								t.Fatalf("fence %d was sent out of order", f)
							}
							last = i
						}
					}
				}
				if len(sent) > 5 {
					t.Fatalf("%d results are under way", len(sent))
				}
			case 4:
				for f := range sent {
					if !d.acknowledge(f) || d.acknowledge(f) {
						t.Fatalf("fence %d was not held, or is still", f)
					}
					delete(sent, f)
					delete(inHand, f)
					break
				}
			case 5:
				d.reseat(window)
				clear(sent)
				through = 0
			}
			if got := d.fences(); len(got) != len(inHand) {
				t.Fatalf("%d fences are listed of %d in hand", len(got), len(inHand))
			}
			if d.used != len(running) || d.flying != len(sent) {
				t.Fatalf("%d slots used by %d attempts, %d of %d results under way", d.used, len(running), d.flying, len(sent))
			}
		}
		// In the end everything arrives.
		for f, a := range running {
			d.finish(a, job.Outcome{RunID: a.RunID, Fence: f, Attempt: 1, Kind: 1}, 0)
		}
		d.queue = append(d.queue, d.finished...)
		for len(inHand) > 0 {
			d.reseat(window)
			out := d.take(100)
			if len(out) == 0 {
				t.Fatalf("%d results are stuck", len(inHand))
			}
			for _, r := range out {
				d.acknowledge(job.Fence(r.GetFence()))
				delete(inHand, job.Fence(r.GetFence()))
			}
		}
		if len(d.held) != 0 || d.flying != 0 || d.flyingSize != 0 {
			t.Fatalf("left: %d held, %d under way", len(d.held), d.flying)
		}
	})
}

func TestTailSendsAgainWithinItsBound(t *testing.T) {
	t.Parallel()
	tail := newOutputTail(100_000, func() {})
	a := &attemptOutput{tail: tail, run: job.RunID{1}, fence: 1, attempt: 1}
	b := &attemptOutput{tail: tail, run: job.RunID{2}, fence: 2, attempt: 1}
	for range 10 {
		a.Write([]byte("0123456789"))
	}
	b.Write([]byte("b"))
	out, through := tail.take()
	if len(out) != 2 || string(out[0].Data) != strings.Repeat("0123456789", 10) || through != b.end() {
		t.Fatalf("took %v through %d", out, through)
	}
	if out, _ := tail.take(); len(out) != 0 {
		t.Errorf("sent twice on one stream: %v", out)
	}
	a.settle()
	tail.restart()
	if out, through = tail.take(); len(out) != 1 || string(out[0].Data) != "b" || through < a.end() {
		t.Errorf("on a new stream: %v through %d", out, through)
	}

	big := strings.Repeat("x", 40_000)
	for range 5 {
		b.Write([]byte(big))
	}
	if tail.bytes > tail.limit {
		t.Errorf("%d bytes are kept", tail.bytes)
	}
	var first uint64
	total := 0
	for {
		out, through = tail.take()
		if len(out) == 0 {
			break
		}
		if first == 0 {
			first = out[0].Offset
		}
		for _, o := range out {
			if o.Offset != first+uint64(total) {
				t.Fatalf("piece at %d after %d", o.Offset, first+uint64(total))
			}
			total += len(o.Data)
		}
	}
	if first+uint64(total) != 200_001 || first == 1 || through != b.end() {
		t.Errorf("from %d, %d bytes, through %d of %d: the end must be kept and the beginning be a gap", first, total, through, b.end())
	}
}

// Attempts that write a byte each in turns make pieces of a byte, which take far more than that.
func TestTailCountsWhatSmallPiecesTake(t *testing.T) {
	t.Parallel()
	tail := newOutputTail(100_000, func() {})
	a := &attemptOutput{tail: tail, run: job.RunID{1}, fence: 1, attempt: 1}
	b := &attemptOutput{tail: tail, run: job.RunID{2}, fence: 2, attempt: 1}
	for range 10_000 {
		a.Write([]byte("a"))
		b.Write([]byte("b"))
	}
	if n := len(tail.pieces); n < 100 || n > 1000 {
		t.Errorf("%d pieces are kept", n)
	}
	for range 1000 {
		tail.take()
	}
	a.settle()
	b.settle()
	if tail.restart(); tail.bytes != 0 || len(tail.pieces) != 0 {
		t.Errorf("%d pieces of %d bytes are left of nothing", len(tail.pieces), tail.bytes)
	}
}

func TestTimeLimit(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	for name, c := range map[string]struct {
		timeout  time.Duration
		deadline time.Duration
		want     time.Duration
		reason   job.Reason
	}{
		"neither":               {0, 0, 0, job.NoReason},
		"timeout":               {time.Minute, 0, time.Minute, job.TimedOut},
		"deadline":              {0, time.Minute, time.Minute, job.DeadlineExceeded},
		"timeout before":        {time.Minute, time.Hour, time.Minute, job.TimedOut},
		"deadline before":       {time.Hour, time.Minute, time.Minute, job.DeadlineExceeded},
		"deadline that is over": {time.Hour, -time.Minute, -time.Minute, job.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := &attempt{Assignment: &job.Assignment{Spec: &job.Document{Timeout: job.Duration(c.timeout)}}}
			if c.deadline != 0 {
				a.DeadlineAt = job.At(now.Add(c.deadline))
			}
			if d, r := timeLimit(a, now); d != c.want || r != c.reason {
				t.Errorf("%v %v, want %v %v", d, r, c.want, c.reason)
			}
		})
	}
}

func TestConfigNamesTheField(t *testing.T) {
	t.Parallel()
	good := func() Config {
		return Config{Name: "w", DataDir: "d", Addresses: []string{"http://127.0.0.1:1"}, Handlers: &Handlers{}}
	}
	for field, change := range map[string]func(*Config){
		"name":  func(c *Config) { c.Name = "a b" },
		"data":  func(c *Config) { c.DataDir = "" },
		"join":  func(c *Config) { c.Addresses = []string{"127.0.0.1:7070"} },
		"slots": func(c *Config) { c.Slots = -1 },
		"":      func(c *Config) { c.Handlers = nil },
	} {
		c := good()
		change(&c)
		if _, err := New(c); job.CodeOf(err) != job.Invalid || job.AsError(err).Field != field {
			t.Errorf("%q: %v", field, err)
		}
	}
	if _, err := New(good()); err != nil {
		t.Error(err)
	}
}

func TestTheDataDirectoryKeepsItsIDAndItsLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/new"
	unlock, err := lockDataDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	id, err := dataDirID(dir)
	if err != nil || len(id) != 32 {
		t.Fatalf("id %q: %v", id, err)
	}
	if again, err := dataDirID(dir); err != nil || again != id {
		t.Errorf("id %q then %q: %v", id, again, err)
	}
	if _, err := lockDataDir(dir); job.CodeOf(err) != job.Conflict || !strings.Contains(err.Error(), dir) {
		t.Errorf("a second lock: %v", err)
	}
	unlock()
	unlock, err = lockDataDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestTheSystemClockGoesOn(t *testing.T) {
	t.Parallel()
	c := systemClock{}
	a := c.Elapsed()
	for c.Elapsed() == a { // its resolution is finer than a loop, but not promised to be
	}
	if c.Elapsed() < a {
		t.Error("it went back")
	}
}
