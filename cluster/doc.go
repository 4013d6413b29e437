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
// # Between nodes
//
// A Port is the one address on which nodes reach each other: Raft's connections, and calls (package clusterpb). With it:
//
//   - Node.Propose works on every node. A follower takes the commands to the leader, tagged; the log brings them back, and
//     the follower's own state delivers the results by their tags (forwarder). So that this does not wait for Raft's next
//     message, the leader tells the follower of the commit at once (noticer).
//   - Node.CatchUp makes a node as new as the cluster was when it was called.
//   - the leader probes every member each second: who is well, how far it is, what its clock shows (probes). From that
//     comes the cluster's time, Clock: the median of the voters' clocks.
//   - Peers is everything else that nodes ask each other. What only the rest of the program can answer is behind Local.
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
// # Starting and joining
//
// A node that is told to Join waits. Bootstrapper asks all nodes on a list who they are (Greeting), and chart, a pure
// function of the answers, decides: all of them start the same cluster, or this one asks a leader to let it in, or it
// waits and says for what. A process that is killed at any moment of it takes it up again.
//
// Until it has started a cluster or is known to be a member, a node refuses all that Raft sends it (gate). Raft finds
// servers by address, and would take an empty node for the one that was wiped at that address: it would vote and
// acknowledge in the name of a server that has forgotten what it acknowledged.
//
// The leader adds a node without a vote and gives it one when it has kept up for a while (join, promote). A server of the
// same name or address that is dead is replaced. The Raft configuration says who is a member; the directory in the state
// (fsm.PutNode) says what each is called and where it is, written by each node itself (announce) and swept by the leader.
//
// # When something is lost
//
//   - One node's disk, or its log is damaged: Open refuses, with a sentence. A person moves the folder raft away and
//     starts the node; it joins as a new server under its old name. Never put an old copy back, and never delete raft.db
//     and raft.mark and keep node-id: such a server has forgotten votes and does not know it.
//   - The majority: Inspect what is left, Recover on the node with the highest last term and index, start it, and start
//     the others with their raft folders moved away. What only the lost ones had is lost; the epoch jumps so that no
//     fence is issued twice.
//   - The state is wrong: RestoreSnapshot. It ends the leader's term first and begins another one after.
//   - A member for good: Remove. The process that was removed ends with a sentence.
//
// Two servers must never swap their addresses while they run: Raft would take the one's word for the other's.
//
// # Between us and the Raft library
//
// What the library leaves to its users, or is known to do wrong, and where it is seen to. The numbers in brackets are of
// its issues on GitHub.
//
//   - "leadership lost" is no verdict on a proposal: Propose answers Unknown, commands carry ids and are safe to repeat,
//     and the process goes on.
//   - A paused leader does not know that it was replaced: everything it does is fenced by the epoch (Control.RaiseEpoch),
//     and by nothing of Raft's.
//   - A leader's work begins after a Barrier; one that fails or takes too long hands over (Run).
//   - Reads as new as the cluster take the index first and verify leadership after (CatchUp) [603].
//   - Signals of leadership may come faster than they are read, and Raft blocks if nobody reads them: watchLeadership does
//     nothing else, and leadership makes them a level with a generation [384].
//   - A leadership transfer can hang for ever, and then refuses every proposal: Transfer has a deadline, and ends Run when
//     transfers fail for twice as long, so that the process is restarted [696].
//   - A leader whose disk hangs is never replaced, because heartbeats run beside the log: logGuard gives its writes a
//     deadline [503].
//   - Bootstrap: one identical list on all, or joining; see above. A term without a log is an interrupted bootstrap
//     (stableGuard.forgetBootstrap).
//   - New servers begin without a vote (promote); nobody is removed for being silent, and nobody whom the majority needs
//     (Remove).
//   - A removed server that comes back stands for election: pre-votes are on and are refused while there is a leader, and
//     Bootstrapper ends the process on the leader's word. Its id never comes back: it lies with the log, and goes with it
//     [524]. ShutdownOnRemove is off, because Raft then leaves its transport and goroutines behind.
//   - Server ids are UUIDs on disk; an address may change (announceAddress, join).
//   - A snapshot is frozen in no time and written while applies go on (fsm); it is triggered, and log kept behind it, by
//     bytes and not by entries; more log stays than lies between two snapshots, so that a follower that is sent one is not
//     sent another (snapshotter, setTrailing).
//   - bolt's free list is synced; the log is checked before bolt trusts it, and against a high-water mark (disk).
//   - Raft panics when a term cannot be saved: stableGuard goes on trying, outside of elections.
//   - It forgets to answer some proposals when it is shut down: Close drains before, and hands leadership over.
//   - Batches: proposals that wait go into one entry, entries that wait into one write (propose, BatchApplyCh).
//   - Raft and node calls share a port and never a connection (Port). Timeouts that starve on a busy machine are settings
//     whose order Validate checks.
//   - Restoring a snapshot panics on one that cannot be read, so it is read twice before; and it can leave the node that
//     led with a state of its own when leadership is lost in the middle: the error is Unknown, and the log says so.
//   - Legacy telemetry is off; what to watch is in metrics: muster_raft_log_write_seconds, _commit_seconds,
//     _last_contact_seconds, _oldest_entry_seconds, _queued_commands.
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
// testing/synctest bubble, where their elections take no time; see failover_test.go, and bootstrap_test.go for nodes that
// find each other. Tests that need the disk use it; site_test.go has whole nodes on loopback.
package cluster
