// Package relay joins the gateways of all nodes to the one leader. Between nodes it speaks the protocol of
// workerpb/leader.proto: one stream, the link, from each node that follows to the node that leads.
//
// On the leading node the Hub stands between the term and all gateways: the term calls it as if it were one gateway, and
// it hands what is for a session to the node where that session's stream ends. On the other nodes Follow keeps a link to
// whoever leads and stands in for that leader (gateway.Leader) towards the node's own gateway. So neither a term nor a
// gateway knows whether there is a network between them, and all that package gateway promises holds over it:
//
//   - Calls of one session arrive in order, except that heartbeats may overtake; those of different sessions do not wait
//     for each other. A leader that takes no results stops results alone.
//   - A link belongs to one epoch. When it ends, all its sessions do, on both sides: the Hub detaches them from the term,
//     and the follower has its workers say Hello to the next leader. Nothing of an earlier link reaches a later session.
//   - Assign answers false only for what was never sent, or what the follower said it did not write. What was sent and is
//     not answered in time counts as true: unknown (L3). If the follower says later that it did not write it, the Hub
//     tells the term that the attempt was given back.
//   - A link whose last batch is unanswered for longer than the patience takes no further one until it is answered: a
//     node that hangs costs the dispatcher one patience.
//   - Whoever has seen a higher epoch, from anybody, ends a link of a lower one (L1).
//   - A link on which the other process said nothing for five seconds has ended. That takes words of that process:
//     the kernel and the HTTP/2 library answer for one that is stopped, too.
package relay
