package postgres

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/musterhq/muster/job"
)

var fireSQL = func() map[string]string {
	all := statements("fire.sql")
	due := all["may be due"]
	for name, text := range all {
		text = strings.ReplaceAll(text, "{may be due}", due)
		for _, of := range []string{"u", "j"} {
			text = strings.ReplaceAll(text, "{newest of "+of+"}", strings.ReplaceAll(all["newest of"], "{u}", of))
		}
		all[name] = text
	}
	return all
}()

// Bounds of Fire: how many jobs that may be due are read at once, and how many are looked at in one transaction.
const (
	firePage  = 2000
	fireBatch = 500
)

// Fire implements storage.Graphs. Which jobs may be due is read without a lock, which is all that happens when none is; those
// are then looked at again under the locks of their edges, some in each transaction. What was born before a failure is
// answered; the rest is due still.
func (s *Store) Fire(ctx context.Context, epoch job.Epoch, jobs []job.JobID, now job.Instant, limit int) ([]*job.Run, error) {
	all := jobs == nil
	wanted := slices.Clone(jobs)
	slices.SortFunc(wanted, func(x, y job.JobID) int { return bytes.Compare(x[:], y[:]) })
	wanted = slices.Compact(wanted)
	var born []*job.Run
	var after job.JobID
	for len(born) < limit && (all || len(wanted) > 0) {
		part := wanted[:min(firePage, len(wanted))]
		wanted = wanted[len(part):]
		due, err := s.mayBeDue(ctx, epoch, all, after, part)
		if all && len(due) > 0 {
			after = due[len(due)-1]
		}
		last := all && len(due) < firePage
		for err == nil && len(due) > 0 && len(born) < limit {
			some := due[:min(len(due), fireBatch, max(50, limit-len(born)))]
			due = due[len(some):]
			var runs []*job.Run
			runs, err = s.fire(ctx, epoch, some, now, limit-len(born))
			born = append(born, runs...)
		}
		if err != nil && (len(born) == 0 || job.CodeOf(err) == job.Fenced) {
			return nil, err
		}
		if err != nil || last {
			break
		}
	}
	return born, nil
}

// mayBeDue answers, in order, which jobs Fire has to look at: of all of them those after one, or those of a list.
func (s *Store) mayBeDue(ctx context.Context, epoch job.Epoch, all bool, after job.JobID, of []job.JobID) (due []job.JobID, err error) {
	err = s.leaderWrites(ctx, epoch, func(ctx context.Context, f *flight) error {
		due = nil
		take := func(v [][]byte) error { due = append(due, job.JobID(v[0])); return nil }
		if all {
			return f.then(ctx, fireSQL["may_be_due"], take, after[:], int8Arg(firePage))
		}
		return f.then(ctx, fireSQL["may_be_due_of"], take, jobsArg(of))
	})
	slices.SortFunc(due, func(x, y job.JobID) int { return bytes.Compare(x[:], y[:]) })
	return due, err
}

// fire looks at some jobs, in order, in one transaction. When Postgres cannot hold a run of theirs, they are split until it
// is alone, and left out (S12).
func (s *Store) fire(ctx context.Context, epoch job.Epoch, jobs []job.JobID, now job.Instant, limit int) ([]*job.Run, error) {
	var born []*job.Run
	err := s.leaderWrites(ctx, epoch, func(ctx context.Context, f *flight) (err error) {
		born, err = s.fireTogether(ctx, f, jobs, now, limit)
		return err
	})
	switch {
	case err == nil:
		return born, nil
	case job.CodeOf(err) != job.Invalid:
		return nil, err
	case len(jobs) == 1:
		s.unfit.complain(s, versionKey{job: jobs[0]}, err)
		return nil, nil
	}
	born, err = s.fire(ctx, epoch, jobs[:len(jobs)/2], now, limit)
	if err == nil && len(born) < limit {
		var more []*job.Run
		if more, err = s.fire(ctx, epoch, jobs[len(jobs)/2:], now, limit-len(born)); err != nil && len(born) > 0 && job.CodeOf(err) != job.Fenced {
			err = nil // the rest is due still
		}
		born = append(born, more...)
	}
	return born, err
}

// candidate is a job that may be due.
type candidate struct {
	of    job.Job
	live  bool // a root run of it is
	edges []*edgeRow
}

// edgeRow is a row of job_dependencies.
type edgeRow struct {
	job, upstream job.JobID
	job.Dependency
	fresh   bool
	changed bool
}

// key is the version from which the job's run is born.
func (c *candidate) key() versionKey { return versionKey{c.of.ID, c.of.Version} }

