package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/musterhq/muster/job"
)

var birthsSQL = statements("births.sql")

// keyLife is how long an idempotency key is remembered, from acceptance (S9, D6).
const keyLife = 24 * time.Hour

// Submit implements storage.Births.
func (s *Store) Submit(ctx context.Context, runs []*job.Run) ([]job.Receipt, error) {
	return s.births.do(ctx, runs)
}

func birthWeight(r **job.Run) int {
	if *r == nil {
		return 0
	}
	return 512 + len((*r).Payload) + len((*r).Spec) + len((*r).Key) + len((*r).Result) + len((*r).Error)
}

// writeBirths stores what several callers submitted. Runs of one id, or of one key, go one after the other: the first
// decides what the others are answered.
func (s *Store) writeBirths(runs []*job.Run) []job.Receipt {
	receipts := make([]job.Receipt, len(runs))
	open := make([]int, 0, len(runs))
	for i, r := range runs {
		if receipts[i].Err = validBirth(r); receipts[i].Err == nil {
			r.Home = job.HomePostgres
			open = append(open, i)
		}
	}
	for len(open) > 0 {
		b := &brood{store: s, runs: runs, receipts: receipts, owners: map[keyName]keyOwner{}}
		first, later := b.firsts(open)
		s.bear(b, first)
		open = b.settle(later)
	}
	return receipts
}

func validBirth(r *job.Run) error {
	switch {
	case r == nil || r.ID.IsZero():
		return job.Errorf(job.Invalid, "id", "a run needs an id")
	case r.Namespace == "":
		return job.Errorf(job.Invalid, "namespace", "a run needs a namespace")
	case r.State < job.Waiting || r.State > job.Skipped:
		return job.Errorf(job.Invalid, "state", "a run cannot be born in state %d", r.State)
	}
	return nil
}

type keyName struct{ namespace, key string }

func nameOfKey(r *job.Run) keyName { return keyName{r.Namespace, r.Key} }

type keyOwner struct {
	run  job.RunID
	hash []byte
}

// brood is births that are stored together: runs[i] is answered by receipts[i].
type brood struct {
	store    *Store
	runs     []*job.Run
	receipts []job.Receipt
	owners   map[keyName]keyOwner // of the keys that were asked for, those whose owner is known
	leads    []int                // of each of the others the first with the same id or key
}

// firsts splits births into those whose id and key are the first of their kind, and the others, which have a lead each. A
// lead may be among the others itself.
func (b *brood) firsts(open []int) (first, later []int) {
	ids := make(map[job.RunID]int, len(open))
	keys := map[keyName]int{}
	for _, i := range open {
		r := b.runs[i]
		lead, repeated := ids[r.ID]
		if !repeated && r.Key != "" {
			lead, repeated = keys[nameOfKey(r)]
		}
		if repeated {
			later, b.leads = append(later, i), append(b.leads, lead)
		} else {
			first = append(first, i)
		}
		if _, ok := ids[r.ID]; !ok {
			ids[r.ID] = i
		}
		if _, ok := keys[nameOfKey(r)]; !ok && r.Key != "" {
			keys[nameOfKey(r)] = i
		}
	}
	return first, later
}

// settle answers what follows from the answer to the lead, and tells what has to be looked at by itself.
func (b *brood) settle(later []int) (open []int) {
	for n, i := range later {
		r, lead := b.runs[i], b.receipts[b.leads[n]]
		owner, known := b.owners[nameOfKey(r)]
		switch code := job.CodeOf(lead.Err); {
		case lead.Run != nil && lead.Run.ID == r.ID:
			b.receipts[i] = job.Receipt{Run: lead.Run, Existing: true}
		case known && r.ID != b.runs[b.leads[n]].ID && !bytes.Equal(owner.hash, r.BodyHash):
			b.receipts[i].Err = errKeyConflict
		case known && r.ID != b.runs[b.leads[n]].ID && lead.Run != nil && lead.Run.ID == owner.run:
			b.receipts[i] = job.Receipt{Run: lead.Run, Existing: true}
		case code != "" && code != job.Invalid && code != job.Conflict:
			b.receipts[i].Err = lead.Err
		default:
			open = append(open, i)
		}
	}
	return open
}

var errKeyConflict = job.Errorf(job.Conflict, "key_conflict", "the idempotency key was used with another body")

