package cluster

import "slices"

// What strangers can take of a node: connections that say nothing. Those to its port are here.

// maxHandshakes is how many connections may be about to say what they want: more than all nodes ever need.
const maxHandshakes = 256

// begin gives a connection time to say what it wants. There is always room for one more, and the one that has taken the
// longest goes for it: a node needs milliseconds, so strangers who say nothing cannot keep it out.
func (p *Port) begin(c *portConn) {
	p.mu.Lock()
	var oldest *portConn
	if len(p.shaking) == maxHandshakes {
		oldest = p.shaking[0]
		p.shaking = slices.Delete(p.shaking, 0, 1)
	}
	p.shaking = append(p.shaking, c)
	p.mu.Unlock()
	if oldest != nil {
		p.refuse(oldest, "too_many", nil)
	}
}

// begun gives a connection's place back, and tells whether it had it still.
func (p *Port) begun(c *portConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.shaking, c)
	if i >= 0 {
		p.shaking = slices.Delete(p.shaking, i, i+1)
	}
	return i >= 0
}

