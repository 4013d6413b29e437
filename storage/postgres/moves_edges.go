package postgres

import (
	"context"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/musterhq/muster/job"
)

// dueEdges are what moves did to edges between jobs: see the statement edges, in moves.sql.
type dueEdges []dueEdge

type dueEdge struct {
	job      job.JobID
	upstream job.JobID // zero: a run of the job itself ended
	on       job.EdgeOn
}

// add takes a row of the statement's.
func (d *dueEdges) add(v [][]byte) {
	e := dueEdge{job: job.JobID(v[0])}
	if v[1] != nil {
		e.upstream, e.on = job.JobID(v[1]), edgeOn[v[2][1]]
	}
	*d = append(*d, e)
}

// tell notes with the moves which jobs may be due because of them.
func (d dueEdges) tell(answers []job.Moved, which []int) {
	if len(d) == 0 {
		return
	}
	own := make(map[job.JobID]bool)
	below := make(map[job.JobID][]dueEdge)
	for _, e := range d {
		if e.upstream.IsZero() {
			own[e.job] = true
		} else {
			below[e.upstream] = append(below[e.upstream], e)
		}
	}
	for _, i := range which {
		a := &answers[i]
		if !a.Applied || !a.Run.State.Terminal() || !a.Run.IsRoot() {
			continue
		}
		for _, e := range below[a.Run.JobID] {
			if e.on.SatisfiedBy(a.Run.State) {
				a.Due = append(a.Due, e.job)
			}
		}
		if own[a.Run.JobID] {
			a.Due = append(a.Due, a.Run.JobID)
		}
	}
}

// onEnd is job_dependencies.on_end, and edgeOn what it stands for.
var (
	onEnd  = map[job.EdgeOn]uint8{"": 1, job.OnSuccess: 1, job.OnFailure: 2, job.OnDone: 3}
	edgeOn = [...]job.EdgeOn{1: job.OnSuccess, 2: job.OnFailure, 3: job.OnDone}
)

// satisfy adds to the flight what the ends of root runs, in their order, do to edges.
func satisfy(ctx context.Context, f *flight, ends []*job.Run, due *dueEdges) error {
	if len(ends) == 0 {
		return nil
	}
	order := make([]int, len(ends))
	for i := range order {
		order[i] = i
	}
	return f.then(ctx, movesSQL["satisfy"], func(v [][]byte) error { due.add(v); return nil },
		append(columnArgs(satisfyColumns, ends), orderArg(order))...)
}

var satisfyColumns = columnsNamed("id", "job_id", "state", "finished_at")

// orderArg says of each end where it is in the order of the moves, and where it is among the arguments: from 1.
func orderArg(order []int) []byte {
	at := int64(0)
	return arrayArg(pgtype.Int8OID, order, func(b []byte, n *int) ([]byte, bool) {
		at++
		return putInt8(b, int64(*n)<<32|at), true
	})
}
