package postgres

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/musterhq/muster/job"
)

var ticksSQL = statements("ticks.sql")

// StoreTicks implements storage.Moves.
func (s *Store) StoreTicks(ctx context.Context, epoch job.Epoch, ticks []job.Tick) ([]*job.Run, error) {
	if len(ticks) == 0 {
		return nil, nil
	}
	var runs []*job.Run
	err := s.leaderWrites(ctx, epoch, func(ctx context.Context, f *flight) (err error) {
		runs, err = s.storeTicks(ctx, f, ticks)
		return err
	})
	if err != nil {
		return nil, err
	}
	return runs, nil
}

func (s *Store) storeTicks(ctx context.Context, f *flight, ticks []job.Tick) ([]*job.Run, error) {
	distinct := distinctTicks(ticks)
	versions := make(map[versionKey]*job.Document)
	if err := s.lockVersions(ctx, f, distinct, versions); err != nil {
		return nil, err
	}
	written := make(map[job.TickKey]bool, len(distinct))
	err := f.then(ctx, ticksSQL["write_ticks"], func(v [][]byte) error {
		written[job.TickKey{JobID: job.JobID(v[0]), ScheduledAt: takeInstant(v[1])}] = true
		return nil
	}, tickArgs(distinct)...)
	if err == nil {
		err = f.fly(ctx)
	}
	if err != nil {
		return nil, err
	}

	// A tick that was in the ledger had its run, which may have been pruned since.
	var births []*job.Run
	for i := range distinct {
		k := &distinct[i]
		if spec := versions[versionKey{k.JobID, k.Version}]; k.Disposition == job.TickRun && written[k.Key()] && spec != nil {
			births = append(births, job.BirthOfTick(k, spec.Namespace, spec.Name, spec, job.HomePostgres))
		}
	}
	slices.SortFunc(births, func(x, y *job.Run) int { return bytes.Compare(x.ID[:], y.ID[:]) })
	fresh, err := s.insert(ctx, f, births, true)
	if err != nil {
		return nil, err
	}
	found := make(map[job.RunID]*job.Run, len(ticks))
	var events []*job.Run
	for _, r := range births {
		if fresh[r.ID] {
			found[r.ID] = r
			events = append(events, r)
		}
	}
	if s.cfg.Outbox {
		if err := emit(ctx, f, eventBorn, job.At(s.cfg.Now()), events); err != nil {
			return nil, err
		}
	}
	ids := make([]job.RunID, len(ticks))
	var old []job.RunID
	for i := range ticks {
		if ticks[i].Disposition != job.TickRun {
			continue
		}
		if ids[i] = ticks[i].RunID(); found[ids[i]] == nil {
			old = append(old, ids[i])
		}
	}
	if len(old) > 0 {
		if err := f.then(ctx, birthsSQL["runs_by_id"], runInto(found), idsArg(old)); err != nil {
			return nil, err
		}
		if err := f.fly(ctx); err != nil {
			return nil, err
		}
	}
	runs := make([]*job.Run, len(ticks))
	for i, id := range ids {
		runs[i] = found[id] // nothing has the zero id
	}
	return runs, nil
}

// distinctTicks are ticks by job and time, of equal ones the first.
func distinctTicks(ticks []job.Tick) []job.Tick {
	sorted := slices.Clone(ticks)
	slices.SortStableFunc(sorted, func(x, y job.Tick) int {
		return cmp.Or(bytes.Compare(x.JobID[:], y.JobID[:]), cmp.Compare(x.ScheduledAt, y.ScheduledAt))
	})
	return slices.CompactFunc(sorted, func(x, y job.Tick) bool { return x.Key() == y.Key() })
}

type versionKey struct {
	job     job.JobID
	version uint64
}

