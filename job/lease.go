package job

import "time"

// The lease arithmetic of L4. The worker counts from before it sent, the leader from after it received, so the worker
// gives up first; the leader requeues LeaseKillGrace later.
const (
	HeartbeatEvery  = 5 * time.Second
	HeartbeatLost   = 6 * time.Second // without an acknowledgement the worker attaches to another node
	LeaseTimeout    = 30 * time.Second
	LeaseKillGrace  = 10 * time.Second
	MaxLosses       = 3                // then a run is failed, worker_lost (L5)
	EndedGrantsKept = 60 * time.Second // L2
)

// Grant gives one worker the right to run one attempt. It is in Raft before the worker is told (L2), and the lease it
// opens lives there until a later entry ends it.
type Grant struct {
	RunID     RunID   `json:"run_id" cbor:"1,keyasint"`
	Fence     Fence   `json:"fence" cbor:"2,keyasint"`
	Attempt   uint32  `json:"attempt" cbor:"3,keyasint"`
	Worker    string  `json:"worker" cbor:"4,keyasint"`
	Boot      string  `json:"boot" cbor:"5,keyasint"` // which life of the agent (WorkerHello.Boot)
	GrantedAt Instant `json:"granted_at" cbor:"6,keyasint"`
	Slots     int32   `json:"slots" cbor:"7,keyasint,omitempty"`          // 0 means 1
	Lane      LaneKey `json:"lane" cbor:"8,keyasint,omitempty"`           // holds its concurrency key
	JobID     JobID   `json:"job_id,omitzero" cbor:"9,keyasint,omitzero"` // for overlap, without reading the store
}

// EndedGrant says that a lease is over. The fence guards against ending a later lease of the same run.
type EndedGrant struct {
	RunID RunID `cbor:"1,keyasint"`
	Fence Fence `cbor:"2,keyasint"`
}

// SlotCount is how many of the worker's slots the grant takes.
func (g *Grant) SlotCount() int { return max(1, int(g.Slots)) }
