package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
)

var definitionSQL = statements("definitions.sql")

// PutJob implements storage.Definitions.
func (s *Store) PutJob(ctx context.Context, p storage.PutJob) (*job.Job, error) {
	switch {
	case p.Spec == nil || p.ID.IsZero():
		return nil, job.Errorf(job.Invalid, "document", "a job needs an id and a document")
	case p.Spec.Namespace == "" || p.Spec.Name == "":
		return nil, job.Errorf(job.Invalid, "name", "a namespace and a name are needed")
	}
	document, err := json.Marshal(p.Spec)
	if err != nil {
		return nil, job.AsError(fmt.Errorf("encode the document of job %s: %w", p.Spec.Name, err))
	}
	var j *job.Job
	// Of two that create a job at once the second finds it when it tries again.
	for range 3 {
		err = s.define(ctx, func(ctx context.Context, f *flight) (err error) {
			j, err = putJob(ctx, f, &p, document)
			return err
		})
		if !errors.Is(err, errCreatedMeanwhile) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return j, nil
}

// define is one transaction that changes definitions. What do adds to the flight is sent together with the COMMIT, and edges
// are changed nowhere else: a node that is paused holds no lock on them, for which the leader's moves would wait.
func (s *Store) define(ctx context.Context, do func(ctx context.Context, f *flight) error) error {
	return s.use(ctx, reading, func(ctx context.Context, c *pgx.Conn) error {
		return again(ctx, func() error {
			f := &flight{c: c}
			defer f.end(ctx)
			if err := f.begin(ctx); err != nil {
				return err
			}
			if err := do(ctx, f); err != nil {
				return err
			}
			err := f.land(ctx)
			var pg *pgconn.PgError
			if errors.As(err, &pg) && pg.Code == "23505" {
				if pg.ConstraintName == "jobs_namespace_name_key" {
					return errCreatedMeanwhile
				}
				return job.Errorf(job.Conflict, "id", "the id belongs to another job")
			}
			return err
		})
	})
}

var errCreatedMeanwhile = job.Errorf(job.Conflict, "exists", "the job was created by somebody else at the same time; try again")

func putJob(ctx context.Context, f *flight, p *storage.PutJob, document []byte) (*job.Job, error) {
	d := p.Spec
	if len(d.DependsOn) > 0 {
		if err := f.then(ctx, definitionSQL["lock graph"], nil, []byte(d.Namespace)); err != nil {
			return nil, err
		}
	}
	if err := f.fly(ctx); err != nil {
		return nil, err
	}
	old, err := lockJob(ctx, f.c, d.Namespace, d.Name)
	if err != nil {
		return nil, err
	}
	if old != nil {
		var current []byte
		if err := f.c.QueryRow(ctx, definitionSQL["document"], old.ID[:], old.Version).Scan(&current); err != nil {
			return nil, err
		}
		if string(current) == string(document) && repeats(p, old) {
			old.Spec, err = decodeDocument(current)
			return old, err
		}
	}
	switch {
	case old != nil && p.NewOnly:
		return nil, job.Errorf(job.Conflict, "exists", "the job %q exists already", d.Name)
	case old == nil && p.IfVersion != 0:
		return nil, job.Errorf(job.Conflict, "version", "the job %q does not exist", d.Name)
	case old != nil && p.IfVersion != 0 && p.IfVersion != old.Version:
		return nil, job.Errorf(job.Conflict, "version", "the job %q is at version %d, not %d", d.Name, old.Version, p.IfVersion)
	}
	if len(d.DependsOn) > 0 {
		if err := checkEdges(ctx, f.c, d); err != nil {
			return nil, err
		}
	}
	next := &job.Job{ID: p.ID, Namespace: d.Namespace, Name: d.Name, Version: 1, CreatedAt: p.At, UpdatedAt: p.At}
	if old != nil {
		next.ID, next.Version, next.CreatedAt = old.ID, old.Version+1, old.CreatedAt
	}
	if err := writeJob(ctx, f, next, d, document, old == nil); err != nil {
		return nil, err
	}
	next.Spec, err = decodeDocument(document)
	return next, err
}

// repeats tells whether the guards allow to answer the job as it is, its document being the one given: they hold, or
// they held before this very change was made the first time.
func repeats(p *storage.PutJob, old *job.Job) bool {
	if p.NewOnly {
		return old.ID == p.ID
	}
	return p.IfVersion == 0 || p.IfVersion == old.Version || p.IfVersion+1 == old.Version
}

// lockJob answers a job without its document, which nobody else changes before the transaction ends, or nil.
func lockJob(ctx context.Context, c *pgx.Conn, namespace, name string) (*job.Job, error) {
	j := &job.Job{Namespace: namespace, Name: name}
	var created, updated time.Time
	err := c.QueryRow(ctx, definitionSQL["lock job"], namespace, name).Scan((*[16]byte)(&j.ID), &j.Version, &created, &updated)
	j.CreatedAt, j.UpdatedAt = job.At(created), job.At(updated)
	return one(j, err)
}

// checkEdges refuses edges to what is not there and edges that close a cycle. It is called under the lock of the graph,
// or two changes could close one together.
func checkEdges(ctx context.Context, c *pgx.Conn, d *job.Document) error {
	wanted := make([]string, len(d.DependsOn))
	for i, e := range d.DependsOn {
		wanted[i] = e.Job
	}
	rows, err := c.Query(ctx, definitionSQL["upstreams there"], d.Namespace, wanted)
	there, err := collect(rows, err, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for i, e := range d.DependsOn {
		if e.Job != d.Name && !slices.Contains(there, e.Job) {
			return job.UnknownUpstream(i, e, d.Namespace)
		}
	}
	rows, err = c.Query(ctx, definitionSQL["edges above"], d.Namespace, wanted)
	if err != nil {
		return err
	}
	upstreams := map[string][]string{}
	var of, upstream string
	_, err = pgx.ForEachRow(rows, []any{&of, &upstream}, func() error {
		upstreams[of] = append(upstreams[of], upstream)
		return nil
	})
	if err != nil {
		return err
	}
	if cycle := job.FindCycle(d.Name, d.DependsOn, func(name string) []string { return upstreams[name] }); cycle != nil {
		return job.Cyclic(cycle)
	}
	return nil
}

// writeJob adds to the flight what stores a job. Edges that stay keep how they stand.
func writeJob(ctx context.Context, f *flight, j *job.Job, d *job.Document, document []byte, create bool) error {
	var labels []byte
	if len(d.Labels) > 0 {
		labels, _ = json.Marshal(d.Labels) // a map of texts always can be
	}
	edges := [][]byte{j.ID[:], []byte(j.Namespace),
		arrayArg(pgtype.TextOID, d.DependsOn, func(b []byte, e *job.Edge) ([]byte, bool) { return append(b, e.Job...), true }),
		arrayArg(pgtype.Int2OID, d.DependsOn, func(b []byte, e *job.Edge) ([]byte, bool) { return putInt2(b, onEnd[e.On]), true })}
	var err error
	if create {
		err = f.then(ctx, definitionSQL["create job"], nil, j.ID[:], []byte(j.Namespace), []byte(j.Name), instantArg(j.CreatedAt), labels)
	} else {
		err = f.then(ctx, definitionSQL["change job"], nil, j.ID[:], int8Arg(int64(j.Version)), instantArg(j.UpdatedAt), labels)
	}
	if err == nil {
		err = f.then(ctx, definitionSQL["create version"], nil, j.ID[:], int8Arg(int64(j.Version)), instantArg(j.UpdatedAt), document)
	}
	// Edges come last, after what takes long to be sent.
	if err == nil && !create {
		err = f.then(ctx, definitionSQL["drop edges"], nil, edges...)
	}
	if err == nil && len(d.DependsOn) > 0 {
		err = f.then(ctx, definitionSQL["create edges"], nil, edges...)
	}
	return err
}

// DeleteJob implements storage.Definitions.
func (s *Store) DeleteJob(ctx context.Context, namespace, name string, ifVersion uint64) (*job.Job, error) {
	var gone *job.Job
	err := s.define(ctx, func(ctx context.Context, f *flight) error {
		if err := f.then(ctx, definitionSQL["lock graph"], nil, []byte(namespace)); err != nil {
			return err
		}
		if err := f.fly(ctx); err != nil {
			return err
		}
		old, err := lockJob(ctx, f.c, namespace, name)
		switch {
		case err != nil:
			return err
		case old == nil:
			return noJob(namespace, name)
		case ifVersion != 0 && ifVersion != old.Version:
			return job.Errorf(job.Conflict, "version", "the job %q is at version %d, not %d", name, old.Version, ifVersion)
		}
		if err := checkDependents(ctx, f.c, old); err != nil {
			return err
		}
		var document []byte
		if err := f.c.QueryRow(ctx, definitionSQL["document"], old.ID[:], old.Version).Scan(&document); err != nil {
			return err
		}
		if old.Spec, err = decodeDocument(document); err != nil {
			return err
		}
		gone = old
		no := arrayHead(nil, pgtype.TextOID, 0)
		err = f.then(ctx, definitionSQL["drop edges"], nil, old.ID[:], []byte(namespace), no, arrayHead(nil, pgtype.Int2OID, 0))
		if err == nil {
			err = f.then(ctx, definitionSQL["bury versions"], nil, old.ID[:])
		}
		if err == nil {
			err = f.then(ctx, definitionSQL["delete job"], nil, old.ID[:])
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return gone, nil
}

func checkDependents(ctx context.Context, c *pgx.Conn, j *job.Job) error {
	rows, err := c.Query(ctx, definitionSQL["dependents"], j.ID[:], job.MaxNamedDependents)
	if err != nil {
		return err
	}
	var names []string
	var name string
	var all int
	_, err = pgx.ForEachRow(rows, []any{&name, &all}, func() error { names = append(names, name); return nil })
	if err == nil && all > 0 {
		return job.HasDependents(j.Name, names, all)
	}
	return err
}

func noJob(namespace, name string) error {
	return job.Errorf(job.NotFound, "job", "there is no job %q in namespace %q", name, namespace)
}

// Job implements storage.Definitions.
func (s *Store) Job(ctx context.Context, namespace, name string) (*job.Job, error) {
	n := jobName{namespace, name}
	j, err := s.jobs.do(ctx, n, func(ctx context.Context) (*job.Job, error) {
		known := s.specs.get(n)
		list, err := read(ctx, s, scanJobBut(namespace, known, func(j *job.Job) { s.specs.put(n, j) }), definitionSQL["job"], namespace, name, known.job[:], int64(known.version))
		switch {
		case err != nil:
			return nil, err
		case len(list) == 0:
			return nil, noJob(namespace, name)
		}
		return list[0], nil
	})
	if err != nil {
		return nil, err
	}
	own := *j // the document is nobody's to change
	return &own, nil
}

type jobName struct{ namespace, name string }

// Jobs implements storage.Definitions.
func (s *Store) Jobs(ctx context.Context, q storage.JobQuery) (page storage.JobPage, err error) {
	limit := bound(q.Limit, 1000)
	page.Jobs, err = read(ctx, s, scanJob(q.Namespace), definitionSQL["jobs"], q.Namespace, q.After, labelsArg(q.Labels), limit+1)
	if len(page.Jobs) > limit {
		page.Jobs = page.Jobs[:limit]
		page.Next = page.Jobs[limit-1].Name
	}
	return page, err
}

// Heads implements storage.Moves.
func (s *Store) Heads(ctx context.Context, afterNamespace, afterName string, limit int) ([]job.JobHead, error) {
	return read(ctx, s, func(row pgx.CollectableRow) (h job.JobHead, err error) {
		var from *time.Time
		err = row.Scan((*[16]byte)(&h.ID), &h.Namespace, &h.Name, &h.Version, &from)
		h.From = instantOf(from)
		return h, err
	}, definitionSQL["heads"], afterNamespace, afterName, max(0, limit))
}

// Version implements storage.Definitions.
func (s *Store) Version(ctx context.Context, id job.JobID, version uint64) (*job.Version, error) {
	list, err := read(ctx, s, scanVersion, definitionSQL["version"], id[:], int64(version))
	switch {
	case err != nil:
		return nil, err
	case len(list) == 0:
		return nil, job.Errorf(job.NotFound, "version", "there is no version %d of job %s", version, id)
	}
	return list[0], nil
}

// Versions implements storage.Definitions.
func (s *Store) Versions(ctx context.Context, namespace, name string, limit int) ([]*job.Version, error) {
	list, err := read(ctx, s, scanVersion, definitionSQL["versions"], namespace, name, bound(limit, 1000))
	if err == nil && len(list) == 0 {
		return nil, noJob(namespace, name)
	}
	return list, err
}

// Dependencies implements storage.Graphs.
func (s *Store) Dependencies(ctx context.Context, namespace, name string) ([]job.Dependency, error) {
	return read(ctx, s, func(row pgx.CollectableRow) (d job.Dependency, err error) {
		var on uint8
		var by *[16]byte
		var at *time.Time
		err = row.Scan(&d.Job, &d.Upstream, &on, &by, &at, &d.Coalesced)
		d.On, d.SatisfiedAt = edgeOn[on], instantOf(at)
		if by != nil {
			d.SatisfiedBy = *by
		}
		return d, err
	}, definitionSQL["dependencies"], namespace, name)
}

// StartVersion implements storage.Definitions.
func (s *Store) StartVersion(ctx context.Context, id job.JobID, version uint64, from job.Instant) error {
	return s.transact(ctx, reading, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, definitionSQL["start version"], id[:], int64(version), from.Time())
		return err
	})
}

func scanJob(namespace string) pgx.RowToFunc[*job.Job] {
	return scanJobBut(namespace, knownSpec{}, func(*job.Job) {})
}

// scanJobBut scans rows that lack the document where that is the known one. It calls learn with jobs whose documents are
// small enough to be kept.
func scanJobBut(namespace string, known knownSpec, learn func(*job.Job)) pgx.RowToFunc[*job.Job] {
	return func(row pgx.CollectableRow) (*job.Job, error) {
		j := &job.Job{Namespace: namespace}
		var created, updated time.Time
		var document []byte
		err := row.Scan((*[16]byte)(&j.ID), &j.Name, &j.Version, &created, &updated, &document)
		if err != nil {
			return nil, err
		}
		j.CreatedAt, j.UpdatedAt = job.At(created), job.At(updated)
		if document == nil && known.spec != nil && j.ID == known.job && j.Version == known.version {
			j.Spec = known.spec
			return j, nil
		}
		if j.Spec, err = decodeDocument(document); err == nil && len(document) <= maxSpecBytes {
			learn(j)
		}
		return j, err
	}
}

func scanVersion(row pgx.CollectableRow) (*job.Version, error) {
	v := &job.Version{}
	var from, created time.Time
	var document []byte
	err := row.Scan((*[16]byte)(&v.JobID), &v.Version, &from, &created, &document)
	if err != nil {
		return nil, err
	}
	v.From, v.CreatedAt = job.At(from), job.At(created)
	v.Spec, err = decodeDocument(document)
	return v, err
}

// decodeDocument reads what PutJob wrote: it was parsed, filled in and checked before.
func decodeDocument(text []byte) (*job.Document, error) {
	d := &job.Document{}
	if err := json.Unmarshal(text, d); err != nil {
		return nil, fmt.Errorf("decode a stored document: %w", err)
	}
	return d, nil
}

// labelsArg is labels as a parameter of type jsonb; none are NULL.
func labelsArg(labels map[string]string) any {
	if len(labels) == 0 {
		return nil
	}
	text, _ := json.Marshal(labels) // a map of texts always can be
	return string(text)
}
