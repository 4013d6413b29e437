package fsm

import (
	"fmt"

	"github.com/fxamacker/cbor/v2"
	"github.com/musterhq/muster/job"
)

const (
	// MaxEntryBytes is the most that one log entry may hold (D6).
	MaxEntryBytes = 1 << 20
	// TargetEntryBytes is where a proposer should close an entry that it fills with several commands.
	TargetEntryBytes = 512 << 10

	entryFormat = 1
	entrySlack  = 128 // for the format byte and the header
)

// Kind numbers a command on disk. Kinds are append-only: never renumbered, never reused.
type Kind uint16

// The kinds. Below 32 is control state, which Raft owns whatever the store is; from 32 the embedded store.
const (
	KindRaiseEpoch     Kind = 1
	KindGrant          Kind = 2
	KindDecide         Kind = 3
	KindPutSchedule    Kind = 4
	KindDropSchedule   Kind = 5
	KindPauseJob       Kind = 6
	KindPauseNamespace Kind = 7
	KindMaintain       Kind = 8
	KindFlagWorker     Kind = 9
	KindSetLimits      Kind = 10
	KindInitCluster    Kind = 11
	KindPutNode        Kind = 12
	KindDropNode       Kind = 13
	KindPutCredential  Kind = 14
	KindDropCredential Kind = 15
	KindCheckpoint     Kind = 16
	KindSetStore       Kind = 17

	KindRaiseStore Kind = 32
	KindPutJob     Kind = 33
	KindDeleteJob  Kind = 34
	KindSubmit     Kind = 35
	KindCancel     Kind = 36
	KindStoreTicks Kind = 37
	KindMove       Kind = 38
	KindPrune      Kind = 39
	KindRelease    Kind = 40
	KindFire       Kind = 41
)

// Command is one change of the state. Only this package has implementations.
type Command interface {
	Kind() Kind
	// Size estimates the encoded size in bytes, cheaply; it is never far below it.
	Size() int

	apply(*tx, Meta) Result
}

// Meta is all that a command may know besides its own fields.
type Meta struct {
	Index uint64 // the entry's place in the log
	// At is the proposer's clock, and never goes back (L8). Proposers write the cluster's time, the median of the nodes'
	// clocks (cluster.Clock), so that the greatest At is all that replicas need to agree on.
	At job.Instant
}

// Result answers one command. Err is always a *job.Error.
type Result struct {
	Value any
	Err   error
}

func refuse(e *job.Error) Result { return Result{Err: e} }

// ErrReplayed answers the commands of an entry that was applied before: nothing was applied now, and what the first time
// answered is not known any more. Raft may commit a proposal twice that its proposer sent again after "leadership lost".
var ErrReplayed = &job.Error{Code: job.Unknown, Reason: "replayed", Message: "this was applied before; repeat the request with the same id to see its outcome"}

// Origin names an entry: the node that first proposed it, that node's life, and a number that grows by one with each
// entry. An entry without a node is never taken for a replay.
type Origin struct {
	Node string `cbor:"1,keyasint,omitempty"`
	Boot string `cbor:"2,keyasint,omitempty"`
	Seq  uint64 `cbor:"3,keyasint,omitempty"`
}

// Entry is one log entry: commands that share a commit.
type Entry struct {
	Origin   Origin
	At       job.Instant
	Commands []Command
}

type wireEntry struct {
	Origin   Origin        `cbor:"1,keyasint"`
	At       job.Instant   `cbor:"2,keyasint"`
	Commands []wireCommand `cbor:"3,keyasint"`
}

type wireCommand struct {
	Kind    Kind            `cbor:"1,keyasint"`
	Version uint8           `cbor:"2,keyasint"`
	Body    cbor.RawMessage `cbor:"3,keyasint"`
	Tag     Tag             `cbor:"4,keyasint,omitzero"`
}

// coders are the one encoding and the one decoding used for the log and for snapshots. Encoding is deterministic, so
// that equal rows hash equally. Decoding refuses unknown fields: a field that this binary does not know would be
// dropped in silence. It accepts invalid UTF-8, which encoding lets pass: an entry that is in the log must be readable.
var encoder, decoder = coders()

func coders() (cbor.EncMode, cbor.DecMode) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err)
	}
	dec, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		UTF8:              cbor.UTF8DecodeInvalid,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxArrayElements:  1 << 20,
		MaxMapPairs:       1 << 20,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return enc, dec
}

// codec is how one version of a kind is read.
type codec struct {
	kind    Kind
	version uint8
	name    string
	fresh   func() Command
}

