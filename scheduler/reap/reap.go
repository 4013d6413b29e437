// Package reap ends what its holder no longer will: leases that ran out, stops that were not obeyed yet, and ended leases
// that no grant carried to Raft. A rumour never reaps: only time does (design section 1).
package reap

import (
	"context"
	"log/slog"
	"time"

	"github.com/musterhq/muster/internal/failpoint"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler/fleet"
	"github.com/musterhq/muster/scheduler/pace"
)

// Every is how often the reaper looks. A lease is 30 s and its grace 10 s, so a second more does not matter.
const Every = time.Second

// Control is told which leases ended.
type Control interface {
	Grant(ctx context.Context, epoch job.Epoch, grants []job.Grant, ended []job.EndedGrant) (refused []int, err error)
}

// Gateways are reminded of stops.
type Gateways interface {
	Stop(ctx context.Context, orders []job.StopOrder)
}

// Reaper is one term's.
type Reaper struct {
	Epoch    job.Epoch
	Fleet    *fleet.Fleet
	Control  Control
	Gateways Gateways
	Report   func(session job.SessionID, outcomes []job.Outcome) // the settler's
	Logger   *slog.Logger
}

// Reaping is the part that reaps.
func (r *Reaper) Reaping() *pace.Part {
	trouble := pace.Trouble{Logger: r.Logger, What: "telling raft of ended leases"}
	return &pace.Part{Name: "reaper", First: Every, Turn: func(ctx context.Context) (time.Duration, error) {
		if err := r.Step(ctx); job.CodeOf(err) == job.Fenced {
			return 0, err
		} else if err != nil && ctx.Err() == nil {
			trouble.Failed(err)
		} else {
			trouble.Over()
		}
		return Every, nil
	}}
}

// Step looks once.
func (r *Reaper) Step(ctx context.Context) error {
	expired, extended := r.Fleet.Expired()
	if extended > 0 {
		r.Logger.Warn("many leases of one node lapsed together: its gateway is suspected, they are extended once", "count", extended)
	}
	outcomes := make([]job.Outcome, len(expired))
	for i, l := range expired {
		outcomes[i] = job.Outcome{RunID: l.RunID, Fence: l.Fence, Attempt: l.Attempt, Worker: l.Worker, StartedAt: l.StartedAt,
			Kind: job.AttemptLost, Reason: job.WorkerLost, Error: "the worker was not heard of until the lease ended"}
	}
	if len(outcomes) > 0 {
		r.Logger.Info("leases ran out", "count", len(outcomes))
		r.Report("", outcomes)
		failpoint.Hit("reap/requeued")
	}
	if orders := r.Fleet.Stopping(); len(orders) > 0 {
		r.Gateways.Stop(ctx, orders)
	}
	return r.Fleet.Tell(func(ended []job.EndedGrant) error {
		if len(ended) == 0 {
			return nil
		}
		_, err := r.Control.Grant(ctx, r.Epoch, nil, ended)
		return err
	})
}
