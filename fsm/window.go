package fsm

import "slices"

const (
	windowSeqs = 4096 // entries of one life of one node that are told apart
	maxWindows = 64   // lives of nodes that are remembered
)

// window remembers which entries of one life of one node were applied.
type window struct {
	Node string                  `cbor:"1,keyasint"`
	Boot string                  `cbor:"2,keyasint"`
	Top  uint64                  `cbor:"3,keyasint"` // the highest seq applied
	Last uint64                  `cbor:"4,keyasint"` // log index of the last entry, for eviction
	Bits [windowSeqs / 64]uint64 `cbor:"5,keyasint"` // bit seq % windowSeqs, for seqs in (Top - windowSeqs, Top]
}

// windows remembers the entries of the nodes' last lives, least recently used out first.
type windows struct{ list []*window }

// seen notes an entry and tells whether it was applied before. One that is older than the window counts as applied: it
// cannot be told any more, and applying twice is worse than not answering once.
func (ws *windows) seen(o Origin, index uint64) bool {
	if o.Node == "" {
		return false
	}
	w := ws.of(o)
	if w == nil {
		w = &window{Node: o.Node, Boot: o.Boot, Top: o.Seq}
		ws.add(w)
	}
	w.Last = index
	return w.mark(o.Seq)
}

func (w *window) mark(seq uint64) (seen bool) {
	if seq+windowSeqs <= w.Top {
		return true
	}
	if seq > w.Top {
		if seq-w.Top >= windowSeqs {
			w.Bits = [windowSeqs / 64]uint64{}
		} else {
			for s := w.Top + 1; s <= seq; s++ {
				w.Bits[s%windowSeqs/64] &^= 1 << (s % 64)
			}
		}
		w.Top = seq
	}
	word, bit := seq%windowSeqs/64, uint64(1)<<(seq%64)
	seen = w.Bits[word]&bit != 0
	w.Bits[word] |= bit
	return seen
}

func (ws *windows) of(o Origin) *window {
	for _, w := range ws.list {
		if w.Node == o.Node && w.Boot == o.Boot {
			return w
		}
	}
	return nil
}

func (ws *windows) add(w *window) {
	if len(ws.list) >= maxWindows {
		oldest := 0
		for i := range ws.list {
			if ws.list[i].Last < ws.list[oldest].Last {
				oldest = i
			}
		}
		ws.list = slices.Delete(ws.list, oldest, oldest+1)
	}
	ws.list = append(ws.list, w)
}

// copied is a copy for a snapshot, in the list's order, which the log determines.
func (ws *windows) copied() []window {
	list := make([]window, len(ws.list))
	for i, w := range ws.list {
		list[i] = *w
	}
	return list
}
