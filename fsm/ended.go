package fsm

import (
	"encoding/binary"
	"sync"

	"github.com/musterhq/muster/job"
)

// endedBlock holds the leases that one command ended, packed, because at 10,000 runs a second a minute's worth is 600,000
// of them (L2).
type endedBlock struct {
	Seq uint64      `cbor:"1,keyasint"` // counts the blocks
	At  job.Instant `cbor:"2,keyasint"`
	Ids []byte      `cbor:"3,keyasint"` // run id and fence, endedWidth bytes each
}

const endedWidth = 16 + 8

func appendEnded(b []byte, e job.EndedGrant) []byte {
	return binary.BigEndian.AppendUint64(append(b, e.RunID[:]...), uint64(e.Fence))
}

func (b *endedBlock) each(f func(job.EndedGrant)) {
	for ids := b.Ids; len(ids) >= endedWidth; ids = ids[endedWidth:] {
		f(job.EndedGrant{RunID: job.RunID(ids[:16]), Fence: job.Fence(binary.BigEndian.Uint64(ids[16:]))})
	}
}

// endedIndex finds ended leases by run. It is derived from the blocks and holds exactly what they hold.
type endedIndex struct {
	mu     sync.RWMutex
	byRun  map[job.RunID]endedFence
	blocks []*endedBlock // oldest first; touched by the applying goroutine only
}

type endedFence struct {
	fence job.Fence // the highest
	count int32     // blocks that name the run
}

func newEndedIndex() *endedIndex { return &endedIndex{byRun: map[job.RunID]endedFence{}} }

func (x *endedIndex) add(b *endedBlock) {
	x.blocks = append(x.blocks, b)
	x.mu.Lock()
	defer x.mu.Unlock()
	b.each(func(e job.EndedGrant) {
		f := x.byRun[e.RunID]
		x.byRun[e.RunID] = endedFence{max(f.fence, e.Fence), f.count + 1}
	})
}

// dropOldest forgets the oldest block if it is from before the given time, and answers it.
func (x *endedIndex) dropOldest(before job.Instant) *endedBlock {
	if len(x.blocks) == 0 || x.blocks[0].At >= before {
		return nil
	}
	b := x.blocks[0]
	x.blocks[0] = nil
	x.blocks = x.blocks[1:]
	x.mu.Lock()
	defer x.mu.Unlock()
	b.each(func(e job.EndedGrant) {
		f := x.byRun[e.RunID]
		if f.count--; f.count <= 0 {
			delete(x.byRun, e.RunID)
		} else {
			x.byRun[e.RunID] = f
		}
	})
	return b
}

func (x *endedIndex) find(id job.RunID) (job.Fence, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	f, ok := x.byRun[id]
	return f.fence, ok
}
