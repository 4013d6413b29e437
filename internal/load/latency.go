package load

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// latency submits at fixed rates, whatever becomes of the requests before, and measures from the moment at which each
// submission was due.
func latency(ctx context.Context, b *bench) error {
	for _, rate := range b.Rates {
		if err := b.latencyAt(ctx, rate); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) latencyAt(ctx context.Context, rate int) error {
	r, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer r.close()
	name, err := r.plainJob(ctx)
	if err != nil {
		return err
	}
	warm := r.submitter(name)
	if _, err := warm.pace(ctx, rate, rate); err != nil {
		return err
	}
	if _, err := r.settled(ctx, warm, rate, 0, 0); err != nil {
		return err
	}
	n := int(b.LatencyFor.Seconds() * float64(rate))
	r.say("%d runs at %d a second", n, rate)
	s := r.submitter(name)
	from := r.seen.count()
	before, err := r.succeededBefore(ctx)
	if err != nil {
		return err
	}
	c := r.costs(ctx)
	var p *paced
	probe := b.probeDisk(ctx)
	err = b.profiled(ctx, fmt.Sprintf("latency%d", rate), func() error {
		if p, err = s.pace(ctx, n, rate); err != nil {
			return err
		}
		_, err = r.settled(ctx, s, n, from, before)
		return err
	}, r.node, r.worker)
	syncs := probe()
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%d/s ", rate)
	starts := make([]time.Duration, 0, n)
	for _, x := range r.seen.since(from) {
		if i, ok := s.ids.number(x.run); ok && i < n {
			starts = append(starts, time.Duration(x.at-p.due(i).UnixNano()))
		}
	}
	b.spreadBy(b.headline, what+"submit to start", starts)
	b.spread(what+"submit to answer", p.answered)
	b.spread(what+"sent too late", p.late)
	b.spread(what+"sync of a page", syncs)
	b.set(what+"runs never started", "runs", float64(n-len(starts)))
	if n != len(starts) {
		b.warn("%d runs were due at %d a second, and %d starts were seen", n, rate, len(starts))
	}
	r.charge(ctx, what, c, n)
	return nil
}

// probeDisk writes and syncs a page of a file of its own 50 times a second, and answers how long that took when it is told
// to stop: an answer needs a sync of the log, so this is the part of a latency that is the machine's.
func (b *bench) probeDisk(ctx context.Context) (stop func() []time.Duration) {
	ctx, cancel := context.WithCancel(ctx)
	var took []time.Duration
	done := make(chan struct{})
	go func() {
		defer close(done)
		f, err := os.Create(filepath.Join(b.base, "probe"))
		if err != nil {
			return
		}
		defer f.Close()
		page := make([]byte, 4096)
		for sleepContext(ctx, 20*time.Millisecond) {
			begin := time.Now()
			if _, err := f.WriteAt(page, 0); err != nil {
				return
			}
			if err := f.Sync(); err != nil {
				return
			}
			took = append(took, time.Since(begin))
		}
	}()
	return func() []time.Duration {
		cancel()
		<-done
		return took
	}
}

// paced is what became of a sequence of submissions.
type paced struct {
	begin    time.Time
	every    time.Duration
	late     []time.Duration // from due until sent
	answered []time.Duration // from due until the answer
}

func (p *paced) due(i int) time.Time { return p.begin.Add(time.Duration(i) * p.every) }

// pace submits n runs at a fixed rate. One that is refused is an error: a figure without it would be too good.
func (s *submitter) pace(ctx context.Context, n, rate int) (*paced, error) {
	p := &paced{begin: time.Now().Add(20 * time.Millisecond), every: time.Second / time.Duration(rate),
		late: make([]time.Duration, n), answered: make([]time.Duration, n)}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for i := 0; i < n && ctx.Err() == nil; i++ {
		due := p.due(i)
		sleepUntil(due)
		p.late[i] = time.Since(due)
		wg.Go(func() {
			if err := s.one(ctx, i); err != nil {
				cancel(err)
			}
			p.answered[i] = time.Since(due)
		})
	}
	wg.Wait()
	return p, context.Cause(ctx)
}