// codecs lists every kind and version that this binary reads. The last version of a kind is the one that it writes, but for
// commands that an older one can say (VersionOf).
var codecs = []codec{
	{KindRaiseEpoch, 1, "raise_epoch", func() Command { return new(RaiseEpoch) }},
	{KindGrant, 1, "grant", func() Command { return new(Grant) }},
	{KindDecide, 1, "decide", func() Command { return new(Decide) }},
	{KindPutSchedule, 1, "put_schedule", func() Command { return new(PutSchedule) }},
	{KindDropSchedule, 1, "drop_schedule", func() Command { return new(DropSchedule) }},
	{KindPauseJob, 1, "pause_job", func() Command { return new(PauseJob) }},
	{KindPauseNamespace, 1, "pause_namespace", func() Command { return new(PauseNamespace) }},
	{KindMaintain, 1, "maintain", func() Command { return new(Maintain) }},
	{KindFlagWorker, 1, "flag_worker", func() Command { return new(FlagWorker) }},
	{KindSetLimits, 1, "set_limits", func() Command { return new(SetLimits) }},
	{KindInitCluster, 1, "init_cluster", func() Command { return new(InitCluster) }},
	{KindPutNode, 1, "put_node", func() Command { return new(PutNode) }},
	{KindDropNode, 1, "drop_node", func() Command { return new(DropNode) }},
	{KindPutCredential, 1, "put_credential", func() Command { return new(PutCredential) }},
	{KindDropCredential, 1, "drop_credential", func() Command { return new(DropCredential) }},
	{KindCheckpoint, 1, "checkpoint", func() Command { return new(Checkpoint) }},
	{KindSetStore, 1, "set_store", func() Command { return new(SetStore) }},
	{KindRaiseStore, 1, "raise_store", func() Command { return new(RaiseStore) }},
	{KindPutJob, 1, "put_job", func() Command { return new(PutJob) }},
	{KindPutJob, 2, "put_job", func() Command { return new(PutJob) }},
	{KindDeleteJob, 1, "delete_job", func() Command { return new(DeleteJob) }},
	{KindSubmit, 1, "submit", func() Command { return new(Submit) }},
	{KindSubmit, 2, "submit", func() Command { return new(Submit) }},
	{KindCancel, 1, "cancel", func() Command { return new(Cancel) }},
	{KindStoreTicks, 1, "store_ticks", func() Command { return new(StoreTicks) }},
	{KindMove, 1, "move", func() Command { return new(Move) }},
	{KindMove, 2, "move", func() Command { return new(Move) }},
	{KindPrune, 1, "prune", func() Command { return new(Prune) }},
	{KindRelease, 1, "release", func() Command { return new(Release) }},
	{KindFire, 1, "fire", func() Command { return new(Fire) }},
}

// Supported answers the newest version of each kind that this binary reads. A new kind or version may be proposed only
// when every member says that it reads it.
func Supported() map[Kind]uint8 {
	m := make(map[Kind]uint8, len(codecs))
	for _, c := range codecs {
		m[c.kind] = max(m[c.kind], c.version)
	}
	return m
}

func codecOf(k Kind, version uint8) *codec {
	for i := range codecs {
		if codecs[i].kind == k && codecs[i].version == version {
			return &codecs[i]
		}
	}
	return nil
}

// Version answers the newest version of a kind.
func Version(k Kind) uint8 {
	v := uint8(0)
	for i := range codecs {
		if codecs[i].kind == k {
			v = max(v, codecs[i].version)
		}
	}
	return v
}

// VersionOf answers the version in which this binary writes a command: the newest of its kind, or an older one that says it
// as well, so that nodes which know no newer one are no obstacle to it.
func VersionOf(c Command) uint8 {
	_, c = untagged(c)
	if v, ok := c.(interface{ version() uint8 }); ok {
		return v.version()
	}
	return Version(c.Kind())
}

// Size estimates the encoded size of an entry of these commands.
func Size(commands ...Command) int {
	n := entrySlack
	for _, c := range commands {
		n += c.Size() + 16
	}
	return n
}

// EncodeEntry writes an entry in its form on disk. One that is larger than MaxEntryBytes is Invalid, reason too_large.
func EncodeEntry(origin Origin, at job.Instant, commands ...Command) ([]byte, error) {
	wire, err := encodeCommands(commands)
	if err != nil {
		return nil, err
	}
	body, err := encoder.Marshal(&wireEntry{Origin: origin, At: at, Commands: wire})
	if err != nil {
		return nil, fmt.Errorf("encode entry: %w", err)
	}
	if len(body)+1 > MaxEntryBytes {
		return nil, job.Errorf(job.Invalid, "too_large", "the request needs a log entry of %d bytes; at most %d fit", len(body)+1, MaxEntryBytes)
	}
	data := make([]byte, 1+len(body))
	data[0] = entryFormat
	copy(data[1:], body)
	return data, nil
}

// DecodeEntry reads what EncodeEntry wrote.
func DecodeEntry(data []byte) (*Entry, error) {
	if len(data) == 0 {
		return nil, fmt.Errorf("read log entry: it is empty")
	}
	if data[0] != entryFormat {
		return nil, fmt.Errorf("read log entry: format %d is not known to this version of muster", data[0])
	}
	var w wireEntry
	if err := decoder.Unmarshal(data[1:], &w); err != nil {
		return nil, fmt.Errorf("read log entry: %w", err)
	}
	commands, err := decodeCommands(w.Commands)
	if err != nil {
		return nil, fmt.Errorf("read log entry: %w", err)
	}
	return &Entry{Origin: w.Origin, At: w.At, Commands: commands}, nil
}

func encodeCommands(commands []Command) ([]wireCommand, error) {
	wire := make([]wireCommand, len(commands))
	for i, c := range commands {
		tag, c := untagged(c)
		body, err := encoder.Marshal(c)
		if err != nil {
			return nil, fmt.Errorf("encode command of kind %d: %w", c.Kind(), err)
		}
		wire[i] = wireCommand{Kind: c.Kind(), Version: VersionOf(c), Body: body, Tag: tag}
	}
	return wire, nil
}

func decodeCommands(wire []wireCommand) ([]Command, error) {
	commands := make([]Command, len(wire))
	for i := range wire {
		w := &wire[i]
		c, err := decodeCommand(w.Kind, w.Version, w.Body)
		if err != nil {
			return nil, err
		}
		if commands[i] = c; !w.Tag.IsZero() {
			commands[i] = Tagged{w.Tag, c}
		}
	}
	return commands, nil
}

func decodeCommand(kind Kind, version uint8, body []byte) (Command, error) {
	k := codecOf(kind, version)
	if k == nil {
		return nil, fmt.Errorf("command kind %d version %d is not known to this version of muster", kind, version)
	}
	c := k.fresh()
	if err := decoder.Unmarshal(body, c); err != nil {
		return nil, fmt.Errorf("command %s version %d: %w", k.name, version, err)
	}
	return c, nil
}
