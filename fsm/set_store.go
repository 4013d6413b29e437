package fsm

import "github.com/musterhq/muster/job"

// The stores that a cluster may keep its jobs and runs in (S11).
const (
	StoreEmbedded = "embedded" // this state
	StorePostgres = "postgres"
)

// SetStore decides what the cluster's store is (S11). The first one wins: the same again changes nothing, another one is
// Conflict, reason store_setting, and so is Postgres once the embedded store holds something, which would be lost to sight.
// It answers nothing.
type SetStore struct {
	Store string `cbor:"1,keyasint"` // StoreEmbedded or StorePostgres
}

// Kind implements Command.
func (*SetStore) Kind() Kind { return KindSetStore }

// Size implements Command.
func (c *SetStore) Size() int { return 16 + len(c.Store) }

func (c *SetStore) apply(t *tx, _ Meta) Result {
	switch {
	case c.Store != StoreEmbedded && c.Store != StorePostgres:
		return refuse(job.Errorf(job.Invalid, "store", "there is no store %q; it is %s or %s", c.Store, StoreEmbedded, StorePostgres))
	case t.g.Store == c.Store:
		return Result{}
	case t.g.Store != "":
		return refuse(job.Errorf(job.Conflict, "store_setting",
			"this cluster keeps its jobs and runs in its %s store, not in %s; start its nodes as before, or begin a new cluster", t.g.Store, c.Store))
	case c.Store == StorePostgres && t.holdsJobs():
		return refuse(job.Errorf(job.Conflict, "store_setting",
			"this cluster has jobs or runs in its embedded store already, and Postgres would hide them; start its nodes as before, or begin a new cluster"))
	}
	t.g.Store = c.Store
	t.directoryChanged = true
	return Result{}
}

// holdsJobs tells whether there is anything in the embedded store.
func (t *tables) holdsJobs() bool {
	return t.jobs.tree.Len()+t.versions.tree.Len()+t.live.rows.tree.Len()+t.history.rows.tree.Len()+t.ledger.tree.Len()+t.keys.tree.Len() > 0
}

// Store answers what the cluster's store is: StoreEmbedded, StorePostgres, or "" before anybody set it.
func (s *State) Store() string { return s.directory.Load().store }

// Store is State.Store at the view's moment.
func (v *View) Store() string { return v.g.Store }
