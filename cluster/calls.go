package cluster

import (
	"context"
	"errors"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/fxamacker/cbor/v2"
	"github.com/musterhq/muster/cluster/clusterpb"
	"github.com/musterhq/muster/job"
)

// What a node can be asked for.
const (
	askExplain = "explain"
	askWorkers = "workers"
	askMembers = "members"
	askDigest  = "digest"
)

const (
	askTimeout    = 5 * time.Second
	changeLimit   = 30 * time.Second // of membership and leadership
	digestTimeout = time.Minute
	outputTimeout = 30 * time.Second // unless it is followed
	maxMessage    = 8 << 20          // bytes
)

var errCallsLeft = errors.New("calls of other nodes did not end")

// encoding is that of what nodes ask each other, in the form that the words of package job have on disk.
var encoding = func() cbor.EncMode {
	mode, err := cbor.EncOptions{Time: cbor.TimeRFC3339Nano}.EncMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

func request[T any](message *T) *connect.Request[T] { return connect.NewRequest(message) }

// at is the client for the node at a Raft address.
func (p *Peers) at(address string) clusterpb.NodeServiceClient {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.clients[address]
	if !ok {
		if len(p.clients) > 100 { // addresses come and go
			clear(p.clients)
		}
		c = clusterpb.NewNodeServiceClient(p.port.HTTPClient(), p.port.URL(address),
			connect.WithReadMaxBytes(maxMessage), connect.WithAcceptCompression("gzip", nil, nil))
		p.clients[address] = c
	}
	return c
}

func (p *Peers) find(id string) (address string, err error) {
	a, ok := p.raftAddress(id)
	switch {
	case !ok:
		return "", job.Errorf(job.NotFound, "no_node", "there is no node %q in the cluster", id)
	case p.port == nil:
		return "", unreachable(nil)
	}
	return string(a), nil
}

func (p *Peers) leader() (address string, err error) {
	_, address, ok := p.node.Leader()
	switch {
	case !ok || address == "":
		return "", job.Errorf(job.Unavailable, "no_leader", "the cluster has no leader at the moment; try again in a few seconds")
	case p.port == nil:
		return "", notLeader(nil)
	}
	return address, nil
}

func unreachable(cause error) *job.Error {
	return &job.Error{Code: job.Unavailable, Reason: "unreachable", Message: "another node of the cluster cannot be reached; try again", Cause: cause}
}

// reaching notes whether a call had a connection to its node. Only if it had none, the node knows nothing of it for sure.
func reaching(ctx context.Context, sent *atomic.Bool) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
}

// refusalOf is what a node said, or nil if it was not a node that said it.
func refusalOf(err error) *job.Error {
	var c *connect.Error
	if !errors.As(err, &c) {
		return nil
	}
	for _, d := range c.Details() {
		if v, err := d.Value(); err == nil {
			if r, ok := v.(*clusterpb.Refusal); ok {
				return &job.Error{Code: job.Code(r.Code), Reason: r.Reason, Field: r.Field, Message: r.Message}
			}
		}
	}
	return nil
}

// asked turns the error of a call that changes nothing into one of ours.
func asked(err error) error {
	if err == nil {
		return nil
	}
	if r := refusalOf(err); r != nil {
		return r
	}
	return unreachable(err)
}

// toWire turns one of our errors into that of a call.
func toWire(err error) error {
	e := job.AsError(err)
	codes := map[job.Code]connect.Code{
		job.Invalid: connect.CodeInvalidArgument, job.NotFound: connect.CodeNotFound, job.Conflict: connect.CodeFailedPrecondition,
		job.Fenced: connect.CodeAborted, job.Exhausted: connect.CodeResourceExhausted, job.Unavailable: connect.CodeUnavailable,
		job.Unknown: connect.CodeUnknown, job.Unauthenticated: connect.CodeUnauthenticated,
		job.Forbidden: connect.CodePermissionDenied, job.Internal: connect.CodeInternal,
	}
	code, ok := codes[e.Code]
	if !ok {
		code = connect.CodeInternal
	}
	w := connect.NewError(code, errors.New(e.Message))
	if d, err := connect.NewErrorDetail(&clusterpb.Refusal{Code: string(e.Code), Reason: e.Reason, Field: e.Field, Message: e.Message}); err == nil {
		w.AddDetail(d)
	}
	return w
}

