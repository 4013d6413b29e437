package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

// fakeRaft takes entries, and answers them when told to.
type fakeRaft struct {
	entries chan *fakeFuture
}

type fakeFuture struct {
	*fsm.Entry
	answer chan error
	raw    any
}

func (r *fakeRaft) ApplyLog(l raft.Log, _ time.Duration) raft.ApplyFuture {
	e, err := fsm.DecodeEntry(l.Data)
	if err != nil {
		panic(err)
	}
	f := &fakeFuture{Entry: e, answer: make(chan error, 1)}
	results := make([]fsm.Result, len(e.Commands))
	for i, c := range e.Commands {
		results[i].Value = c.(*fsm.RaiseEpoch).AtLeast
	}
	f.raw = results
	r.entries <- f
	return f
}

func (f *fakeFuture) Error() error  { return <-f.answer }
func (f *fakeFuture) Response() any { return f.raw }
func (f *fakeFuture) Index() uint64 { return 0 }

func startProposer(t *testing.T, cfg Config) (*proposer, *fakeRaft) {
	cfg.Memory, cfg.Logger = NewMemory("a"), slog.New(slog.DiscardHandler)
	cfg.setDefaults()
	r := &fakeRaft{entries: make(chan *fakeFuture, 100)}
	p := newProposer(&cfg, r, "node", "boot", newMetrics())
	p.start()
	t.Cleanup(func() {
		if err := p.close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return p, r
}

func raise(n int) []fsm.Command { return []fsm.Command{&fsm.RaiseEpoch{AtLeast: job.Epoch(n)}} }

// TestGroupCommit: what arrives while an entry is on its way shares the next one, and everyone gets their own results.
func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, r := startProposer(t, Config{MaxInFlight: 1, MaxEntryCommands: 10})
		var all sync.WaitGroup
		call := func(n, commands int) {
			all.Go(func() {
				var list []fsm.Command
				for i := range commands {
					list = append(list, raise(100*n+i)...)
				}
				results, err := p.propose(t.Context(), list)
				if err != nil || len(results) != commands {
					t.Errorf("call %d: %d results, %v", n, len(results), err)
					return
				}
				for i, r := range results {
					if r.Value != job.Epoch(100*n+i) {
						t.Errorf("call %d got the result of %v", n, r.Value)
					}
				}
			})
		}
		call(1, 1)
		first := <-r.entries
		for n := 2; n <= 6; n++ {
			call(n, 3)
			synctest.Wait()
		}
		call(7, 12) // alone more than an entry is filled with
		synctest.Wait()
		sizes := []int{len(first.Commands)}
		seqs := []uint64{first.Origin.Seq}
		first.answer <- nil
		for range 3 {
			e := <-r.entries
			sizes, seqs = append(sizes, len(e.Commands)), append(seqs, e.Origin.Seq)
			if e.Origin.Node != "node" || e.Origin.Boot != "boot" || e.At == 0 {
				t.Errorf("%+v", e.Origin)
			}
			e.answer <- nil
		}
		all.Wait()
		if fmt.Sprint(sizes) != "[1 9 6 12]" || fmt.Sprint(seqs) != "[1 2 3 4]" {
			t.Errorf("entries of %v commands, numbered %v", sizes, seqs)
		}
	})
}

func TestClassification(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, r := startProposer(t, Config{})
		for _, test := range []struct {
			err  error
			code job.Code
		}{
			{raft.ErrNotLeader, job.Unavailable},
			{raft.ErrEnqueueTimeout, job.Unavailable},
			{raft.ErrLeadershipTransferInProgress, job.Unavailable},
			{raft.ErrLeadershipLost, job.Unknown},
			{raft.ErrRaftShutdown, job.Unknown},
			{raft.ErrAbortedByRestore, job.Unknown},
			{errors.New("unable to store logs"), job.Unknown},
		} {
			go func() { (<-r.entries).answer <- test.err }()
			_, err := p.propose(t.Context(), raise(1))
			if job.CodeOf(err) != test.code {
				t.Errorf("%v: %v", test.err, err)
			}
			if m := job.AsError(err).Message; m == "" || strings.Contains(m, "raft") {
				t.Errorf("%v: message %q", test.err, m)
			}
		}
		// A state machine that answers something else is a defect of ours.
		go func() {
			f := <-r.entries
			f.raw = "rubbish"
			f.answer <- nil
		}()
		if _, err := p.propose(t.Context(), raise(1)); job.CodeOf(err) != job.Internal {
			t.Error(err)
		}
	})
}

// TestOneTooLargeFailsAlone: a call whose estimate was too low does not fail those that share its entry.
func TestOneTooLargeFailsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, r := startProposer(t, Config{MaxInFlight: 1})
		if _, err := p.propose(t.Context(), []fsm.Command{&fsm.PauseNamespace{Namespace: strings.Repeat("x", MaxProposalBytes)}}); job.CodeOf(err) != job.Invalid {
			t.Error(err)
		}
		// Many strings of a megabyte in a command that estimates only itself cannot be built from here, so the estimate is
		// spoilt instead.
		answers := make(chan error, 3)
		go func() { _, err := p.propose(t.Context(), raise(1)); answers <- err }()
		first := <-r.entries
		large := &proposal{commands: []fsm.Command{&fsm.PauseNamespace{Namespace: strings.Repeat("x", MaxProposalBytes)}}, size: 1, done: make(chan struct{})}
		if err := p.enqueue(large); err != nil {
			t.Fatal(err)
		}
		for n := 2; n <= 3; n++ {
			go func() { _, err := p.propose(t.Context(), raise(n)); answers <- err }()
			synctest.Wait()
		}
		first.answer <- nil
		(<-r.entries).answer <- nil
		(<-r.entries).answer <- nil
		for range 3 {
			if err := <-answers; err != nil {
				t.Error(err)
			}
		}
		<-large.done
		if job.CodeOf(large.err) != job.Invalid {
			t.Error(large.err)
		}
	})
}

// TestCloseWithProposals: what waits when the node closes is told that nothing happened, or is still committed.
func TestCloseWithProposals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, r := startProposer(t, Config{MaxInFlight: 1})
		answers := make(chan error, 2)
		go func() { _, err := p.propose(t.Context(), raise(1)); answers <- err }()
		first := <-r.entries
		go func() { _, err := p.propose(t.Context(), raise(2)); answers <- err }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := p.close(ctx); err == nil {
			t.Error("close did not say that an entry is left behind")
		}
		codes := map[job.Code]int{}
		for range 2 {
			codes[job.CodeOf(<-answers)]++
		}
		if codes[job.Unknown] != 1 || codes[job.Unavailable] != 1 {
			t.Errorf("answers: %v", codes)
		}
		if _, err := p.propose(t.Context(), raise(3)); job.CodeOf(err) != job.Unavailable {
			t.Error(err)
		}
		first.answer <- nil
	})
}
