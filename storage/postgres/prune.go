package postgres

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musterhq/muster/job"
)

var pruneSQL = statements("prune.sql")

const (
	// keptVersions is how many versions of a job are kept, the current one included; older ones stay while live runs need them.
	keptVersions = 20
	// pruneScan is how many rows one transaction of a walk looks at.
	pruneScan = 20_000
	// pruneTime is for how long one Prune begins new steps.
	pruneTime = 3 * time.Second
	// lookAgain is for how long nobody looks when nothing was old, housekeepEvery how often what grows slowly is looked at,
	// and ddlPause for how long nothing is done to partitions when their tables could not be locked: each try holds up
	// everybody for as long as it waits.
	lookAgain      = 30 * time.Second
	housekeepEvery = 10 * time.Minute
	ddlPause       = time.Minute
	// bulky is the size in bytes from which on a partition is not emptied row by row: it goes whole, or not at all.
	bulky = 64 << 20
	// mostKept is how many rows that must stay a partition may have to be dropped: they are moved while everybody waits.
	mostKept = 10_000
)

// pruning is what the leader's janitor remembers from one call to the next. Times are those of the calls' before: it moves
// with the cluster's clock, and so nothing here needs one. Losing it costs a few looks.
type pruning struct {
	mu    sync.Mutex
	epoch job.Epoch

	quietUntil job.Instant // when nothing was old
	housekeep  job.Instant // when that is due
	ddlAfter   job.Instant // partitions may be touched again
	walks      map[string]*walk
}

// walk is how far a partition has been looked through.
type walk struct {
	after job.RunID
	kept  [][16]byte  // of a bulky one: what must stay
	since job.Instant // and the before by which that was judged
}

// Prune implements storage.Prunes. Rows go one by one from the default partition and from partitions that are small, at
// most limit of them; a partition over bulky is left alone until all of it is older than before, and is then dropped
// whole, whatever limit says: history of a busy store is kept for up to a partition's width longer. It answers how many
// rows went, of a whole partition an estimate.
//
// When a look found nothing, the next ones answer 0 without asking Postgres until before has moved by half a minute.
func (s *Store) Prune(ctx context.Context, epoch job.Epoch, before job.Instant, limit int) (int, error) {
	p := &s.pruning
	p.mu.Lock()
	defer p.mu.Unlock()
	if epoch != p.epoch {
		p.epoch, p.quietUntil, p.housekeep, p.ddlAfter, p.walks = epoch, 0, 0, 0, map[string]*walk{}
	}
	if before < p.quietUntil && before >= p.quietUntil.Add(-lookAgain) || limit <= 0 {
		return 0, nil
	}
	r := &round{Store: s, pruning: p, epoch: epoch, before: before, left: limit, began: time.Now()}
	if err := r.run(ctx); err != nil {
		return r.dropped, err
	}
	p.quietUntil = 0
	if r.dropped == 0 && !r.unfinished {
		p.quietUntil = before.Add(lookAgain)
	}
	return r.dropped, nil
}

// round is one call of Prune.
type round struct {
	*Store
	*pruning
	epoch  job.Epoch
	before job.Instant
	left   int // rows that may still go
	began  time.Time

	dropped    int
	unfinished bool // there is more to look at
}

func (r *round) run(ctx context.Context) error {
	list, err := r.partitions(ctx)
	if err != nil {
		return err
	}
	for _, p := range list {
		if p.parent == "attempts" || !p.isDefault() && p.from >= r.before {
			continue
		}
		if r.left <= 0 || r.late() {
			r.unfinished = true
			break
		}
		if err := r.partition(ctx, &p, list); err != nil {
			return err
		}
	}
	r.makePartitions(ctx, list)
	return r.housekeeping(ctx)
}

// late tells whether no new step should begin: soon after something was dropped, and in any case in the end.
func (r *round) late() bool {
	spent := time.Since(r.began)
	return spent > pruneTime || r.dropped > 0 && spent > pruneTime/3
}

// partition prunes one partition.
func (r *round) partition(ctx context.Context, p *partition, all []partition) error {
	over := !p.isDefault() && p.to != 0 && p.to <= r.before // all of it was born, or due, before that
	large := !p.isDefault() && p.to != 0 && p.size > r.bulky()
	switch {
	case large && !over:
		return nil
	case large && p.parent == "runs":
		done, err := r.findKept(ctx, p)
		if err != nil || !done {
			r.unfinished = r.unfinished || !done
			return err
		}
	case !large:
		n, err := r.rows(ctx, p)
		if err != nil || n > 0 || !over {
			return err
		}
		if w := r.walks[p.name]; w != nil {
			return nil // it was not looked through to its end
		}
	}
	if over {
		return r.drop(ctx, p, all, large)
	}
	return nil
}

