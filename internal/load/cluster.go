package load

import (
	"cmp"
	"context"
	"crypto/tls"
	"net/http"
	"slices"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

// Cluster is one that runs already, and does other things too. What is measured there is in a namespace of its own, and is
// run by a worker of its own, which takes nothing else because it has nothing but a handler that nobody else names.
type Cluster struct {
	// Addresses of its nodes; what is submitted goes to all of them in turns.
	Addresses []string
	// Token is a credential that may define jobs, submit runs and look at workers.
	Token string
	// CA is the file with the cluster's certificate authority; "": it has no certificates.
	CA string
	// JoinTokenFile holds what lets the worker in.
	JoinTokenFile string
	// Exec is a command that the workers run which are there already, instead of a worker of our own with a handler that
	// does nothing; Selector says which of them. Starts are then what the API says.
	Exec     []string
	Selector map[string]string
}

// trust is whom to trust; nil: the machine's certificates.
func (c *Cluster) trust() (*tls.Config, error) {
	if c == nil || c.CA == "" {
		return nil, nil
	}
	return client.TrustCA(c.CA)
}

// transport makes as many connections as there are requests at once: over one of HTTP/2 all would wait for each other.
func transport(trust *tls.Config) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 1024
	t.MaxIdleConns = 1024
	t.TLSClientConfig = trust
	t.ForceAttemptHTTP2 = false
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	return t
}

// document is a job that does nothing, on the worker of this rig.
func (r *rig) document(name string) *job.Document {
	d := &job.Document{Name: name}
	if r.theirWorkers() {
		d.Exec, d.Selector = &job.Exec{Command: r.Cluster.Exec}, r.Cluster.Selector
	} else {
		d.Handler = &job.Handler{Name: r.workerName()}
	}
	return d
}

// theirWorkers tells whether runs are for workers that were there before us.
func (b *bench) theirWorkers() bool { return b.Cluster != nil && len(b.Cluster.Exec) > 0 }

// live tells whether the API knows runs of a job that have not ended. A node may know less than another, so all are asked.
func (r *rig) live(ctx context.Context, name string) (bool, error) {
	filter := client.RunFilter{Job: name, States: []job.State{job.Waiting, job.Held, job.Scheduled, job.Queued, job.Running}}
	for _, api := range r.nodes {
		for _, err := range api.Runs(ctx, filter) {
			return true, err
		}
	}
	return false, nil
}

// collect fills in what no handler of ours recorded: the starts, as the API has them.
func (r *rig) collect(ctx context.Context, name string) error {
	var starts []start
	for run, err := range r.api.Runs(ctx, client.RunFilter{Job: name}) {
		if err != nil {
			return err
		}
		if run.StartedAt != 0 {
			starts = append(starts, start{run: run.ID, scheduledAt: run.ScheduledAt, at: run.StartedAt.Time().UnixNano(), attempt: run.Attempt})
		}
	}
	slices.SortFunc(starts, func(a, b start) int { return cmp.Compare(a.at, b.at) })
	r.seen.replace(starts)
	return nil
}

// settledThere waits until no run of a job is left that has not ended. Others' runs count in a cluster's metrics, so the
// API is asked, as seldom as the figures allow.
func (r *rig) settledThere(ctx context.Context, name string, runs, from int) (time.Time, error) {
	moved, last, limit := time.Now(), -1, patience
	if r.theirWorkers() { // what they do is not seen before it is done
		limit = 5 * time.Minute
	}
	for {
		if err := r.worker.alive(); err != nil {
			return moved, err
		}
		n := r.seen.count() - from
		if n >= runs || r.theirWorkers() {
			live, err := r.live(ctx, name)
			if err != nil {
				return moved, err
			}
			if at := time.Now(); !live {
				if r.theirWorkers() {
					err = r.collect(ctx, name)
				}
				return at, err
			}
		}
		if n != last {
			moved, last = time.Now(), n
		}
		if time.Since(moved) > limit {
			return moved, nil
		}
		if !sleepContext(ctx, 10*time.Millisecond) {
			return moved, ctx.Err()
		}
	}
}
