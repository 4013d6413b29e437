package postgres

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

// moment is when a proxy cuts a connection.
type moment int

const (
	beforeSending moment = iota // the server never sees what was sent
	halfSent                    // it sees some of it
	beforeAnswer                // it does all of it, and the answer is lost
	moments
)

// proxy is a way to Postgres that can be cut: the next connection on which what is being sent contains a text ends then.
type proxy struct {
	listener net.Listener
	to       string

	mu   sync.Mutex
	text []byte
	when moment
	open map[net.Conn]bool
	wg   sync.WaitGroup
}

// through is a URL that leads to the same database by way of a proxy.
func through(t *testing.T, address string) (string, *proxy) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, to: u.Host, open: map[net.Conn]bool{}}
	p.wg.Go(p.serve)
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		for c := range p.open {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	u.Host = l.Addr().String()
	return u.String(), p
}

// cut arms the proxy.
func (p *proxy) cut(text string, when moment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text, p.when = []byte(text), when
}

// disarm tells whether there was a cut since the proxy was armed.
func (p *proxy) disarm() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	cut := p.text == nil
	p.text = nil
	return cut
}

// due tells whether to cut now, and disarms.
func (p *proxy) due(sent []byte) (moment, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.text == nil || !bytes.Contains(sent, p.text) {
		return 0, false
	}
	p.text = nil
	return p.when, true
}

func (p *proxy) serve() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.to)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.open[client], p.open[server] = true, true
		p.mu.Unlock()
		var mu sync.Mutex
		mute := false
		p.wg.Go(func() { // to the client
			defer client.Close()
			defer server.Close()
			b := make([]byte, 32<<10)
			for {
				n, err := server.Read(b)
				mu.Lock()
				silent := mute
				mu.Unlock()
				if err != nil || silent {
					return
				}
				if _, err := client.Write(b[:n]); err != nil {
					return
				}
			}
		})
		p.wg.Go(func() { // to the server
			defer client.Close()
			defer server.Close()
			b := make([]byte, 32<<10)
			for {
				n, err := client.Read(b)
				if err != nil {
					return
				}
				sent := b[:n]
				when, cut := p.due(sent)
				if cut && when == beforeSending {
					return
				}
				if cut && when == halfSent {
					_, _ = server.Write(sent[:n/2])
					return
				}
				if cut {
					mu.Lock()
					mute = true
					mu.Unlock()
				}
				if _, err := server.Write(sent); err != nil {
					return
				}
			}
		})
	}
}

// nameOf is how a statement is asked for that the driver prepared, which the preparing itself lacks.
func nameOf(sql string) string {
	digest := sha256.Sum256([]byte(sql))
	return "stmt_" + hex.EncodeToString(digest[:24]) + "\x00\x00\x01"
}

// A connection that breaks when a transaction may have committed is answered as unknown, and the same call again makes it
// done once, whether it was or not.
func TestUnknownCommits(t *testing.T) {
	t.Parallel()
	direct := database(t)
	address, p := through(t, with(t, direct, "sslmode", "disable"))
	s := openAt(t, address)
	raise(t, s, 1)
	j := s.mustPut(t, document("a"))
	c := connect(t, direct)

	commit := nameOf(commitSQL)

	for when := range moments {
		for _, kind := range []string{"copy", "keyed", "known", "move", "retry", "tick", "cancel"} {
			t.Run(fmt.Sprintf("%s %d", kind, when), func(t *testing.T) {
				waitReady(t, s)
				r := aRun(nowMs())
				text := "COPY muster.runs"
				var do func() error
				switch kind {
				case "keyed", "known":
					keyed(fmt.Sprint("k", when), "body")(r)
					if kind == "known" {
						text = commit
						r = aRun(nowMs(), keyed(fmt.Sprint("k", when), "body"))
					}
					fallthrough
				case "copy":
					do = func() error {
						receipts, err := s.Submit(t.Context(), []*job.Run{copyOf(r)})
						if err == nil {
							err = receipts[0].Err
						}
						if err == nil && kind == "known" {
							r = receipts[0].Run
						}
						return err
					}
				case "cancel":
					submit(t, s, copyOf(r))
					text = commit
					do = func() error {
						receipts, err := s.Cancel(t.Context(), []job.CancelIntent{{ID: r.ID, At: nowMs()}})
						if err == nil && receipts[0].Run.CancelAt == 0 {
							t.Error("no intent")
						}
						return err
					}
				case "tick":
					k := job.Tick{JobID: j.ID, Version: 1, ScheduledAt: nowMs() - job.Instant(when), Disposition: job.TickRun, DecidedAt: nowMs()}
					r, text = &job.Run{ID: k.RunID()}, commit
					do = func() error { _, err := s.StoreTicks(t.Context(), 1, []job.Tick{k}); return err }
				default:
					submit(t, s, copyOf(r))
					m := job.Move{ID: r.ID, State: job.Failed, Fence: 1<<32 | 1, Attempt: 1, Worker: "w", FinishedAt: nowMs()}
					if kind == "retry" {
						m.State, m.ReadyAt, m.Ended = job.Scheduled, nowMs(), &job.Attempt{RunID: r.ID, Fence: m.Fence, Attempt: 1, State: job.Failed}
					}
					text = commit
					do = func() error {
						moved, err := s.Move(t.Context(), 1, []job.Move{m})
						if err == nil && moved[0].Run.Fence != m.Fence {
							t.Errorf("moved: %+v", moved[0])
						}
						return err
					}
				}
				p.cut(text, when)
				first := do()
				if !p.disarm() {
					t.Fatalf("nothing was cut: %v", first)
				}
				switch got := job.CodeOf(first); {
				case got == job.Unknown:
				case got == job.Unavailable && when != beforeAnswer: // the driver knows that nothing was sent
				case got == job.Unavailable && text == "COPY muster.runs":
					// The server answers COPY before it gets rows. Cut there, the rows may be what could not be sent, and no
					// server commits half a COPY.
					if n := ask[int](t, c, "SELECT count(*) FROM muster.runs WHERE id = $1", r.ID[:]); n != 0 {
						t.Fatalf("%v, but the run is there", first)
					}
				default:
					t.Fatalf("cut: %v", first)
				}
				deadline := time.Now().Add(20 * time.Second)
				for {
					err := do()
					if err == nil {
						break
					}
					if code := job.CodeOf(err); code != job.Unavailable && code != job.Unknown || time.Now().After(deadline) {
						t.Fatalf("again: %v", err)
					}
					time.Sleep(5 * time.Millisecond)
				}
				if n := ask[int](t, c, "SELECT count(*) FROM muster.runs WHERE id = $1", r.ID[:]); n != 1 {
					t.Fatalf("%d runs", n)
				}
			})
		}
	}
	if n := ask[int](t, c, "SELECT count(*) FROM muster.keys k LEFT JOIN muster.runs r ON r.id = k.run_id WHERE r.id IS NULL"); n != 0 {
		t.Errorf("%d keys have no run", n)
	}
}

