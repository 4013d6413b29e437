package backlog

import (
	"context"
	"slices"

	"github.com/musterhq/muster/job"
)

// Step reads some of the lanes that are to be read, and tells how many.
func (l *Loader) Step(ctx context.Context) (int, error) {
	now := l.Now()
	lanes, wants, anew := l.begin(now)
	if len(lanes) == 0 {
		return 0, nil
	}
	until := now.Add(l.Ahead)
	if anew {
		until = now // what became ready; the rest was offered, or comes behind the end
	}
	entries, err := l.Store.Backlog(ctx, wants, until)
	if err == nil {
		err = l.finish(ctx, lanes, wants, entries, until)
	}
	if err != nil {
		l.giveUp(lanes)
	}
	return len(lanes), err
}

// begin takes lanes that are to be read: such that are read on, or such that are read anew.
func (l *Loader) begin(now job.Instant) (lanes []*lane, wants []job.LaneAfter, anew bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	rest := l.wants[:0:0]
	for i, key := range l.wants {
		ln := l.lanes[key]
		if ln == nil {
			continue
		}
		again := ln.loaded && (ln.again != nil || len(ln.due) > 0 && ln.due[0] <= now)
		if len(lanes) == maxLanes || len(lanes) > 0 && again != anew {
			rest = append(rest, l.wants[i])
			continue
		}
		lanes, anew = append(lanes, ln), again
	}
	l.wants = rest
	for _, ln := range lanes {
		w := job.LaneAfter{Lane: ln.key, Order: ln.end.order, After: ln.end.id, Max: max(l.least, l.load/len(lanes))}
		if ln.room > 0 {
			w.Max = min(w.Max, max(l.least, ln.room))
		}
		if anew {
			for len(ln.due) > 0 && ln.due[0] <= now {
				ln.due = ln.due[1:]
			}
			if ln.again == nil {
				start := first
				ln.again = &start
			}
			w.Order, w.After = ln.again.order, ln.again.id
		} else {
			ln.reading = true
		}
		wants = append(wants, w)
	}
	return lanes, wants, anew
}

// giveUp has lanes read later that could not be read.
func (l *Loader) giveUp(lanes []*lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ln := range lanes {
		ln.reading, ln.wanted, ln.aside, ln.missed = false, false, nil, nil
		l.want(ln)
	}
}

// finish offers what was read to the queue and moves the ends.
func (l *Loader) finish(ctx context.Context, lanes []*lane, wants []job.LaneAfter, entries []job.QueueEntry, until job.Instant) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, offered := l.Now(), 0
	for i, ln := range lanes {
		n := 0
		for n < len(entries) && entries[n].Lane == ln.key {
			n++
		}
		mine := entries[:n]
		entries = entries[n:]
		full := n == wants[i].Max // the store may have more
		reached := last
		if full {
			reached = placeOf(&mine[n-1])
		}
		was, anew := *ln, ln.again != nil
		if anew {
			if ln.again = &reached; !full || reached.compare(ln.end) >= 0 {
				ln.again = nil
			}
			mine = upTo(mine, ln.end)
		} else {
			mine = ln.readOn(mine, place{wants[i].Order, wants[i].After}, reached, full)
		}
		k, room, err := l.offer(ctx, ln, mine, now, until)
		if err != nil {
			ln.loaded, ln.whole, ln.end, ln.again = was.loaded, was.whole, was.end, was.again // it was not offered
			return err
		}
		offered += k
		ln.wanted = false
		if ln.again != nil && ln.again.compare(ln.end) < 0 {
			l.want(ln) // there may be more up to the end
		} else {
			ln.again = nil
		}
		ln.most, ln.room = 0, room
		ln.vain = !anew && !ln.whole && ln.end.compare(was.end) <= 0
		l.forget(ln)
	}
	if offered > 0 {
		l.Wake()
	}
	return nil
}

// readOn moves the end of a lane from where the read began to the last that was read, and answers what is to be offered:
// that, and what was pushed meanwhile.
func (ln *lane) readOn(read []job.QueueEntry, from, reached place, full bool) []job.QueueEntry {
	aside, missed := ln.aside, ln.missed
	ln.reading, ln.aside, ln.missed = false, nil, nil
	if ln.loaded && ln.end != from {
		return nil // the queue left entries before it meanwhile: it is full, and the end is there
	}
	if missed != nil && missed.compare(reached) <= 0 {
		// What was pushed meanwhile and could not be kept is in the store, and may be missing from what was read.
		reached, full = missed.before(), true
	}
	ln.loaded, ln.whole, ln.end = true, !full, reached
	return upTo(append(slices.Clone(read), aside...), reached)
}

// upTo answers the entries up to a place.
func upTo(entries []job.QueueEntry, end place) []job.QueueEntry {
	return slices.DeleteFunc(entries, func(e job.QueueEntry) bool { return placeOf(&e).compare(end) > 0 })
}

// offer pushes what the queue does not hold and nobody works on, and tells how many that were and for how many the queue
// has room; 0 if for all.
func (l *Loader) offer(ctx context.Context, ln *lane, entries []job.QueueEntry, now, until job.Instant) (offered, room int, err error) {
	ids := make([]job.RunID, len(entries))
	for i := range entries {
		ids[i] = entries[i].RunID
	}
	held, err := l.Queue.Holds(ctx, ids)
	if err != nil {
		return 0, 0, err
	}
	keep := make([]job.QueueEntry, 0, len(entries))
	for i, e := range entries {
		if held[i] || l.InHand(e.RunID) {
			continue
		}
		if e.ReadyAt > until { // queued, by a node whose clock is ahead: it may start at once
			e.ReadyAt = now
		}
		keep = append(keep, e)
	}
	if len(keep) == 0 {
		return 0, 0, nil
	}
	over, err := l.push(ctx, now, keep)
	if err != nil {
		return 0, 0, err
	}
	over = slices.DeleteFunc(over, func(e job.QueueEntry) bool { return e.Lane != ln.key })
	if len(over) > 0 {
		room = max(1, len(keep)-len(over))
	}
	return len(keep), room, nil
}
