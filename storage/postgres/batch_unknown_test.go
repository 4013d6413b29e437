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

	// COMMIT as it is sent: under the name that the driver prepared it by.
	digest := sha256.Sum256([]byte(commitSQL))
	commit := "stmt_" + hex.EncodeToString(digest[:24]) + "\x00\x00\x01" // without arguments, which the preparing lacks

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