// bulky is a constant but for tests.
func (r *round) bulky() int64 {
	if r.Store.bulkySize != nil {
		return *r.Store.bulkySize
	}
	return bulky
}

// rows drops old rows of a partition one by one, and answers how many.
func (r *round) rows(ctx context.Context, p *partition) (dropped int, err error) {
	for r.left > 0 {
		n, more, err := 0, false, error(nil)
		if p.parent == "ticks" {
			n, err = r.ticks(ctx, p)
			more = n > 0
		} else {
			n, more, err = r.runs(ctx, p)
		}
		if err != nil {
			return dropped, err
		}
		dropped, r.dropped, r.left = dropped+n, r.dropped+n, r.left-n
		if !more {
			return dropped, nil
		}
		if r.late() {
			r.unfinished = true
			return dropped, nil
		}
	}
	r.unfinished = true
	return dropped, nil
}

func (r *round) ticks(ctx context.Context, p *partition) (n int, err error) {
	err = r.fenced(ctx, r.epoch, func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, p.statement("old ticks"), r.before.Time(), r.left).Scan(&n)
	})
	return n, err
}

// runs makes one step of the walk through a partition, which begins anew when it came to the end: runs are there by id,
// that is by birth, and some end long after it.
func (r *round) runs(ctx context.Context, p *partition) (n int, more bool, err error) {
	w := r.walks[p.name]
	if w == nil {
		w = &walk{}
	}
	cut := firstFrom(r.before) // what was born after it has ended after it
	if bytes.Compare(w.after[:], cut[:]) >= 0 {
		w.after = job.RunID{}
	}
	next := w.after
	err = r.fenced(ctx, r.epoch, func(ctx context.Context, tx pgx.Tx) error {
		to, end := cut, true
		var edge [16]byte
		switch found, err := one(&edge, tx.QueryRow(ctx, p.statement("edge"), w.after[:], cut[:], pruneScan).Scan(&edge)); {
		case err != nil:
			return err
		case found != nil:
			to, end = edge, false
		}
		var last *[16]byte
		err := tx.QueryRow(ctx, p.statement("old runs"), w.after[:], to[:], r.before.Time(), r.left).Scan(&n, &last)
		if err != nil {
			return err
		}
		switch {
		case n == r.left: // there may be more in this step
			next, more = *last, true
		case end:
			next, more = job.RunID{}, false
		default:
			next, more = idBefore(to), true
		}
		return nil
	})
	if err != nil {
		return 0, false, err
	}
	w.after = next
	r.walks[p.name] = w
	if next.IsZero() {
		delete(r.walks, p.name)
	}
	return n, more, nil
}

// idBefore is the id before an id.
func idBefore(id job.RunID) job.RunID {
	for i := len(id) - 1; i >= 0; i-- {
		id[i]--
		if id[i] != 0xff {
			break
		}
	}
	return id
}

// findKept walks through a partition that is to be dropped whole and collects what must stay, and tells whether it is
// through. What ends while it walks was live when it was met, or is met later. The partition is older than history:
// nothing is born there but ticks that are caught up with, and those are live until their runs end.
func (r *round) findKept(ctx context.Context, p *partition) (done bool, err error) {
	w := r.walks[p.name]
	if w == nil || r.before < w.since {
		w = &walk{since: r.before}
		r.walks[p.name] = w
	}
	for !r.late() {
		var n int
		var last *[16]byte
		var kept [][16]byte
		err := r.use(ctx, leading, func(ctx context.Context, c *pgx.Conn) error {
			return c.QueryRow(ctx, p.statement("kept runs"), w.after[:], w.since.Time(), pruneScan).Scan(&n, &last, &kept)
		})
		if err != nil {
			return false, err
		}
		if n == 0 {
			return true, nil
		}
		w.after, w.kept = *last, append(w.kept, kept...)
		if len(w.kept) > mostKept {
			w.kept = w.kept[:mostKept+1] // it stays: see drop
			return true, nil
		}
	}
	return false, nil
}

// housekeeping is for what grows slowly.
func (r *round) housekeeping(ctx context.Context) error {
	if r.before < r.housekeep && r.before >= r.housekeep.Add(-housekeepEvery) {
		return nil
	}
	err := r.fenced(ctx, r.epoch, func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, pruneSQL["old keys"], r.cfg.Now().Add(-keyLife), pruneScan)
		if err != nil {
			return err
		}
		r.unfinished = r.unfinished || tag.RowsAffected() == pruneScan
		if _, err = tx.Exec(ctx, pruneSQL["versions forgotten"]); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, pruneSQL["versions superseded"], keptVersions)
		return err
	})
	if err == nil && !r.unfinished {
		r.housekeep = r.before.Add(housekeepEvery)
	}
	return err
}

// statement is one of prune.sql for this partition.
func (p *partition) statement(name string) string {
	return strings.ReplaceAll(pruneSQL[name], "{table}", p.table())
}
