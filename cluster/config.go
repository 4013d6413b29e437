package cluster

import (
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
	"github.com/prometheus/client_golang/prometheus"
)

// Config is how a node takes part. Zero means the default wherever one is named.
type Config struct {
	// Dir is the data directory; one process at a time may use it. Required unless Memory is set.
	Dir string
	// Memory keeps the Raft state in memory instead, for tests and the simulation.
	Memory *Memory
	// State is the replicated state machine. Required; it must be fresh.
	State *fsm.State
	// Logger. Required.
	Logger *slog.Logger
	// Registerer takes the metrics; nil means none.
	Registerer prometheus.Registerer
	// Now is the clock whose time entries carry. Default that of Clock, or else time.Now.
	Now func() time.Time
	// Clock is this node's idea of the cluster's time, which the node corrects by comparing clocks with the others. nil
	// means one that nobody reads.
	Clock *Clock

	// Port is how other nodes reach this one, for Raft and for everything else. The caller opens it, serves it and closes
	// it after the node. Without it, and without what replaces it below, the node is alone: a single voter that elects
	// itself at once.
	Port *Port
	// RaftAddress is the host:port on which other nodes reach this one's Raft and nothing else, over plain TCP. What
	// other nodes would be asked is then refused: proposals are not forwarded, clocks not compared.
	RaftAddress string
	// AdvertiseAddress is what others are told instead of RaftAddress, if it is not the same.
	AdvertiseAddress string
	// StreamLayer carries Raft's connections instead of plain TCP on RaftAddress.
	StreamLayer raft.StreamLayer
	// Transport replaces all of that, in tests.
	Transport raft.Transport
	// Join keeps a node without state from bootstrapping itself: it waits for Bootstrap, or to be added by the leader.
	Join bool

	// Self is what this node tells the others about itself; its ID and Raft are filled in here. Without a Name the node
	// announces nothing, and makes no identity for a new cluster.
	Self job.Node
	// Store is the kind of store that this node was started with, which the nodes of a new cluster must have in common (S11).
	Store string
	// ClusterID is the cluster that this node's certificates belong to. A node that finds itself in another one stops.
	// "" takes any; a new cluster then gets a random one.
	ClusterID string
	// Credentials are those of a new cluster: the first leader records them together with its id.
	Credentials []job.Credential
	// PromoteAfter is how long a node that joined must have kept up with the leader before it votes. Default 3 s.
	PromoteAfter time.Duration

	// HeartbeatTimeout is how long a follower waits for its leader before it stands for election, up to twice as long;
	// ElectionTimeout how long an election may take, not less than the former; LeaderLease how long a leader that reaches
	// no majority stays one, not more than the former. Defaults 500 ms, 500 ms and 400 ms; alone 100 ms each, because there is
	// nobody to wait for. Half a second is a compromise: a killed leader is replaced in about a second, and heartbeats still
	// come in time on a machine whose every core is busy.
	HeartbeatTimeout, ElectionTimeout, LeaderLease time.Duration

	// MaxEntryBytes ends the filling of one log entry. Default 512 KiB, at most 1 MiB. A single call of Propose may be
	// larger, up to 1 MiB.
	MaxEntryBytes int
	// MaxEntryCommands ends it as well. Default 1,024.
	MaxEntryCommands int
	// MaxInFlight is how many entries may be on their way to disk and followers at once. Default 2, so that one is synced
	// here while the one before is synced elsewhere; alone 1, which was as fast with half the syncs.
	MaxInFlight int
	// MaxQueuedCommands and MaxQueuedBytes bound what waits for a place in an entry. Defaults 16,384 and 16 MiB.
	MaxQueuedCommands, MaxQueuedBytes int

	// WriteTimeout is how long one write to the log of a leader may take before it steps down. Default 10 s.
	WriteTimeout time.Duration
	// SnapshotBytes of log since the last snapshot, if that is also more than half of that snapshot's size, make the
	// next one. Each entry counts 128 bytes more than its data. Default 64 MiB.
	SnapshotBytes int64
	// TrailingBytes of log, about, stay after a snapshot, so that a follower that was away needs no snapshot; with several
	// nodes not less than what makes the next snapshot, and a quarter more. Default 32 MiB.
	TrailingBytes int64
	// SnapshotsKept is how many snapshots stay on disk. Default 2.
	SnapshotsKept int

	// BarrierTimeout is how long a new leader may take to apply what its predecessors logged. Default 60 s.
	BarrierTimeout time.Duration
	// TransferTimeout bounds one attempt to hand leadership over. Default 10 s.
	TransferTimeout time.Duration
	// CloseTimeout bounds Close. Default 10 s.
	CloseTimeout time.Duration
}

// MaxProposalBytes bounds one call of Propose (D6).
const MaxProposalBytes = 1 << 20

// alone tells whether no other node can ever reach this one.
func (c *Config) alone() bool {
	return c.Port == nil && c.RaftAddress == "" && c.StreamLayer == nil && c.Transport == nil
}

