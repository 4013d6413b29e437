package workerpb

import (
	"crypto/sha256"
	"encoding/json"
	"sync"

	"github.com/musterhq/muster/job"
)

// Documents above this size are not put into tables, so that a worker's stays below 8 MiB.
const maxTableDocument = 32 << 10

// The cache keeps this much in each of its two generations.
const (
	maxCachedSpecs     = 4096
	maxCachedSpecBytes = 16 << 20
)

// encodedSpec is a document as it travels. Documents of equal content share one for as long as the cache remembers it.
type encodedSpec struct{ document []byte }

// SpecCache encodes each document once for all streams. The leader shares documents between assignments, so their
// address finds most; equal content finds the rest. Two generations bound it: when the young one is full, it becomes the
// old one, and what is not asked for until the next change is forgotten. Its zero value is ready, and safe for concurrent
// use.
type SpecCache struct {
	mu         sync.Mutex
	young, old specGeneration
}

type specGeneration struct {
	byAddress map[*job.Document]*encodedSpec
	byContent map[[sha256.Size]byte]*encodedSpec
	bytes     int
}

func (c *SpecCache) encode(d *job.Document) *encodedSpec {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.young.byAddress[d]; s != nil {
		return s
	}
	s := c.old.byAddress[d]
	var sum [sha256.Size]byte
	if s == nil {
		b, err := json.Marshal(d)
		if err != nil {
			b = []byte("null") // a document that was stored can be encoded; the worker will say what it thinks of this one
		}
		sum = sha256.Sum256(b)
		if s = c.young.byContent[sum]; s == nil {
			if s = c.old.byContent[sum]; s == nil {
				s = &encodedSpec{document: b}
			}
		}
	} else {
		sum = sha256.Sum256(s.document)
	}
	if c.young.byAddress == nil || len(c.young.byAddress) >= maxCachedSpecs || c.young.bytes >= maxCachedSpecBytes {
		c.old, c.young = c.young, specGeneration{byAddress: map[*job.Document]*encodedSpec{}, byContent: map[[sha256.Size]byte]*encodedSpec{}}
	}
	c.young.byAddress[d] = s
	if c.young.byContent[sum] == nil {
		c.young.byContent[sum] = s
		c.young.bytes += len(s.document)
	}
	return s
}

// SpecTable mirrors the table that the other side of a stream keeps. It belongs to the stream's writer.
type SpecTable struct {
	cache   *SpecCache
	slots   map[*encodedSpec]uint32
	entries []*encodedSpec // by id, which count from 1
	usedBy  []uint64       // the message that last referred to the entry
	hand    uint32         // the entry that was filled last
	message uint64         // counts messages

	lastDocument *job.Document // of the assignment before: most have the same
	lastSpec     *encodedSpec
}

// NewSpecTable makes an empty table of size entries.
func NewSpecTable(cache *SpecCache, size int) *SpecTable {
	return &SpecTable{cache: cache, slots: map[*encodedSpec]uint32{}, entries: make([]*encodedSpec, size+1), usedBy: make([]uint64, size+1)}
}

// Fill makes the wire form of the assignments of one message, and the specs that must go before them in that message.
func (t *SpecTable) Fill(batch []*job.Assignment) (specs []*Spec, assignments []*Assignment) {
	if len(batch) == 0 {
		return nil, nil
	}
	t.message++
	assignments = make([]*Assignment, len(batch))
	for i, a := range batch {
		x := NewAssignment(a)
		if a.Spec != nil {
			spec, id, fresh := t.place(a.Spec)
			switch {
			case id == 0:
				x.Document = spec.document
			case fresh:
				specs = append(specs, &Spec{Id: id, Document: spec.document})
				fallthrough
			default:
				x.Spec = id
			}
		}
		assignments[i] = x
	}
	return specs, assignments
}

// Weight is how many bytes the document would add to a message.
func (t *SpecTable) Weight(d *job.Document) int {
	if d == nil {
		return 0
	}
	s := t.lastSpec
	if d != t.lastDocument {
		s = t.cache.encode(d)
	}
	if t.slots[s] != 0 {
		return 0
	}
	return len(s.document)
}

// place answers where the other side finds a document: in its table under id, where it has to be put first if fresh; or,
// with id 0, only in the assignment itself. An entry that the message being filled refers to is not replaced, because all
// specs of a message are read before its assignments.
func (t *SpecTable) place(d *job.Document) (s *encodedSpec, id uint32, fresh bool) {
	if d == t.lastDocument {
		s = t.lastSpec
	} else {
		s = t.cache.encode(d)
		t.lastDocument, t.lastSpec = d, s
	}
	if id := t.slots[s]; id != 0 {
		t.usedBy[id] = t.message
		return s, id, false
	}
	next := t.hand%uint32(len(t.entries)-1) + 1
	if len(s.document) > maxTableDocument || t.usedBy[next] == t.message {
		return s, 0, false
	}
	t.hand = next
	if old := t.entries[next]; old != nil {
		delete(t.slots, old)
	}
	t.entries[next], t.slots[s], t.usedBy[next] = s, next, t.message
	return s, next, true
}
