package app

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/musterhq/muster/api"
	"github.com/musterhq/muster/cluster"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker/gateway/output"
)

// outputs reads what runs wrote, from whichever node has it: segments lie where they were received, and a worker that
// moves from one node to another leaves a part of an attempt's output on each.
type outputs struct{ *node }

// Output implements api.Output. An attempt has at most a megabyte or so of output, so the parts are gathered before they
// are put in order.
func (o outputs) Output(ctx context.Context, q api.OutputQuery, each func(api.OutputChunk) error) error {
	m := &merged{next: q.From, each: each}
	var chunks []api.OutputChunk
	follow := q.Follow
	q.Follow = false
	err := o.everywhere(ctx, q, func(c api.OutputChunk) error {
		c.Data = bytes.Clone(c.Data) // it is ours during the call only
		chunks = append(chunks, c)
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortStableFunc(chunks, func(a, b api.OutputChunk) int { return cmp.Compare(a.Offset, b.Offset) })
	for _, c := range chunks {
		if err := m.tell(c); err != nil {
			return err
		}
	}
	if !follow {
		return nil
	}
	q.Follow, q.From = true, m.next // what comes now comes on one node at a time
	return o.everywhere(ctx, q, m.tell)
}

// everywhere reads from all nodes at once, and calls each from one of them at a time. When it follows, the first node that
// knows the end ends it for all. A node that cannot be asked has, for now, nothing to say, since output is outside the
// never-lost promise: only what this node says counts as an error.
func (o outputs) everywhere(ctx context.Context, q api.OutputQuery, each func(api.OutputChunk) error) error {
	reading, stop := context.WithCancel(ctx)
	defer stop()
	var (
		mu    sync.Mutex // of each and what follows
		told  error      // by each
		ended bool
	)
	serial := func(c api.OutputChunk) error {
		mu.Lock()
		defer mu.Unlock()
		if told == nil {
			if told = each(c); told != nil {
				stop()
			}
		}
		return told
	}
	over := func(err error) {
		if err == nil && q.Follow {
			mu.Lock()
			ended = true
			mu.Unlock()
			stop()
		}
	}
	var all sync.WaitGroup
	for _, other := range o.others() {
		all.Go(func() {
			err := o.outputOf(reading, other, q, serial)
			over(err)
			if err != nil && reading.Err() == nil {
				o.Logger.Debug("output of another node cannot be read", "peer", other.Name, "run_id", q.RunID, "err", err)
			}
		})
	}
	err := ownOutput(reading, o.output, q, serial)
	over(err)
	all.Wait()
	switch {
	case told != nil:
		return told
	case ended && ctx.Err() == nil:
		return nil
	}
	return err
}

// merged tells pieces that may overlap, each byte once.
type merged struct {
	next int64
	each func(api.OutputChunk) error
}

func (m *merged) tell(c api.OutputChunk) error {
	if skip := m.next - c.Offset; skip > 0 {
		if skip >= int64(len(c.Data)) {
			return nil
		}
		c.Offset, c.Data = m.next, c.Data[skip:]
	}
	if err := m.each(c); err != nil {
		return err
	}
	m.next = c.Offset + int64(len(c.Data))
	return nil
}

// ownOutput reads what this node has.
func ownOutput(ctx context.Context, s *output.Store, q api.OutputQuery, each func(api.OutputChunk) error) error {
	tell := func(p output.Piece) error {
		return each(api.OutputChunk{Offset: p.Offset, Stream: "output", Data: p.Data})
	}
	if q.Follow {
		return s.Follow(ctx, q.RunID, q.Attempt, q.From, tell)
	}
	const page = 256 << 10
	for from := q.From; ; {
		pieces, next, err := s.Read(q.RunID, q.Attempt, from, page)
		if err != nil {
			return err
		}
		for _, p := range pieces {
			if err := tell(p); err != nil {
				return err
			}
		}
		if len(pieces) == 0 || next == from {
			return nil
		}
		from = next
	}
}

// outputOf reads what another node has.
func (n *node) outputOf(ctx context.Context, other job.Node, q api.OutputQuery, each func(api.OutputChunk) error) error {
	return n.raft.Peers().Output(ctx, other.ID, cluster.OutputQuery(q), func(c cluster.OutputChunk) error { return each(api.OutputChunk(c)) })
}
