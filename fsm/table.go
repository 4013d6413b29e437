package fsm

import (
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"iter"

	"github.com/google/btree"
	"github.com/musterhq/muster/job"
)

// btreeDegree is the half width of the trees' nodes, the usual one of google/btree.
const btreeDegree = 32

// table keeps rows by key in a copy-on-write B-tree. A row that is in one is never changed; a change is a copy. One
// goroutine writes; frozen answers a table that stays as it is, for any number of readers.
type table[K, R any] struct {
	tree  *btree.BTreeG[entry[K, R]]
	keyOf func(*R) K
}

type entry[K, R any] struct {
	key K
	row *R
}

func newTable[K, R any](less func(a, b K) bool, keyOf func(*R) K) table[K, R] {
	return table[K, R]{keyOf: keyOf, tree: btree.NewG(btreeDegree, func(a, b entry[K, R]) bool { return less(a.key, b.key) })}
}

// get answers a row, or nil.
func (t *table[K, R]) get(k K) *R {
	e, _ := t.tree.Get(entry[K, R]{key: k})
	return e.row
}

// put writes a row, which nobody may change from then on.
func (t *table[K, R]) put(row *R) { t.tree.ReplaceOrInsert(entry[K, R]{t.keyOf(row), row}) }

// del deletes a row.
func (t *table[K, R]) del(row *R) { t.tree.Delete(entry[K, R]{key: t.keyOf(row)}) }

// ascend walks rows upward from a key, inclusive. The table may not be written to meanwhile.
func (t *table[K, R]) ascend(from K) iter.Seq[*R] {
	return func(yield func(*R) bool) {
		t.tree.AscendGreaterOrEqual(entry[K, R]{key: from}, func(e entry[K, R]) bool { return yield(e.row) })
	}
}

// descend walks rows downward from a key, inclusive.
func (t *table[K, R]) descend(from K) iter.Seq[*R] {
	return func(yield func(*R) bool) {
		t.tree.DescendLessOrEqual(entry[K, R]{key: from}, func(e entry[K, R]) bool { return yield(e.row) })
	}
}

// all walks all rows in the order of their keys.
func (t *table[K, R]) all() iter.Seq[*R] {
	return func(yield func(*R) bool) {
		t.tree.Ascend(func(e entry[K, R]) bool { return yield(e.row) })
	}
}

func (t *table[K, R]) frozen() table[K, R] { return table[K, R]{t.tree.Clone(), t.keyOf} }

// set is an index: keys without rows, and without pointers for the garbage collector to follow.
type set[K any] struct{ tree *btree.BTreeG[K] }

func newSet[K any](less func(a, b K) bool) set[K] { return set[K]{btree.NewG(btreeDegree, less)} }

func (s *set[K]) add(k K)        { s.tree.ReplaceOrInsert(k) }
func (s *set[K]) remove(k K)     { s.tree.Delete(k) }
func (s *set[K]) frozen() set[K] { return set[K]{s.tree.Clone()} }

func (s *set[K]) ascend(from K) iter.Seq[K] {
	return func(yield func(K) bool) { s.tree.AscendGreaterOrEqual(from, yield) }
}

func (s *set[K]) descend(from K) iter.Seq[K] {
	return func(yield func(K) bool) { s.tree.DescendLessOrEqual(from, yield) }
}

// The keys, and their orders.

type jobName struct{ namespace, name string }

func lessName(a, b jobName) bool {
	return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name)) < 0
}

type versionID struct {
	job     job.JobID
	version uint64
}

func lessVersion(a, b versionID) bool {
	if c := compareID(a.job, b.job); c != 0 {
		return c < 0
	}
	return a.version < b.version
}

type attemptID struct {
	run     job.RunID
	attempt uint32
}

func lessAttempt(a, b attemptID) bool {
	if c := compareID(a.run, b.run); c != 0 {
		return c < 0
	}
	return a.attempt < b.attempt
}

func lessTick(a, b job.TickKey) bool {
	if c := compareID(a.JobID, b.JobID); c != 0 {
		return c < 0
	}
	return a.ScheduledAt < b.ScheduledAt
}

// aged orders ticks by time first.
func lessAged(a, b job.TickKey) bool {
	if a.ScheduledAt != b.ScheduledAt {
		return a.ScheduledAt < b.ScheduledAt
	}
	return compareID(a.JobID, b.JobID) < 0
}

// keyAge orders idempotency keys by their acceptance.
type keyAge struct {
	at   job.Instant
	name jobName
}

func lessKeyAge(a, b keyAge) bool {
	if a.at != b.at {
		return a.at < b.at
	}
	return lessName(a.name, b.name)
}

// groupKey is a run within a group: of a namespace, of a job by its name, or of a root. Groups of names are hashed, so
// that the key has one size and no pointers; whoever walks a group looks at the row to be sure.
type groupKey struct {
	group uint64
	id    job.RunID
}

func lessGroup(a, b groupKey) bool {
	if a.group != b.group {
		return a.group < b.group
	}
	return compareID(a.id, b.id) < 0
}

// seed makes the groups of this process, so that nobody outside can choose names that meet in one. Groups are never
// written anywhere and decide nothing, so replicas need not agree on them.
var seed = maphash.MakeSeed()

func namespaceGroup(namespace string) uint64 { return maphash.String(seed, namespace) }

func jobGroup(namespace, name string) uint64 {
	return maphash.Comparable(seed, jobName{namespace, name})
}

func rootGroup(id job.RunID) uint64 { return maphash.Bytes(seed, id[:]) }

func compareID[ID ~[16]byte](a, b ID) int {
	if c := cmp.Compare(binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(b[:8])); c != 0 {
		return c
	}
	return cmp.Compare(binary.BigEndian.Uint64(a[8:]), binary.BigEndian.Uint64(b[8:]))
}

func lessID[ID ~[16]byte](a, b ID) bool { return compareID(a, b) < 0 }