func (c *Config) setDefaults() {
	heartbeat, lease, inFlight := 500*time.Millisecond, 400*time.Millisecond, 2
	if c.alone() {
		heartbeat, lease, inFlight = 100*time.Millisecond, 100*time.Millisecond, 1
	}
	or(&c.HeartbeatTimeout, heartbeat)
	or(&c.ElectionTimeout, max(heartbeat, c.HeartbeatTimeout))
	or(&c.LeaderLease, min(lease, c.HeartbeatTimeout))
	or(&c.MaxEntryBytes, 512<<10)
	or(&c.MaxEntryCommands, 1024)
	or(&c.MaxInFlight, inFlight)
	or(&c.MaxQueuedCommands, 16384)
	or(&c.MaxQueuedBytes, 16<<20)
	or(&c.WriteTimeout, 10*time.Second)
	or(&c.SnapshotBytes, 64<<20)
	or(&c.TrailingBytes, 32<<20)
	or(&c.SnapshotsKept, 2)
	or(&c.PromoteAfter, 3*time.Second)
	or(&c.BarrierTimeout, time.Minute)
	or(&c.TransferTimeout, 10*time.Second)
	or(&c.CloseTimeout, 10*time.Second)
	if c.Clock == nil {
		c.Clock = NewClock(c.Now)
	}
	if c.Now == nil {
		c.Now = c.Clock.Now
	}
}

func or[T comparable](v *T, otherwise T) {
	var zero T
	if *v == zero {
		*v = otherwise
	}
}

// Validate names the first field that is wrong. Defaults need not be filled in.
func (c *Config) Validate() error {
	d := *c
	d.setDefaults()
	switch {
	case d.Dir == "" && d.Memory == nil:
		return job.InvalidField("Dir", "a data directory is needed")
	case d.Dir != "" && d.Memory != nil:
		return job.InvalidField("Memory", "the state is kept in Dir or in Memory, not both")
	case d.State == nil:
		return job.InvalidField("State", "a state machine is needed")
	case d.Logger == nil:
		return job.InvalidField("Logger", "a logger is needed")
	case d.Join && d.alone():
		return job.InvalidField("Join", "a node without a Port cannot join others")
	case d.Port != nil && (d.RaftAddress != "" || d.StreamLayer != nil || d.Transport != nil):
		return job.InvalidField("Port", "Raft goes over one way only")
	}
	for _, a := range []struct{ field, value string }{{"RaftAddress", d.RaftAddress}, {"AdvertiseAddress", d.AdvertiseAddress}} {
		if a.value != "" {
			if _, port, err := net.SplitHostPort(a.value); err != nil || port == "" {
				return job.InvalidField(a.field, "%q is not an address; write HOST:PORT", a.value)
			}
		}
	}
	if host, _, err := net.SplitHostPort(d.RaftAddress); err == nil && d.AdvertiseAddress == "" && d.StreamLayer == nil && d.Transport == nil {
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			return job.InvalidField("AdvertiseAddress", "others cannot reach %q; name the address that they can", d.RaftAddress)
		}
	}
	for _, a := range []struct {
		field string
		value time.Duration
		least time.Duration
	}{
		{"HeartbeatTimeout", d.HeartbeatTimeout, 5 * time.Millisecond},
		{"ElectionTimeout", d.ElectionTimeout, d.HeartbeatTimeout},
		{"LeaderLease", d.LeaderLease, 5 * time.Millisecond},
		{"WriteTimeout", d.WriteTimeout, time.Millisecond},
		{"PromoteAfter", d.PromoteAfter, time.Millisecond},
		{"BarrierTimeout", d.BarrierTimeout, time.Millisecond},
		{"TransferTimeout", d.TransferTimeout, time.Millisecond},
		{"CloseTimeout", d.CloseTimeout, time.Millisecond},
	} {
		if a.value < a.least {
			return job.InvalidField(a.field, "%s is too short; the least is %s", a.value, a.least)
		}
	}
	if d.LeaderLease > d.HeartbeatTimeout {
		return job.InvalidField("LeaderLease", "%s is longer than HeartbeatTimeout, %s", d.LeaderLease, d.HeartbeatTimeout)
	}
	for _, a := range []struct {
		field              string
		value, least, most int64
	}{
		{"MaxEntryBytes", int64(d.MaxEntryBytes), 1 << 10, MaxProposalBytes},
		{"MaxEntryCommands", int64(d.MaxEntryCommands), 1, 1 << 16},
		{"MaxInFlight", int64(d.MaxInFlight), 1, 16},
		{"MaxQueuedCommands", int64(d.MaxQueuedCommands), 1, 1 << 20},
		{"MaxQueuedBytes", int64(d.MaxQueuedBytes), MaxProposalBytes, 1 << 30},
		{"SnapshotBytes", d.SnapshotBytes, 1, 1 << 40},
		{"TrailingBytes", d.TrailingBytes, 1, 1 << 40},
		{"SnapshotsKept", int64(d.SnapshotsKept), 1, 100},
	} {
		if a.value < a.least || a.value > a.most {
			return job.InvalidField(a.field, "%d is not between %d and %d", a.value, a.least, a.most)
		}
	}
	return nil
}
