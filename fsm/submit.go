package fsm

import (
	"bytes"
	"strings"
	"time"

	"github.com/musterhq/muster/job"
)

// KeyLife is how long an idempotency key is remembered, from acceptance (S9, D6).
const KeyLife = 24 * time.Hour

// Submit stores births in the embedded store. It answers []job.Receipt, one for each run in order: see storage.Births.
// Without room for the new ones it is Exhausted as a whole, reason store_full, and stores none.
//
// Version 2 is for runs that nodes which read no more than version 1 cannot read or carry out: see PutJob.
type Submit struct {
	Runs []*job.Run `cbor:"1,keyasint"`
}

// Kind implements Command.
func (*Submit) Kind() Kind { return KindSubmit }

func (c *Submit) version() uint8 {
	for _, r := range c.Runs {
		if r == nil {
			continue
		}
		if r.Item != 0 || r.Items != 0 || !r.ParentID.IsZero() || r.Depth != 0 || !r.ReusedFrom.IsZero() || len(r.Upstreams) > 0 || r.LaneKey().OnLeader() {
			return 2
		}
	}
	return 1
}

// Size implements Command.
func (c *Submit) Size() int {
	n := 16
	for _, r := range c.Runs {
		n += wireSize(r)
	}
	return n
}

func (c *Submit) apply(t *tx, m Meta) Result {
	receipts := make([]job.Receipt, len(c.Runs))
	need := int64(0)
	for i, r := range c.Runs {
		if receipts[i].Err = validBirth(r); receipts[i].Err == nil && t.known(r, m) == nil {
			need += runSize(r)
		}
	}
	if need > 0 {
		if e := t.full(need); e != nil {
			return refuse(e)
		}
	}
	for i, r := range c.Runs {
		if receipts[i].Err == nil {
			receipts[i] = t.birth(r, m)
		}
	}
	return Result{Value: receipts}
}

func validBirth(r *job.Run) error {
	switch {
	case r == nil || r.ID.IsZero():
		return job.Errorf(job.Invalid, "id", "a run needs an id")
	case r.Namespace == "" || strings.ContainsRune(r.Namespace, 0) || strings.ContainsRune(r.Job, 0):
		return job.Errorf(job.Invalid, "namespace", "a run needs a namespace, and names hold no zero bytes")
	case r.State < job.Waiting || r.State > job.Skipped:
		return job.Errorf(job.Invalid, "state", "a run cannot be born in state %d", r.State)
	}
	return nil
}

// full refuses births for which there is no room. Moves are always taken, so a store that is full can empty itself; the
// second bound is for a history that nobody prunes.
func (t *tx) full(need int64) *job.Error {
	l := t.g.Limits.filled()
	if t.g.LiveBytes+need > l.MaxLiveBytes {
		return job.Errorf(job.Exhausted, "store_full", "the store holds %d bytes of runs that have not ended; %d are allowed", t.g.LiveBytes, l.MaxLiveBytes)
	}
	if t.g.HistoryBytes > 2*l.MaxHistoryBytes {
		return job.Errorf(job.Exhausted, "store_full", "the store holds %d bytes of history; %d are allowed", t.g.HistoryBytes, l.MaxHistoryBytes)
	}
	return nil
}

// known answers the receipt of a run whose id or key was seen before, or nil (S10).
func (t *tx) known(r *job.Run, m Meta) *job.Receipt {
	if old := t.run(r.ID); old != nil {
		return &job.Receipt{Run: old, Existing: true}
	}
	if r.Key == "" {
		return nil
	}
	k := t.keys.get(jobName{r.Namespace, r.Key})
	switch {
	case k == nil || k.AcceptedAt.Add(KeyLife) <= m.At:
		return nil
	case !bytes.Equal(k.BodyHash, r.BodyHash):
		return &job.Receipt{Err: job.Errorf(job.Conflict, "key_conflict", "the idempotency key was used with another body")}
	}
	if old := t.run(k.RunID); old != nil {
		return &job.Receipt{Run: old, Existing: true}
	}
	return &job.Receipt{Run: k.Pruned, Existing: true}
}

func (t *tx) birth(r *job.Run, m Meta) job.Receipt {
	if known := t.known(r, m); known != nil {
		return *known
	}
	if r.Key != "" {
		if e := t.remember(r, m); e != nil {
			return job.Receipt{Err: e}
		}
	}
	r.Home = job.HomeQuorum
	t.names.run(r)
	if r.State.Terminal() {
		t.addHistory(r)
	} else {
		t.addLive(r)
	}
	return job.Receipt{Run: r}
}

// remember keeps a run's idempotency key. Keys are never evicted early, so when there is no room the birth is refused.
func (t *tx) remember(r *job.Run, m Meta) *job.Error {
	name := jobName{r.Namespace, r.Key}
	k := &keyRow{Namespace: r.Namespace, Key: r.Key, RunID: r.ID, BodyHash: r.BodyHash, AcceptedAt: m.At}
	expired := t.keys.get(name)
	size := keySize(k)
	if expired != nil {
		size -= keySize(expired)
	}
	if t.g.KeyBytes+size > t.g.Limits.filled().MaxKeyBytes {
		return job.Errorf(job.Exhausted, "keys_full", "idempotency keys take %d bytes; no more fit until some are older than %s", t.g.KeyBytes, KeyLife)
	}
	t.putKey(k)
	return nil
}
