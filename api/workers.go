package api

import (
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"slices"
	"strings"

	"github.com/musterhq/muster/job"
)

type inWorkers struct {
	Label  []string   `query:"label,explode" doc:"key=value; repeated, all must match"`
	State  string     `query:"state" enum:"ready,cordoned,draining,gone"`
	Limit  limitParam `query:"limit"`
	Cursor string     `query:"cursor" doc:"next_cursor of the page before"`
}

type inWorker struct {
	Name nameParam `path:"name"`
}

type inNothing struct{}

const workerCursor cursorKind = 'w' // position: the last name

func (a *API) listWorkers(rq *request, in *inWorkers) error {
	limit, err := in.Limit.read("limit", MaxPage)
	if err != nil {
		return err
	}
	labels, err := readLabels("label", in.Label)
	if err != nil {
		return err
	}
	states := []job.WorkerState{job.WorkerReady, job.WorkerCordoned, job.WorkerDraining, job.WorkerGone}
	if in.State != "" && !slices.Contains(states, job.WorkerState(in.State)) {
		return job.InvalidField("state", "%s is not a state of a worker; use ready, cordoned, draining or gone", quote(in.State))
	}
	filters := filterText(labels, in.State)
	after := ""
	if in.Cursor != "" {
		b, err := readCursor(workerCursor, filters, in.Cursor)
		if err != nil {
			return err
		}
		after = string(b)
	}
	workers, err := a.Leader.Workers(rq.ctx)
	if err != nil {
		return err
	}
	workers = slices.DeleteFunc(slices.Clone(workers), func(w job.Worker) bool {
		return w.Name <= after && after != "" || in.State != "" && string(w.State) != in.State || !hasLabels(w.Labels, labels)
	})
	slices.SortFunc(workers, func(x, y job.Worker) int { return strings.Compare(x.Name, y.Name) })
	p := page[job.Worker]{Items: workers[:min(len(workers), limit)]}
	if len(workers) > limit {
		p.NextCursor = makeCursor(workerCursor, filters, []byte(workers[limit-1].Name))
	}
	return rq.json(http.StatusOK, p)
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if h, ok := have[k]; !ok || h != v {
			return false
		}
	}
	return true
}

func (a *API) findWorker(rq *request, in *inWorker) (*job.Worker, error) {
	if err := checkName("name", string(in.Name)); err != nil {
		return nil, err
	}
	return a.Leader.Worker(rq.ctx, string(in.Name))
}

func (a *API) readWorker(rq *request, in *inWorker) error {
	w, err := a.findWorker(rq, in)
	if err != nil {
		return err
	}
	return rq.json(http.StatusOK, w)
}

func (a *API) cordonWorker(rq *request, in *inWorker) error {
	return a.flagWorker(rq, in, job.WorkerCordoned)
}

func (a *API) uncordonWorker(rq *request, in *inWorker) error {
	return a.flagWorker(rq, in, job.WorkerReady)
}

func (a *API) drainWorker(rq *request, in *inWorker) error {
	return a.flagWorker(rq, in, job.WorkerDraining)
}

// flagWorker sets the flag of a worker that is known, so that a misspelt name does not leave a flag behind for ever.
func (a *API) flagWorker(rq *request, in *inWorker, state job.WorkerState) error {
	w, err := a.findWorker(rq, in)
	if err != nil {
		return err
	}
	if err := a.Flags.FlagWorker(rq.ctx, w.Name, state); err != nil {
		return err
	}
	c := *w
	if c.State != job.WorkerGone {
		c.State = state
	}
	return rq.json(http.StatusOK, &c)
}

func (a *API) joinWorker(rq *request, _ *inNothing) error {
	var q JoinRequest
	if err := rq.decode(a, &q); err != nil {
		return err
	}
	if err := checkName("name", q.Name); err != nil {
		return err
	}
	if err := plainText("version", q.Version, 128); err != nil {
		return err
	}
	if len(q.CSR) > 16<<10 {
		return job.InvalidField("csr", "it has %d bytes; %d are allowed", len(q.CSR), 16<<10)
	}
	if q.CSR != "" {
		block, rest := pem.Decode([]byte(q.CSR))
		if block == nil || block.Type != "CERTIFICATE REQUEST" || strings.TrimSpace(string(rest)) != "" {
			return job.InvalidField("csr", "it is not one certificate request in PEM")
		}
		if r, err := x509.ParseCertificateRequest(block.Bytes); err != nil || r.CheckSignature() != nil {
			return job.InvalidField("csr", "the certificate request is broken or not signed with its own key")
		}
	}
	if scheme, token, ok := strings.Cut(rq.r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "bearer") {
		q.Token = token
	}
	answer, err := a.Joiner.Join(rq.ctx, q)
	if err != nil {
		return err
	}
	return rq.json(http.StatusOK, answer)
}