// due tells whether all dependencies are satisfied, those that are to be judged if maybe.
func (c *candidate) due(maybe bool) bool {
	for _, e := range c.edges {
		if e.SatisfiedBy.IsZero() && !(maybe && e.fresh) {
			return false
		}
	}
	return !c.live && len(c.edges) > 0 && !c.of.ID.IsZero()
}

func (s *Store) fireTogether(ctx context.Context, f *flight, jobs []job.JobID, now job.Instant, limit int) ([]*job.Run, error) {
	list, err := lockCandidates(ctx, f, jobs)
	if err != nil {
		return nil, err
	}
	if err := s.judge(ctx, f, list); err != nil {
		return nil, err
	}
	var births []*job.Run
	var changed []*edgeRow
	for _, c := range list {
		if c.of.Spec != nil && c.due(false) && len(births) < limit {
			births = append(births, c.birth(now))
		}
		for _, e := range c.edges {
			if e.changed {
				changed = append(changed, e)
			}
		}
	}
	slices.SortFunc(births, func(x, y *job.Run) int { return bytes.Compare(x.ID[:], y.ID[:]) })
	fresh := make(map[job.RunID]bool, len(births))
	if len(births) > 0 {
		err := f.then(ctx, insertSQL, func(v [][]byte) error { fresh[job.RunID(v[0])] = true; return nil }, columnArgs(insertColumns, births)...)
		if err != nil {
			return nil, err
		}
	}
	if len(changed) > 0 {
		if err := f.then(ctx, fireSQL["write_edges"], nil, edgeArgs(changed)...); err != nil {
			return nil, err
		}
	}
	if len(f.steps) > 0 {
		if err := f.fly(ctx); err != nil {
			return nil, err
		}
	}
	births = slices.DeleteFunc(births, func(r *job.Run) bool { return !fresh[r.ID] })
	if s.cfg.Outbox {
		if err := emit(ctx, f, eventBorn, job.At(s.cfg.Now()), births); err != nil {
			return nil, err
		}
	}
	return births, nil
}

// birth is the run of a job that is due. Its dependencies are cleared.
func (c *candidate) birth(now job.Instant) *job.Run {
	slices.SortFunc(c.edges, func(x, y *edgeRow) int { return cmp.Compare(x.Upstream, y.Upstream) })
	by := make([]job.Dependency, len(c.edges))
	for i, e := range c.edges {
		by[i] = e.Dependency
		e.SatisfiedBy, e.SatisfiedAt, e.Coalesced, e.fresh, e.changed = job.RunID{}, 0, 0, false, true
	}
	return job.BirthOfDependencies(&c.of, by, now, job.HomePostgres)
}

// lockCandidates reads jobs and their edges, which are locked before anything else about them is read.
func lockCandidates(ctx context.Context, f *flight, jobs []job.JobID) ([]*candidate, error) {
	list := make([]*candidate, len(jobs))
	byID := make(map[job.JobID]*candidate, len(jobs))
	for i, id := range jobs {
		list[i] = &candidate{}
		byID[id] = list[i]
	}
	err := f.then(ctx, fireSQL["lock_edges"], func(v [][]byte) error {
		e := &edgeRow{job: job.JobID(v[0]), upstream: job.JobID(v[1]), fresh: v[7][0] == 1}
		e.Upstream, e.On, e.Coalesced = string(v[2]), edgeOn[v[3][1]], binary.BigEndian.Uint32(v[6])
		if v[4] != nil {
			e.SatisfiedBy = job.RunID(v[4])
		}
		if v[5] != nil {
			e.SatisfiedAt = takeInstant(v[5])
		}
		c := byID[e.job]
		c.edges = append(c.edges, e)
		return nil
	}, jobsArg(jobs))
	if err != nil {
		return nil, err
	}
	err = f.then(ctx, fireSQL["jobs_due"], func(v [][]byte) error {
		c := byID[job.JobID(v[0])]
		c.of = job.Job{ID: job.JobID(v[0]), Namespace: string(v[1]), Name: string(v[2]), Version: binary.BigEndian.Uint64(v[3])}
		c.live = v[4][0] == 1
		return nil
	}, jobsArg(jobs))
	if err != nil {
		return nil, err
	}
	return list, f.fly(ctx)
}

