package redis

import (
	"context"
	"net"
	"time"
)

// unconnected makes a dialer whose failures are seen at the first use of the connection. go-redis counts failures to dial,
// and after some leaves the dialing to a goroutine of its own, which goes on after Close.
func unconnected(dial dialer) dialer {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return noConn{noDial{err.Error()}}, nil
		}
		return c, nil
	}
}

type dialer = func(ctx context.Context, network, address string) (net.Conn, error)

// noDial is why a connection could not be made. Nothing was sent. It does not unwrap, because go-redis answers what an error
// at the beginning of a connection wraps.
type noDial struct{ why string }

func (e noDial) Error() string { return e.why }

// noConn is a connection that could not be made.
type noConn struct{ why noDial }

func (c noConn) Read([]byte) (int, error)         { return 0, c.why }
func (c noConn) Write([]byte) (int, error)        { return 0, c.why }
func (c noConn) Close() error                     { return nil }
func (c noConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c noConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c noConn) SetDeadline(time.Time) error      { return nil }
func (c noConn) SetReadDeadline(time.Time) error  { return nil }
func (c noConn) SetWriteDeadline(time.Time) error { return nil }