// bear stores births of different ids and keys, and answers each. When Postgres cannot hold one of them, they are split
// until it is alone (S12).
func (s *Store) bear(b *brood, at []int) {
	// In the order of ids: two batches with runs in common wait for each other in one direction only.
	slices.SortFunc(at, func(i, j int) int { return bytes.Compare(b.runs[i].ID[:], b.runs[j].ID[:]) })
	err := s.use(context.Background(), bearing, func(ctx context.Context, c *pgx.Conn) error {
		careful := false
		return again(ctx, func() error {
			err := s.bearTogether(ctx, c, b, at, careful)
			if err != nil && !careful && taken(err) {
				careful = true
				err = s.bearTogether(ctx, c, b, at, careful)
			}
			return err
		})
	})
	switch {
	case err == nil:
	case job.CodeOf(err) == job.Invalid && len(at) > 1:
		s.bear(b, at[:len(at)/2])
		s.bear(b, at[len(at)/2:])
	default:
		b.forget(at)
		for _, i := range at {
			b.receipts[i] = job.Receipt{Err: err}
		}
	}
}

// forget drops what was learnt of owners of keys in a transaction that did not commit.
func (b *brood) forget(at []int) {
	for _, i := range at {
		delete(b.owners, nameOfKey(b.runs[i]))
	}
}

// taken tells whether a row with the same id was there, so that nothing was stored.
func taken(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "23505"
}

// bearTogether stores births in one transaction. Unless careful, it relies on the ids being new and fails as taken if one
// is not.
func (s *Store) bearTogether(ctx context.Context, c *pgx.Conn, b *brood, at []int, careful bool) error {
	keyed := slices.ContainsFunc(at, func(i int) bool { return b.runs[i].Key != "" })
	if !keyed && !careful && !s.cfg.Outbox {
		runs := pick(b.runs, at)
		if err := copyRuns(ctx, c.PgConn(), runs, "", ""); err != nil {
			return unsure(err)
		}
		b.allNew(at)
		return nil
	}

	f := &flight{c: c}
	defer f.end(ctx)
	if err := f.begin(ctx); err != nil {
		return err
	}
	born := at
	if keyed {
		var err error
		if born, err = b.claimKeys(ctx, f, at); err != nil {
			return err
		}
		if len(born) == len(at) && !careful && !s.cfg.Outbox {
			if err := copyRuns(ctx, c.PgConn(), pick(b.runs, at), "", "; "+commitSQL); err != nil {
				return unsure(err)
			}
			f.open = false
			b.allNew(at)
			return nil
		}
	}
	fresh, err := s.insert(ctx, f, pick(b.runs, born), careful)
	if err != nil {
		return err
	}
	// Whoever is not among the new is there since before, or its key's owner is.
	var old []job.RunID
	oldOf := make(map[int]job.RunID)
	for _, i := range at {
		r := b.runs[i]
		if fresh[r.ID] {
			continue
		}
		id := r.ID
		if owner, ok := b.owners[nameOfKey(r)]; ok && r.Key != "" && owner.run != r.ID {
			if !bytes.Equal(owner.hash, r.BodyHash) {
				continue
			}
			id = owner.run
		}
		old, oldOf[i] = append(old, id), id
	}
	found := make(map[job.RunID]*job.Run, len(old))
	if len(old) > 0 {
		if err := f.then(ctx, birthsSQL["runs_by_id"], runInto(found), idsArg(old)); err != nil {
			return err
		}
	}
	if s.cfg.Outbox {
		var events []*job.Run
		for _, i := range born {
			if fresh[b.runs[i].ID] {
				events = append(events, b.runs[i])
			}
		}
		if err := emit(ctx, f, eventBorn, job.At(s.cfg.Now()), events); err != nil {
			return err
		}
	}
	if err := f.land(ctx); err != nil {
		return err
	}
	for _, i := range at {
		r := b.runs[i]
		id, existed := oldOf[i]
		switch {
		case fresh[r.ID]:
			b.receipts[i] = job.Receipt{Run: r}
		case !existed:
			b.receipts[i] = job.Receipt{Err: errKeyConflict}
		case found[id] != nil:
			b.receipts[i] = job.Receipt{Run: found[id], Existing: true}
		default:
			b.receipts[i] = job.Receipt{Err: job.Errorf(job.Conflict, "run_pruned", "this was accepted before as the run %s, which is no longer kept", id)}
		}
	}
	return nil
}

