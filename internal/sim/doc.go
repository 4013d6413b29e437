// Package sim runs a whole cluster in one goroutine, on virtual time, from one seed: the real state machine, scheduler,
// store and queue, over a modelled log, network, disks, clocks, gateways, workers and callers. Everything that may go wrong
// goes wrong, by the seed; invariants are checked after each step, and at the end, healed and drained, what happened is
// judged by package checker. The same seed gives the same run, to the event: Result.Trace is a hash of all of them.
//
// # How one goroutine is many
//
// Events are functions on a heap ordered by time and number. What blocks in the real code (a proposal, a pause between two
// tries, the wait for another that tells Raft) is run as a coroutine (iter.Pull) that hands the baton back to the event
// loop and is resumed by an event, so parts of a term interleave at each proposal, in an order that the seed picks. The
// loops of a term are the real ones (pace.Part); only their waiting is ours. No mutex of the real code may be held
// while it waits: the one thing that is held across a proposal is a token, taken through pace.Pace.
//
// # What is modelled, and how
//
//   - The log is Raft by the paper over messages that are delayed, lost and cut off: terms, votes, one leader a term,
//     entries that are acknowledged when they are on disk, snapshots, leader leases, transfers. A deposed leader goes on
//     believing until it hears of it. A crash loses what was not synced. Each entry is bytes and is decoded by each replica.
//   - Proposals of other nodes are forwarded with tags, and answered by the proposer's own state (fsm.State.Expect).
//   - A gateway per node, and the leader's hub over links, keep to what packages gateway and relay promise: sessions of one
//     reign, epochs that only grow, false only for what was never written.
//   - Workers keep the agent's rules: leases counted from before the heartbeat was sent, fences noted, results held until
//     they are acknowledged. Nodes and workers freeze, die, and come back with what was on their disks.
//   - A node's time is the median of the clocks that the leader can read (L8); single clocks are set wrong by an hour.
package sim
