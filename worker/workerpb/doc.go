// Package workerpb is the protocol between workers and nodes: worker.proto, which documents it for every language, and between the
// nodes that workers are attached to and the one that leads: leader.proto. Here is also what is
// generated from it, and the conversions to and from the vocabulary of package job. What comes from the other side is
// checked here, once: a conversion answers a *job.Error that names the field, or a value that needs no further checks.
package workerpb

// MaxMessageBytes bounds one message in either direction.
const MaxMessageBytes = 16 << 20

// MaxSpecs is the size of the table that Spec fills.
const MaxSpecs = 256

// MaxLinkSpecs is the size of the same table between two nodes.
const MaxLinkSpecs = 1024

// The limits of what one result may carry (design rule D6).
const (
	MaxResultBytes = 64 << 10
	MaxErrorBytes  = 8 << 10
)

// MaxOutputBytes bounds one piece of output.
const MaxOutputBytes = 1 << 20
