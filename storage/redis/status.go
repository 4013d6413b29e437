package redis

import (
	"context"
	"errors"
	"time"

	"github.com/fxamacker/cbor/v2"
	goredis "github.com/redis/go-redis/v9"

	"github.com/musterhq/muster/job"
)

// The bounds of the status cache. What is beyond them is not cached: the store has it, a little older.
const (
	StatusTTL     = 30 * time.Second // of a row that nobody refreshes
	MaxStatusRow  = 16 << 10         // bytes
	MaxStatusRows = 10_000           // rows of one Put

	statusBatch  = 500
	statusFormat = 1 // the first byte of a row
)

// Status caches runs as the leader last knew them, for whoever is asked and is not the leader. It promises nothing: a
// row may be missing, or be of another time. Who reads one believes it only while the lease that it shows stands in Raft.
type Status struct {
	client *Client
	decode cbor.DecMode
}

// Status makes the cache.
func (c *Client) Status() (*Status, error) {
	// A newer node may have written fields that this one does not know: the row is then of no use here.
	decode, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden}.DecMode()
	if err != nil {
		return nil, err
	}
	return &Status{client: c, decode: decode}, nil
}

func statusKey(prefix string, id job.RunID) string { return prefix + "s:" + id.String() }

// Put writes rows, or refreshes them, each for StatusTTL. Rows that are too large are left out, and so is what is over
// MaxStatusRows.
func (s *Status) Put(ctx context.Context, runs []*job.Run) error {
	runs = runs[:min(len(runs), MaxStatusRows)]
	return s.inBatches(ctx, len(runs), func(p goredis.Pipeliner, prefix string, i int) error {
		b, err := cbor.Marshal(runs[i])
		if err != nil {
			return err
		}
		if len(b) < MaxStatusRow {
			p.Set(ctx, statusKey(prefix, runs[i].ID), append([]byte{statusFormat}, b...), StatusTTL)
		}
		return nil
	})
}

// Drop forgets rows, as of runs that ended.
func (s *Status) Drop(ctx context.Context, ids []job.RunID) error {
	return s.inBatches(ctx, len(ids), func(p goredis.Pipeliner, prefix string, i int) error {
		p.Unlink(ctx, statusKey(prefix, ids[i]))
		return nil
	})
}

// inBatches sends n commands, some hundred to a round trip.
func (s *Status) inBatches(ctx context.Context, n int, add func(p goredis.Pipeliner, prefix string, i int) error) error {
	if n == 0 {
		return nil
	}
	prefix, err := s.client.prefix()
	if err != nil {
		return err
	}
	for begin := 0; begin < n; begin += statusBatch {
		p := s.client.redis.Pipeline()
		for i := begin; i < min(begin+statusBatch, n); i++ {
			if err := add(p, prefix, i); err != nil {
				return err
			}
		}
		if p.Len() == 0 {
			continue
		}
		if err := s.exec(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (s *Status) exec(ctx context.Context, p goredis.Pipeliner) error {
	ctx, cancel := s.client.bounded(ctx)
	defer cancel()
	if _, err := p.Exec(ctx); err != nil {
		return s.away(err)
	}
	return nil
}

// Get answers a run's row, nil if there is none that can be used.
func (s *Status) Get(ctx context.Context, id job.RunID) (*job.Run, error) {
	prefix, err := s.client.prefix()
	if err != nil {
		return nil, err
	}
	ctx, cancel := s.client.bounded(ctx)
	defer cancel()
	b, err := s.client.redis.Get(ctx, statusKey(prefix, id)).Bytes()
	switch {
	case errors.Is(err, goredis.Nil):
		return nil, nil
	case err != nil:
		return nil, s.away(err)
	case len(b) == 0 || len(b) > MaxStatusRow || b[0] != statusFormat:
		return nil, nil
	}
	r := &job.Run{}
	if err := s.decode.Unmarshal(b[1:], r); err != nil || r.ID != id {
		return nil, nil
	}
	return r, nil
}

// away is the error for all that fails here: nothing depends on whether it happened.
func (s *Status) away(err error) error {
	return &job.Error{Code: job.Unavailable, Reason: "status_unavailable", Message: "the status cache in Redis at " + s.client.Address() + " does not answer", Cause: errors.New(s.client.scrub(err.Error()))}
}
