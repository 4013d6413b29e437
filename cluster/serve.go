package cluster

import (
	"context"
	"net/http"

	"connectrpc.com/connect"
	"github.com/fxamacker/cbor/v2"
	"github.com/musterhq/muster/cluster/clusterpb"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

const servePath = "/" + clusterpb.NodeServiceName + "/"

// server answers what other nodes ask this one.
type server struct {
	clusterpb.UnimplementedNodeServiceHandler
	*Peers
}

func (p *Peers) handler() http.Handler {
	_, h := clusterpb.NewNodeServiceHandler(server{Peers: p}, connect.WithReadMaxBytes(maxMessage), connect.WithCompression("gzip", nil, nil))
	return h
}

// said answers a call.
func said[T any](answer *T, err error) (*connect.Response[T], error) {
	if err != nil {
		return nil, toWire(err)
	}
	return connect.NewResponse(answer), nil
}

// Propose implements the call. The ids and tags in the commands are the other node's; whether they may come from another
// node at all is checked here.
func (s server) Propose(ctx context.Context, r *connect.Request[clusterpb.ProposeRequest]) (*connect.Response[clusterpb.ProposeResponse], error) {
	index, err := s.proposeFor(ctx, r.Msg.Node, r.Msg.Commands)
	return said(&clusterpb.ProposeResponse{Index: index}, err)
}

func (p *Peers) proposeFor(ctx context.Context, from string, data []byte) (index uint64, err error) {
	n := p.node
	commands, err := fsm.DecodeCommands(data)
	if err != nil {
		return 0, err
	}
	for _, c := range commands {
		if !fsm.Forwardable(c.Kind()) {
			return 0, job.Errorf(job.Forbidden, "not_forwardable", "a command of kind %d is the leader's own", c.Kind())
		}
	}
	if len(commands) == 0 {
		return 0, job.Errorf(job.Invalid, "", "there are no commands")
	}
	if err := n.readable(commands); err != nil {
		return 0, err
	}
	if !n.Leading() {
		return 0, notLeader(nil)
	}
	if err := n.belong(from, commands); err != nil {
		return 0, err
	}
	n.awaitClock(ctx)
	done, err := n.proposer.proposeFor(ctx, commands, from)
	if err != nil {
		return 0, err
	}
	return done.index, nil
}

// belong refuses what comes from a node that is no server of the configuration, and rows of such nodes: one that was
// removed or replaced, and does not know it yet, would put its own row in the place of its successor's.
func (n *Node) belong(from string, commands []fsm.Command) error {
	servers := n.servers()
	stranger := from
	for _, c := range commands {
		if t, ok := c.(fsm.Tagged); ok {
			c = t.Command
		}
		if row, ok := c.(*fsm.PutNode); ok && find(servers, row.Node.ID) < 0 {
			stranger = row.Node.ID
		}
	}
	if find(servers, stranger) < 0 {
		return job.Errorf(job.Unavailable, "not_member", "the node %q is not a member of the cluster any more; ask another one", stranger)
	}
	return nil
}

// Freshness implements the call. The asker waits until it has applied what it is told, so it is told of the commit as well.
func (s server) Freshness(ctx context.Context, r *connect.Request[clusterpb.FreshnessRequest]) (*connect.Response[clusterpb.FreshnessResponse], error) {
	if !s.node.Leading() {
		return nil, toWire(notLeader(nil))
	}
	index, term, err := s.node.readIndex(ctx)
	if err == nil {
		s.notices.tell(r.Msg.Node, index, term)
	}
	return said(&clusterpb.FreshnessResponse{Index: index}, err)
}

// Probe implements the call.
func (s server) Probe(_ context.Context, r *connect.Request[clusterpb.ProbeRequest]) (*connect.Response[clusterpb.ProbeResponse], error) {
	return connect.NewResponse(s.probes.answer(r.Msg)), nil
}

// Hint implements the call.
func (s server) Hint(_ context.Context, r *connect.Request[clusterpb.HintRequest]) (*connect.Response[clusterpb.HintResponse], error) {
	l, err := s.self()
	if err == nil && !s.node.Leading() {
		err = notLeader(nil)
	}
	if err == nil {
		err = takeHints(l, r.Msg)
	}
	return said(&clusterpb.HintResponse{}, err)
}

// Ask implements the call.
func (s server) Ask(ctx context.Context, r *connect.Request[clusterpb.AskRequest]) (*connect.Response[clusterpb.AskResponse], error) {
	value, err := s.answerTo(ctx, r.Msg.What, r.Msg.Body)
	if err != nil {
		return nil, toWire(err)
	}
	body, err := encoding.Marshal(value)
	return said(&clusterpb.AskResponse{Body: body}, err)
}

func (p *Peers) answerTo(ctx context.Context, what string, body []byte) (any, error) {
	read := func(v any) error {
		if err := cbor.Unmarshal(body, v); err != nil {
			return &job.Error{Code: job.Invalid, Message: "the question cannot be read", Cause: err}
		}
		return nil
	}
	if what != askDigest && !p.node.Leading() {
		return nil, notLeader(nil)
	}
	if what == askMembers {
		return p.node.Members(), nil
	}
	l, err := p.self()
	if err != nil {
		return nil, err
	}
	switch what {
	case askExplain:
		var run job.Run
		if err := read(&run); err != nil {
			return nil, err
		}
		return l.Explain(ctx, &run)
	case askWorkers:
		return l.Workers(ctx)
	case askDigest:
		var index uint64
		if err := read(&index); err != nil {
			return nil, err
		}
		return l.Digest(ctx, index)
	}
	return nil, job.Errorf(job.Invalid, "", "this version of muster does not know the question %q", what)
}

// Output implements the call.
func (s server) Output(ctx context.Context, r *connect.Request[clusterpb.OutputRequest], stream *connect.ServerStream[clusterpb.OutputResponse]) error {
	l, err := s.self()
	if err != nil {
		return toWire(err)
	}
	q := OutputQuery{Attempt: r.Msg.Attempt, From: r.Msg.From, Follow: r.Msg.Follow}
	if copy(q.RunID[:], r.Msg.Run) != len(r.Msg.Run) || len(r.Msg.Run) != len(q.RunID) {
		return toWire(job.InvalidField("run", "it is no id of a run"))
	}
	// The first bytes leave now, so that a follower of silent work knows that it is answered.
	if err := stream.Send(nil); err != nil {
		return err
	}
	err = l.Output(ctx, q, func(c OutputChunk) error {
		return stream.Send(&clusterpb.OutputResponse{Offset: c.Offset, Stream: c.Stream, Data: c.Data})
	})
	if err != nil {
		return toWire(err)
	}
	return nil
}

// Join implements the call.
func (s server) Join(ctx context.Context, r *connect.Request[clusterpb.JoinRequest]) (*connect.Response[clusterpb.JoinResponse], error) {
	var node job.Node
	if err := cbor.Unmarshal(r.Msg.Node, &node); err != nil {
		return nil, toWire(&job.Error{Code: job.Invalid, Message: "the node's words about itself cannot be read", Cause: err})
	}
	return said(&clusterpb.JoinResponse{}, s.leading(func() error { return s.node.join(ctx, node) }))
}

// Remove implements the call.
func (s server) Remove(ctx context.Context, r *connect.Request[clusterpb.RemoveRequest]) (*connect.Response[clusterpb.RemoveResponse], error) {
	return said(&clusterpb.RemoveResponse{}, s.leading(func() error { return s.node.Remove(ctx, r.Msg.Node, r.Msg.Force) }))
}

// Transfer implements the call.
func (s server) Transfer(ctx context.Context, r *connect.Request[clusterpb.TransferRequest]) (*connect.Response[clusterpb.TransferResponse], error) {
	return said(&clusterpb.TransferResponse{}, s.leading(func() error { return s.node.Transfer(ctx, r.Msg.To) }))
}

// leading does what only a leader may. It does not ask others: a call goes on once.
func (p *Peers) leading(f func() error) error {
	if !p.node.Leading() {
		return notLeader(nil)
	}
	return f()
}
