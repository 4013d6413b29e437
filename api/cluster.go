package api

import (
	"context"
	"net/http"

	"github.com/musterhq/muster/job"
)

func (a *API) readCluster(rq *request, _ *inNothing) error {
	s, err := a.Cluster.Status(rq.ctx)
	if err != nil {
		return err
	}
	c := *s
	c.Quorum = quorumOf(&c)
	// A cluster whose store is away has the more reason to be looked at.
	if u, err := a.Store.Usage(rq.ctx); err == nil {
		c.Usage = &u
	}
	return rq.json(http.StatusOK, &c)
}

// MaintenanceRequest is the body of POST /v1/cluster/maintenance.
type MaintenanceRequest struct {
	Maintenance *bool `json:"maintenance" doc:"true: no ticks, no new attempts; what runs goes on"`
}

func (a *API) setMaintenance(rq *request, _ *inNothing) error {
	var q MaintenanceRequest
	if err := rq.decode(a, &q); err != nil {
		return err
	}
	if q.Maintenance == nil {
		return job.InvalidField("maintenance", "it has to be true or false")
	}
	if err := a.Flags.Maintain(rq.ctx, *q.Maintenance); err != nil {
		return err
	}
	return rq.json(http.StatusOK, q)
}

func errAlone() error {
	return job.Errorf(job.NotFound, "no_route", "this node is alone; only the nodes of a cluster (`muster server`) offer this")
}

// TransferRequest is the body of POST /v1/cluster/transfer.
type TransferRequest struct {
	To string `json:"to,omitempty" doc:"the name of the node that shall lead; without it the one that is furthest"`
}

func (a *API) transfer(rq *request, _ *inNothing) error {
	var q TransferRequest
	if err := rq.decode(a, &q); err != nil {
		return err
	}
	if q.To != "" {
		if err := checkName("to", q.To); err != nil {
			return err
		}
	}
	if a.Admin == nil {
		return errAlone()
	}
	if err := a.Admin.Transfer(rq.ctx, q.To); err != nil {
		return err
	}
	return rq.nothing()
}

type inNode struct {
	Name  nameParam `path:"name"`
	Force flagParam `query:"force" doc:"true: even if the nodes that remain cannot decide without those that do not answer"`
}

func (a *API) removeNode(rq *request, in *inNode) error {
	if err := checkName("name", string(in.Name)); err != nil {
		return err
	}
	force, err := in.Force.read("force")
	if err != nil {
		return err
	}
	if a.Admin == nil {
		return errAlone()
	}
	if err := a.Admin.Remove(rq.ctx, string(in.Name), force); err != nil {
		return err
	}
	a.Logger.Info("a node was removed from the cluster", "node", string(in.Name), "force", force, "request_id", rq.id)
	return rq.nothing()
}

func (a *API) verifyReplicas(rq *request, _ *inNothing) error {
	if a.Admin == nil {
		return errAlone()
	}
	v, err := a.Admin.Verify(rq.ctx)
	if err != nil {
		return err
	}
	return rq.json(http.StatusOK, v)
}

func (a *API) greeting(rq *request, _ *inNothing) error {
	if a.Admin == nil {
		return errAlone()
	}
	g, err := a.Admin.Greeting(rq.ctx)
	if err != nil {
		return err
	}
	return rq.json(http.StatusOK, g)
}

// snapshot streams a copy of the state. Once bytes are out, a failure can only be shown by breaking off, which no client
// takes for a whole answer.
func (a *API) snapshot(rq *request, _ *inNothing) error {
	if a.Snapshots == nil {
		return errNoSnapshots()
	}
	w := &lateHeader{rq: rq}
	err := a.Snapshots.Snapshot(rq.ctx, w)
	if err != nil && w.begun {
		a.Logger.Error("a snapshot broke off", "request_id", rq.id, "err", err)
		panic(http.ErrAbortHandler)
	}
	return err
}

func errNoSnapshots() error {
	return job.Errorf(job.NotFound, "no_route", "this node offers no snapshots")
}

// restore puts a copy in the state's place. One at a time: two would only wait for each other, each with its gigabytes.
func (a *API) restore(rq *request, _ *inNothing) error {
	if a.Snapshots == nil {
		return errNoSnapshots()
	}
	body, err := rq.large(a, MaxSnapshot, bytesType)
	if err != nil {
		return err
	}
	if !a.restoring.CompareAndSwap(false, true) {
		return job.Errorf(job.Conflict, "restoring", "a snapshot is being restored already; wait for its end")
	}
	defer a.restoring.Store(false)
	ctx, cancel := context.WithTimeout(rq.ctx, MaxRestoreTime)
	defer cancel()
	rq.ctx = ctx
	err = a.Snapshots.Restore(ctx, body)
	if body.err != nil { // says more than what became of it on the way
		err = body.err
	}
	if err != nil {
		return err
	}
	a.Logger.Warn("the cluster's state was replaced by a snapshot", "request_id", rq.id)
	return rq.nothing()
}

// lateHeader begins the answer with the first byte, so that an error before it is still a problem document.
type lateHeader struct {
	rq    *request
	begun bool
}

func (w *lateHeader) Write(b []byte) (int, error) {
	if !w.begun {
		w.begun = true
		w.rq.w.Header().Set("Content-Type", bytesType)
		w.rq.w.Header().Set("Content-Disposition", `attachment; filename="muster.snapshot"`)
	}
	return w.rq.w.Write(b)
}