// judge decides how new edges start, and reads the documents of jobs that are due and are not known yet. While the newest
// run of the upstream is live it decides nothing: the end of that run may be on its way by a move that did not see the edge.
func (s *Store) judge(ctx context.Context, f *flight, list []*candidate) error {
	var unread []*candidate
	byID := make(map[job.JobID]*candidate)
	edges := make(map[[2]job.JobID]*edgeRow)
	var fresh []*edgeRow
	for _, c := range list {
		if c.due(true) {
			if c.of.Spec = s.documents.get(c.key()); c.of.Spec == nil {
				unread, byID[c.of.ID] = append(unread, c), c
			}
		}
		for _, e := range c.edges {
			switch {
			case e.fresh && e.SatisfiedBy.IsZero():
				fresh = append(fresh, e)
				edges[[2]job.JobID{e.job, e.upstream}] = e
			case e.fresh:
				e.fresh, e.changed = false, true
			}
		}
	}
	if len(fresh) > 0 {
		err := f.then(ctx, fireSQL["judge"], func(v [][]byte) error {
			e := edges[[2]job.JobID{job.JobID(v[0]), job.JobID(v[1])}]
			ran, state := v[5][0] == 1, job.State(0)
			if v[2] != nil {
				if state = job.State(v[3][1]); !state.Terminal() {
					return nil
				}
			}
			e.fresh, e.changed = false, true
			if !ran && v[2] != nil && e.On.SatisfiedBy(state) {
				e.SatisfiedBy = job.RunID(v[2])
				if v[4] != nil {
					e.SatisfiedAt = takeInstant(v[4])
				}
			}
			return nil
		},
			arrayArg(pgtype.UUIDOID, fresh, func(b []byte, e **edgeRow) ([]byte, bool) { return append(b, (*e).job[:]...), true }),
			arrayArg(pgtype.UUIDOID, fresh, func(b []byte, e **edgeRow) ([]byte, bool) { return append(b, (*e).upstream[:]...), true }))
		if err != nil {
			return err
		}
	}
	if len(unread) > 0 {
		err := f.then(ctx, fireSQL["documents"], func(v [][]byte) error {
			key, spec := versionKey{job.JobID(v[0]), binary.BigEndian.Uint64(v[1])}, new(job.Document)
			if err := json.Unmarshal(v[2], spec); err != nil {
				s.unfit.complain(s, key, err) // the others go on (S12)
				return nil
			}
			s.documents.put(key, spec)
			byID[key.job].of.Spec = spec
			return nil
		},
			arrayArg(pgtype.UUIDOID, unread, func(b []byte, c **candidate) ([]byte, bool) { return append(b, (*c).of.ID[:]...), true }),
			arrayArg(pgtype.Int8OID, unread, func(b []byte, c **candidate) ([]byte, bool) { return putInt8(b, int64((*c).of.Version)), true }))
		if err != nil {
			return err
		}
	}
	if len(f.steps) == 0 {
		return nil
	}
	return f.fly(ctx)
}

func edgeArgs(edges []*edgeRow) [][]byte {
	type put = func(b []byte, e **edgeRow) ([]byte, bool)
	array := func(oid uint32, p put) []byte { return arrayArg(oid, edges, p) }
	return [][]byte{
		array(pgtype.UUIDOID, func(b []byte, e **edgeRow) ([]byte, bool) { return append(b, (*e).job[:]...), true }),
		array(pgtype.UUIDOID, func(b []byte, e **edgeRow) ([]byte, bool) { return append(b, (*e).upstream[:]...), true }),
		array(pgtype.UUIDOID, func(b []byte, e **edgeRow) ([]byte, bool) {
			return putID(b, (*e).SatisfiedBy)
		}),
		array(pgtype.TimestamptzOID, func(b []byte, e **edgeRow) ([]byte, bool) {
			return putInstant(b, (*e).SatisfiedAt), (*e).SatisfiedAt != 0
		}),
		array(pgtype.Int4OID, func(b []byte, e **edgeRow) ([]byte, bool) { return putInt4(b, (*e).Coalesced), true }),
		array(pgtype.BoolOID, func(b []byte, e **edgeRow) ([]byte, bool) { return putBool(b, (*e).fresh), true }),
	}
}

// putID is NULL for no id.
func putID(b []byte, id job.RunID) ([]byte, bool) {
	if id.IsZero() {
		return b, false
	}
	return append(b, id[:]...), true
}

func jobsArg(ids []job.JobID) []byte {
	return arrayArg(pgtype.UUIDOID, ids, func(b []byte, id *job.JobID) ([]byte, bool) { return append(b, id[:]...), true })
}

// complaints are about versions from which no run can be born: each is said once.
type complaints struct {
	mu   sync.Mutex
	said map[versionKey]bool // guarded by mu
}

func (c *complaints) complain(s *Store, key versionKey, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.said[key] {
		return
	}
	if c.said == nil || len(c.said) >= cachedDocuments {
		c.said = make(map[versionKey]bool)
	}
	c.said[key] = true
	s.cfg.Logger.Error("a job whose dependencies are satisfied has no run: its document cannot be used; put it anew",
		"job_id", key.job.String(), "version", key.version, "err", err)
}