func (b *brood) allNew(at []int) {
	for _, i := range at {
		b.receipts[i] = job.Receipt{Run: b.runs[i]}
	}
}

// claimKeys asks for the keys of births, notes who has them, and answers the births that may be stored: those without a
// key and those whose key is theirs.
func (b *brood) claimKeys(ctx context.Context, f *flight, at []int) (born []int, err error) {
	b.forget(at)
	var claims []*job.Run
	for _, i := range at {
		if b.runs[i].Key != "" {
			claims = append(claims, b.runs[i])
		}
	}
	slices.SortFunc(claims, func(x, y *job.Run) int {
		if x.Namespace != y.Namespace {
			return strings.Compare(x.Namespace, y.Namespace)
		}
		return strings.Compare(x.Key, y.Key)
	})
	now := job.At(b.store.cfg.Now())
	args := append(columnArgs(claimColumns, claims),
		arrayArg(pgtype.ByteaOID, claims, func(p []byte, r **job.Run) ([]byte, bool) { return append(p, (*r).BodyHash...), true }),
		instantArg(now), instantArg(now.Add(-keyLife)))
	err = f.then(ctx, birthsSQL["claim_keys"], func(v [][]byte) error {
		b.owners[keyName{string(v[0]), string(v[1])}] = keyOwner{job.RunID(v[2]), clone(v[3])}
		return nil
	}, args...)
	if err == nil {
		err = f.fly(ctx)
	}
	if err != nil {
		return nil, err
	}
	for _, i := range at {
		r := b.runs[i]
		if owner, ok := b.owners[nameOfKey(r)]; r.Key == "" || ok && owner.run == r.ID {
			born = append(born, i)
		}
	}
	return born, nil
}

var claimColumns = columnsNamed("namespace", "key", "id")

// insert stores runs within a flight's transaction and answers which are new. Unless careful, all of them have to be.
func (s *Store) insert(ctx context.Context, f *flight, runs []*job.Run, careful bool) (fresh map[job.RunID]bool, err error) {
	fresh = make(map[job.RunID]bool, len(runs))
	if len(runs) == 0 {
		return fresh, nil
	}
	if careful {
		err = f.then(ctx, insertSQL, func(v [][]byte) error { fresh[job.RunID(v[0])] = true; return nil }, columnArgs(insertColumns, runs)...)
		if err == nil {
			err = f.fly(ctx)
		}
		return fresh, err
	}
	if len(f.steps) > 0 {
		if err := f.fly(ctx); err != nil {
			return fresh, err
		}
	}
	if err := copyRuns(ctx, f.c.PgConn(), runs, "", ""); err != nil {
		return fresh, err
	}
	for _, r := range runs {
		fresh[r.ID] = true
	}
	return fresh, nil
}

// insertSQL stores runs that may be there already, which COPY cannot, and answers the ids of those that were not.
var insertColumns, insertSQL = func() ([]*column, string) {
	types := map[uint32]string{pgtype.UUIDOID: "uuid", pgtype.TextOID: "text", pgtype.Int2OID: "smallint", pgtype.Int4OID: "integer",
		pgtype.Int8OID: "bigint", pgtype.TimestamptzOID: "timestamptz", pgtype.ByteaOID: "bytea"}
	list := columnsNamed(names(columns, "")...)
	arrays := make([]string, len(list))
	for i, c := range list {
		arrays[i] = fmt.Sprintf("$%d::%s[]", i+1, types[c.oid])
	}
	return list, "INSERT INTO muster.runs (" + columnList + ") SELECT * FROM unnest(" + strings.Join(arrays, ", ") +
		") ON CONFLICT (id) DO NOTHING RETURNING id"
}()

// runInto reads full rows of runs into a map.
func runInto(found map[job.RunID]*job.Run) func([][]byte) error {
	return func(v [][]byte) error {
		r, err := decodeRun(full, v)
		if err == nil {
			found[r.ID] = r
		}
		return err
	}
}

func pick(runs []*job.Run, at []int) []*job.Run {
	list := make([]*job.Run, len(at))
	for n, i := range at {
		list[n] = runs[i]
	}
	return list
}
