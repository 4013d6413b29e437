package app

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
	"github.com/musterhq/muster/worker/gateway"
	"github.com/musterhq/muster/worker/gateway/relay"
)

// gateways is all workers' way in, as the term reaches them.
func (n *node) gateways() scheduler.Gateways {
	if n.hub != nil {
		return n.hub
	}
	return n.gateway
}

// lead is one reign: it returns when its work has wholly ended (L1).
func (n *node) lead(ctx context.Context) error {
	for {
		err := n.work(ctx)
		if !errors.Is(err, errStoreCame) {
			return err
		}
	}
}

// errStoreCame ends a term whose store was away: behind its address may be another server now, an old copy even. It is raised
// anew before it is written to, and nodes that still reach the one from before learn by the epoch that it is not theirs.
var errStoreCame = errors.New("the store was away and came back")

// work is one term.
func (n *node) work(reign context.Context) error {
	ctx, end := context.WithCancelCause(reign)
	defer end(nil)
	term, came, err := n.beginTerm(ctx, scheduler.Config{
		Control: n.control, Store: n.store, Queue: n.queue(), Gateways: n.gateways(), Clock: systemClock{n.clock.Now, n.Elapsed},
		Jitter: rand.Float64, Logger: n.Logger, History: n.History, Metrics: n.schedulerMetrics(), Status: n.status(),
		LoadLanes: n.postgres != nil,
	})
	if err != nil {
		return err
	}
	n.begin()
	if n.postgres != nil {
		if _, err := n.raft.Propose(ctx, &fsm.RaiseStore{Epoch: term.Epoch()}); err != nil {
			n.Logger.Warn("the cluster does not know to which epoch the store was raised", "err", err)
		}
		var watch sync.WaitGroup
		defer watch.Wait()
		defer end(nil)
		watch.Go(func() {
			for ctx.Err() == nil && n.storeCame() == came {
				select {
				case <-ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
			}
			end(errStoreCame)
		})
	}
	n.term.Store(term)
	defer n.term.Store(nil)
	if n.hub == nil {
		n.gateway.SetLeader(term)
		defer n.gateway.SetLeader(nil)
	} else {
		if err := n.hub.Lead(term, term.Epoch()); err != nil {
			return err
		}
		defer n.hub.Unlead()
	}
	err = term.Run(ctx)
	if cause := context.Cause(ctx); reign.Err() == nil && errors.Is(cause, errStoreCame) {
		return cause
	}
	return err
}

// storeCame counts how often the store came.
func (n *node) storeCame() uint64 {
	if n.postgres == nil {
		return 0
	}
	return n.postgres.Came()
}

// beginTerm begins a term as soon as the store answers. Without it there is none: nobody could say what runs and what is due.
func (n *node) beginTerm(ctx context.Context, c scheduler.Config) (_ *scheduler.Term, came uint64, _ error) {
	n.claims.Store(n.state.Store() == "")
	defer n.claims.Store(false)
	start := time.Now()
	for said := false; ; {
		// Each try raises the epoch in Raft, so there is none while it is known to be in vain.
		pause := 100 * time.Millisecond
		err := n.storeAway()
		if err == nil {
			// Only a database that was reached becomes the cluster's: after that, an empty one at its address is refused.
			if err := n.claim(ctx); err != nil {
				return nil, 0, err
			}
			if err := n.agrees(); err != nil {
				return nil, 0, err
			}
			var term *scheduler.Term
			came = n.storeCame()
			term, err = scheduler.Begin(ctx, c)
			pause = time.Second // it is there and refuses: each try costs an epoch
			if code := job.CodeOf(err); n.postgres == nil || code != job.Unavailable && code != job.Unknown {
				return term, came, err
			}
		}
		if !said && time.Since(start) > storePatience {
			n.Logger.Warn("this node leads, and begins to work when the store answers", "err", err)
			n.begin() // requests are answered with what is wrong
			said = true
		}
		select {
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// storeAway says why the store cannot be reached, if it cannot.
func (n *node) storeAway() error {
	if n.postgres == nil {
		return nil
	}
	if up, why := n.postgres.Ready(); !up {
		return job.Errorf(job.Unavailable, "store_unavailable", "the store is not available: %s", why)
	}
	return nil
}

// status is where the term keeps what runs now for readers, if there is such a place.
func (n *node) status() scheduler.Status {
	if n.redis == nil {
		return nil
	}
	return n.running
}

// begin is called, perhaps more than once, when this node knows all that the cluster had accepted.
func (n *node) begin() {
	n.calm()
	n.started.Store(true)
}

// clockPatience is how long a node that has caught up waits to be told the cluster's time, which is due each second.
const clockPatience = 5 * time.Second

// storePatience is how long a node waits for its store before it takes requests, which then are answered with what is wrong.
const storePatience = 3 * time.Second

// awaitReady returns when this node takes requests: it leads, or knows all that the leader had committed, and what time it
// is (L8): by a clock that is an hour ahead, what it takes would be due in an hour.
func (n *node) awaitReady(ctx context.Context) error {
	var caughtUp time.Time
	for {
		if n.LocalOnly && n.term.Load() != nil || !n.LocalOnly && n.started.Load() {
			return nil
		}
		if err := n.agrees(); err != nil {
			return err
		}
		// Until the first leader has said which store the cluster has, this node could take runs into another one.
		decided := n.Postgres == "" || n.state.Store() != ""
		if !n.LocalOnly && decided && n.raft.CatchUp(ctx) == nil {
			if caughtUp.IsZero() {
				caughtUp = time.Now()
			}
			known := n.raft.ClockKnown()
			reached := n.storeAway() == nil || time.Since(caughtUp) > storePatience
			if reached && (known || time.Since(caughtUp) > clockPatience) {
				if !known {
					n.Logger.Warn("the cluster's time is not known; this node goes by its own clock until it is")
				}
				n.begin()
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// follow links this node's gateway to whoever else leads.
func (n *node) follow(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	var watch sync.WaitGroup
	defer watch.Wait()
	watch.Go(func() { n.raft.WatchLeader(ctx, changed) })
	return relay.Follow(ctx, relay.FollowConfig{Node: n.Name, Self: n.raft.ID(), Gateway: n.gateway, Leader: n.raft.Leader, Changed: changed, Lost: n.raft.Suspect,
		Epoch: n.state.Epoch, Client: n.port.LinkClient(), URL: n.port.URL, Logger: n.Logger, Registerer: n.registry})
}

// handOver gives leadership away before this node stops, so that the cluster need not notice its absence first.
func (n *node) handOver() {
	if n.port == nil || !n.raft.Leading() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := n.raft.Transfer(ctx, ""); err != nil {
		n.Logger.Warn("leadership cannot be handed over before the stop", "err", err)
	}
}

var _ gateway.Leader = (*scheduler.Term)(nil)

var errStarting = job.Errorf(job.Unavailable, "starting", "this node is starting and does not know yet all that the cluster has accepted")

var errNoLeader = job.Errorf(job.Unavailable, "no_leader", "no node leads at the moment; try again in a few seconds")
