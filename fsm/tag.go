package fsm

import (
	"fmt"

	"github.com/musterhq/muster/job"
)

// Tag marks a command that was proposed through another node than the one that put it into the log. The node that chose
// it, at random, finds the answer by it when it applies the entry itself: see State.Expect. A tag serves one proposal; a
// proposal that is sent again takes new ones, since both copies may be in the log.
type Tag [16]byte

// IsZero tells whether it is no tag at all.
func (t Tag) IsZero() bool { return t == Tag{} }

// Tagged is a command with its tag. It does what the command does; the tag is no part of the state.
type Tagged struct {
	Tag Tag
	Command
}

// Size implements Command.
func (t Tagged) Size() int { return t.Command.Size() + tagSize }

const tagSize = 20 // on the wire

// untagged takes a tag off. The zero tag is none.
func untagged(c Command) (Tag, Command) {
	switch t := c.(type) {
	case Tagged:
		return t.Tag, t.Command
	case *Tagged:
		return t.Tag, t.Command
	}
	return Tag{}, c
}

// Forwardable tells whether a leader takes commands of a kind from other nodes. They are what the API of any node
// proposes: births, cancels, definitions, what people set, and checkpoints. Whatever only a leader decides is not among
// them, so that no mistake of a node that does not lead can move a run or an epoch.
func Forwardable(k Kind) bool {
	switch k {
	case KindSubmit, KindCancel, KindPutJob, KindDeleteJob, KindPutSchedule, KindDropSchedule, KindPauseJob,
		KindPauseNamespace, KindMaintain, KindFlagWorker, KindSetLimits, KindPutNode, KindDropNode, KindPutCredential,
		KindDropCredential, KindCheckpoint, KindSetStore:
		return true
	}
	return false
}

const commandsFormat = 1

type wireCommands struct {
	Commands []wireCommand `cbor:"1,keyasint"`
}

// EncodeCommands writes commands with their tags for another node.
func EncodeCommands(commands []Command) ([]byte, error) {
	wire, err := encodeCommands(commands)
	if err != nil {
		return nil, err
	}
	body, err := encoder.Marshal(&wireCommands{wire})
	if err != nil {
		return nil, fmt.Errorf("encode commands: %w", err)
	}
	return append([]byte{commandsFormat}, body...), nil
}

// DecodeCommands reads what EncodeCommands wrote. What this version of muster cannot read is Unavailable, reason
// upgrade_pending; what is no encoding at all is Invalid. The caller bounds the length of data.
func DecodeCommands(data []byte) ([]Command, error) {
	if len(data) == 0 || data[0] != commandsFormat {
		return nil, job.Errorf(job.Invalid, "unreadable", "the commands are in a form that this version of muster does not know")
	}
	var w wireCommands
	if err := decoder.Unmarshal(data[1:], &w); err != nil {
		return nil, unreadable(err)
	}
	for i := range w.Commands {
		if c := &w.Commands[i]; codecOf(c.Kind, c.Version) == nil {
			return nil, job.Errorf(job.Unavailable, "upgrade_pending", "command kind %d version %d is not known to this node's version of muster", c.Kind, c.Version)
		}
	}
	commands, err := decodeCommands(w.Commands)
	if err != nil {
		return nil, unreadable(err)
	}
	return commands, nil
}

func unreadable(cause error) *job.Error {
	return &job.Error{Code: job.Invalid, Reason: "unreadable", Message: "the commands cannot be read", Cause: cause}
}
