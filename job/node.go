package job

// Node is a scheduler process, as the cluster's directory has it: a fact of Raft, announced by the node itself.
type Node struct {
	ID   string `json:"id" cbor:"1,keyasint"`   // for as long as its data directory lives
	Name string `json:"name" cbor:"2,keyasint"` // what people call it; a replacement takes the name over
	// Where it is reached: the base URL of its API, and the host:port of its Raft and of its first gossip cell.
	API    string `json:"api" cbor:"3,keyasint,omitempty"`
	Raft   string `json:"raft" cbor:"4,keyasint,omitempty"`
	Gossip string `json:"gossip,omitempty" cbor:"5,keyasint,omitempty"`
	// Version is the binary's; Reads the newest version of each kind of command that it can read, by number.
	Version string           `json:"version,omitempty" cbor:"6,keyasint,omitempty"`
	Reads   map[uint16]uint8 `json:"-" cbor:"7,keyasint,omitempty"`
}