// The same of what grows from runs and jobs that depend on each other: births by the leader, ends that satisfy edges, and
// births of satisfied edges, cut at each step: whatever was answered, repeated it is done once.
func TestUnknownGraphs(t *testing.T) {
	t.Parallel()
	direct := database(t)
	address, p := through(t, with(t, direct, "sslmode", "disable"))
	s := openAt(t, address)
	raise(t, s, 1)
	a := s.mustPut(t, document("a"))
	b := s.mustPut(t, document("b", "a"))
	s.mustFire(t)
	c := connect(t, direct)
	for when := range moments {
		for _, kind := range []string{"release", "release, some there", "end", "end, slowly", "fire: look", "fire: lock", "fire: birth", "fire: clear"} {
			t.Run(fmt.Sprintf("%s %d", kind, when), func(t *testing.T) {
				waitReady(t, s)
				text := nameOf(commitSQL)
				r, other := aRun(nowMs(), ofThe(a)), aRun(nowMs(), ofThe(a))
				var do func() error
				var check func()
				switch kind {
				case "release", "release, some there":
					if kind == "release" {
						text = "COPY muster.runs"
					} else if _, err := s.Release(t.Context(), 1, []*job.Run{copyOf(other)}); err != nil {
						t.Fatal(err)
					}
					do = func() error {
						receipts, err := s.Release(t.Context(), 1, []*job.Run{copyOf(r), copyOf(other)})
						for _, receipt := range receipts {
							if err == nil && (receipt.Err != nil || receipt.Run == nil) {
								t.Errorf("receipts: %+v", receipts)
							}
						}
						return err
					}
					check = func() {
						if n := ask[int](t, c, "SELECT count(*) FROM muster.runs WHERE id IN ($1, $2)", r.ID[:], other.ID[:]); n != 2 {
							t.Errorf("%d runs", n)
						}
					}
				default:
					submit(t, s, copyOf(r))
					do = func() error {
						_, err := s.Move(t.Context(), 1, []job.Move{endOf(r, job.Succeeded, kind == "end")})
						return err
					}
					if kind == "end" || kind == "end, slowly" {
						check = func() {
							e := s.upstreams(t, "b")[0]
							if e.SatisfiedBy != r.ID || e.Coalesced != 0 {
								t.Errorf("the edge: %+v", e)
							}
							s.mustFire(t)
						}
						break
					}
					if err := do(); err != nil {
						t.Fatal(err)
					}
					text = nameOf(map[string]string{"fire: look": commitSQL, "fire: lock": fireSQL["lock_edges"], "fire: birth": insertSQL, "fire: clear": fireSQL["write_edges"]}[kind])
					do = func() error { _, err := s.Fire(t.Context(), 1, nil, nowMs(), 10); return err }
					check = func() {
						if e := s.upstreams(t, "b")[0]; !e.SatisfiedBy.IsZero() {
							t.Errorf("the edge: %+v", e)
						}
						if n := ask[int](t, c, "SELECT count(*) FROM muster.runs WHERE job = 'b' AND upstreams LIKE '%' || $1 || '%'", r.ID.String()); n != 1 {
							t.Errorf("%d births", n)
						}
					}
				}
				p.cut(text, when)
				first := do()
				if !p.disarm() {
					t.Fatalf("nothing was cut: %v", first)
				}
				if got := job.CodeOf(first); got != job.Unknown && got != job.Unavailable {
					t.Fatalf("cut: %v", first)
				}
				deadline := time.Now().Add(20 * time.Second)
				for err := do(); err != nil; err = do() {
					if code := job.CodeOf(err); code != job.Unavailable && code != job.Unknown || time.Now().After(deadline) {
						t.Fatalf("again: %v", err)
					}
					time.Sleep(5 * time.Millisecond)
				}
				check()
				var live []job.Move
				for _, r := range all(t, s, b.ID) {
					live = append(live, endOf(r, job.Succeeded, true))
				}
				if _, err := s.Move(t.Context(), 1, live); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// all are the live runs of a job.
func all(t *testing.T, s *Store, id job.JobID) []*job.Run {
	t.Helper()
	runs, err := s.LiveOfJob(t.Context(), id, 100)
	if err != nil {
		t.Fatal(err)
	}
	return runs
}