// lockVersions adds to the flight what finds the versions that ticks give birth from, and keeps them until it has landed.
func (s *Store) lockVersions(ctx context.Context, f *flight, ticks []job.Tick, versions map[versionKey]*job.Document) error {
	var keys []versionKey
	seen := make(map[versionKey]bool)
	for i := range ticks { // in the order of jobs
		key := versionKey{ticks[i].JobID, ticks[i].Version}
		if ticks[i].Disposition == job.TickRun && !seen[key] {
			seen[key] = true
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	known := make(map[versionKey]*job.Document, len(keys))
	for _, key := range keys {
		known[key] = s.documents.get(key)
	}
	return f.then(ctx, ticksSQL["lock_versions"], func(v [][]byte) error {
		key := versionKey{job.JobID(v[0]), binary.BigEndian.Uint64(v[1])}
		spec := known[key]
		if spec == nil {
			spec = new(job.Document)
			if err := json.Unmarshal(v[2], spec); err != nil {
				return fmt.Errorf("decode the document of job %s, version %d: %w", key.job, key.version, err)
			}
			s.documents.put(key, spec)
		}
		versions[key] = spec
		return nil
	},
		arrayArg(pgtype.UUIDOID, keys, func(b []byte, k *versionKey) ([]byte, bool) { return append(b, k.job[:]...), true }),
		arrayArg(pgtype.Int8OID, keys, func(b []byte, k *versionKey) ([]byte, bool) { return putInt8(b, int64(k.version)), true }),
		arrayArg(pgtype.BoolOID, keys, func(b []byte, k *versionKey) ([]byte, bool) { return putBool(b, known[*k] == nil), true }))
}

func putBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func tickArgs(ticks []job.Tick) [][]byte {
	type put = func(b []byte, k *job.Tick) ([]byte, bool)
	instant := func(at func(*job.Tick) job.Instant) put {
		return func(b []byte, k *job.Tick) ([]byte, bool) { return putInstant(b, at(k)), at(k) != 0 }
	}
	return [][]byte{
		arrayArg(pgtype.UUIDOID, ticks, func(b []byte, k *job.Tick) ([]byte, bool) { return append(b, k.JobID[:]...), true }),
		arrayArg(pgtype.TimestamptzOID, ticks, func(b []byte, k *job.Tick) ([]byte, bool) { return putInstant(b, k.ScheduledAt), true }),
		arrayArg(pgtype.TimestamptzOID, ticks, instant(func(k *job.Tick) job.Instant { return k.Until })),
		arrayArg(pgtype.Int4OID, ticks, func(b []byte, k *job.Tick) ([]byte, bool) { return putInt4(b, k.Count), k.Count != 0 }),
		arrayArg(pgtype.Int8OID, ticks, func(b []byte, k *job.Tick) ([]byte, bool) { return putInt8(b, int64(k.Version)), true }),
		arrayArg(pgtype.Int2OID, ticks, func(b []byte, k *job.Tick) ([]byte, bool) { return putInt2(b, uint8(k.Disposition)), true }),
		arrayArg(pgtype.Int2OID, ticks, func(b []byte, k *job.Tick) ([]byte, bool) { return putInt2(b, uint8(k.Reason)), k.Reason != 0 }),
		arrayArg(pgtype.TimestamptzOID, ticks, func(b []byte, k *job.Tick) ([]byte, bool) { return putInstant(b, k.DecidedAt), true }),
		arrayArg(pgtype.BoolOID, ticks, func(b []byte, k *job.Tick) ([]byte, bool) { return putBool(b, k.Waiting), true }),
	}
}

// documentCache keeps the documents of versions, which never change. Whether a version is still there it does not know.
type documentCache struct {
	mu  sync.Mutex
	all map[versionKey]*job.Document
}

// cachedDocuments bounds the cache: it is more than ticks of one moment need, and starting again costs one read each.
const cachedDocuments = 4096

func (c *documentCache) get(key versionKey) *job.Document {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all[key]
}

func (c *documentCache) put(key versionKey, spec *job.Document) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil || len(c.all) >= cachedDocuments {
		c.all = make(map[versionKey]*job.Document)
	}
	c.all[key] = spec
}
