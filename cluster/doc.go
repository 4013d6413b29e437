// Package cluster is how many processes act as one: who leads (Raft, which is truth), who seems alive (gossip, which is
// rumour), how a command reaches the log from any node, and what each error of Propose promises.
//
// # The node
//
// Open makes this process a Node on its data directory. Everything else hangs on three calls:
//
//   - Node.Run is the leader's life: it calls a function whenever this node leads, with a context of one term, after a
//     barrier, and never begins a term before the last one's work has wholly ended (L1).
//   - Node.Propose puts commands of package fsm into the log and answers their results. Its doc comment lists what each
//     error promises; in short: Unavailable means that nothing happened, Unknown that it may have. Losing leadership is
//     never a reason to exit.
//   - Node.Control is what the leader and the administrators read and write of the state that Raft always owns. It has
//     the method set of scheduler.Control.
//
// # What is on disk
//
// Below Config.Dir:
//
//	lock              held (flock) by the process that uses the directory
//	raft/node-id      this server's id, for ever; it goes when the log goes
//	raft/raft.db      the log, the term and the vote: bolt, with its free list synced
//	raft/raft.mark    the high-water mark: what raft.db once held
//	raft/snapshots/   the newest snapshots of the state
//
// bolt trusts its file. When the newest of its two meta pages is damaged it opens on the older one, without the newest
// transaction; an old copy put back opens as well. A server that has forgotten an entry it acknowledged, or a vote, can
// make the cluster forget it too, so Open compares the log with the mark and refuses, with a sentence that says how much
// is missing and what to do. Before that it walks the pages of the file itself (checkBolt), because bolt ends the process
// or runs in circles on some damaged ones. Commands also carry a checksum from their proposer to every reader (logGuard).
//
// # Between us and the Raft library
//
// What the library leaves to its users, and where it is done here:
//
//   - signals of leadership may come faster than they are read: leadership makes them a level with a generation;
//   - a leader whose disk hangs is never replaced: logGuard gives a leader's writes a deadline;
//   - it panics when a term cannot be saved: stableGuard goes on trying, outside of elections;
//   - it forgets to answer some proposals when it is shut down: Close drains before;
//   - a leadership transfer can hang for ever: Transfer has a deadline, and Run says when to restart the process;
//   - it triggers snapshots, and keeps log behind them, by entries: snapshotter counts bytes.
//
// # Gossip
//
// Workers gossip in cells of at most a thousand; nodes are in every cell. Gossip is the nodes' side of it, JoinCell the
// workers'. A worker asks a node where to join (Gossip.Assign). What comes out of it are rumours: they may hurry a check
// of a lease and never replace one. Every cell has its own key, and whoever holds it can claim anything in that cell.
//
// # Tests
//
// With Config.Memory and a Transport from raft.NewInmemTransport several nodes run in one process, also inside a
// testing/synctest bubble, where their elections take no time; see failover_test.go. Tests that need the disk use it.
package cluster
