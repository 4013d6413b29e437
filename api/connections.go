package api

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// connections bounds how many a server has open, so that strangers who open many and say nothing use up neither its memory
// nor the files that the rest of the process needs. When there are too many, the one goes that has done nothing for the
// longest: before its first request or between two. What is being answered, a worker's stream above all, stays.
type connections struct {
	max int

	mu    sync.Mutex
	all   map[net.Conn]*list.Element // nil for those with a request
	quiet list.List                  // of net.Conn, the longest first
}

// note is an http.Server's ConnState.
func (c *connections) note(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	place, known := c.all[conn]
	switch {
	case state == http.StateNew:
		c.all[conn] = c.quiet.PushBack(conn)
	case !known: // it was cut off, and is just finding out
	default:
		if place != nil {
			c.quiet.Remove(place)
		}
		switch state {
		case http.StateActive:
			c.all[conn] = nil
		case http.StateIdle:
			c.all[conn] = c.quiet.PushBack(conn)
		default:
			delete(c.all, conn)
		}
	}
	var excess net.Conn
	if first := c.quiet.Front(); first != nil && len(c.all) > c.max {
		excess = c.quiet.Remove(first).(net.Conn)
		delete(c.all, excess)
	}
	c.mu.Unlock()
	if excess == nil {
		return
	}
	if t, ok := excess.(*tls.Conn); ok { // without the goodbye of TLS, which waits for the other side
		excess = t.NetConn()
	}
	_ = excess.Close()
}