// propose hands commands to the leader. sent is set as soon as it may know of them.
func (p *Peers) propose(ctx context.Context, address string, commands []byte, sent *atomic.Bool) (index uint64, err error) {
	answer, err := p.at(address).Propose(reaching(ctx, sent), request(&clusterpb.ProposeRequest{Node: p.node.id, Commands: commands}))
	if err == nil {
		sent.Store(true)
		return answer.Msg.Index, nil
	}
	if r := refusalOf(err); r != nil {
		sent.Store(true)
		return 0, r
	}
	if connect.CodeOf(err) == connect.CodeUnimplemented { // nobody is there to answer
		sent.Store(false)
	}
	return 0, mayHappen(err)
}

func (p *Peers) askFreshness(ctx context.Context) (uint64, error) {
	address, err := p.leader()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answer, err := p.at(address).Freshness(ctx, request(&clusterpb.FreshnessRequest{Node: p.node.id}))
	if err != nil {
		return 0, asked(err)
	}
	return answer.Msg.Index, nil
}

func askLeader[T any](ctx context.Context, p *Peers, what string, about any) (T, error) {
	address, err := p.leader()
	if err != nil {
		var none T
		return none, err
	}
	return ask[T](ctx, p, address, askTimeout, what, about)
}

func ask[T any](ctx context.Context, p *Peers, address string, timeout time.Duration, what string, about any) (value T, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	body, err := encoding.Marshal(about)
	if err != nil {
		return value, job.AsError(err)
	}
	answer, err := p.at(address).Ask(ctx, request(&clusterpb.AskRequest{What: what, Body: body}))
	if err != nil {
		return value, asked(err)
	}
	if err := cbor.Unmarshal(answer.Msg.Body, &value); err != nil {
		return value, unreachable(err)
	}
	return value, nil
}

func (p *Peers) output(ctx context.Context, address string, q OutputQuery, each func(OutputChunk) error) error {
	ctx, cancel := context.WithCancel(ctx)
	if !q.Follow {
		ctx, cancel = context.WithTimeout(ctx, outputTimeout)
	}
	defer cancel()
	stream, err := p.at(address).Output(ctx, request(&clusterpb.OutputRequest{Run: q.RunID[:], Attempt: q.Attempt, From: q.From, Follow: q.Follow}))
	if err != nil {
		return asked(err)
	}
	defer stream.Close()
	for stream.Receive() {
		m := stream.Msg()
		if err := each(OutputChunk{Offset: m.Offset, Stream: m.Stream, Data: m.Data}); err != nil {
			return err
		}
	}
	return asked(stream.Err())
}

// change asks whoever leads for a change.
func (p *Peers) change(ctx context.Context, call func(context.Context, clusterpb.NodeServiceClient) error) error {
	address, err := p.leader()
	if err != nil {
		return err
	}
	return p.changeAt(ctx, address, call)
}

func (p *Peers) changeAt(ctx context.Context, address string, call func(context.Context, clusterpb.NodeServiceClient) error) error {
	if p.port == nil {
		return unreachable(nil)
	}
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	var sent atomic.Bool
	err := call(reaching(ctx, &sent), p.at(address))
	switch {
	case err == nil:
		return nil
	case refusalOf(err) != nil:
		return refusalOf(err)
	case !sent.Load(), connect.CodeOf(err) == connect.CodeUnimplemented:
		return unreachable(err)
	}
	return mayHappen(err)
}
