package gateway

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// maxParts bounds the starts, pieces of output, results, and words of a hello in one message. One of them may be two bytes
// long and takes over a hundred when it is decoded: without a bound a few messages fill the memory of a node.
const maxParts = 1 << 16

// codec is Connect's own for protobuf, which it replaces by its name, with that bound.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(m any) ([]byte, error) { return proto.Marshal(m.(proto.Message)) }

func (codec) MarshalAppend(b []byte, m any) ([]byte, error) {
	return proto.MarshalOptions{}.MarshalAppend(b, m.(proto.Message))
}

func (codec) Unmarshal(b []byte, m any) error {
	if n := parts(b, true); n > maxParts {
		return fmt.Errorf("the message has %d parts; up to %d are taken", n, maxParts)
	}
	return proto.Unmarshal(b, m.(proto.Message))
}

// parts counts the fields of an encoded WorkerMessage that have a length, and those of its hello. It counts up to what is
// malformed, which Unmarshal refuses.
func parts(b []byte, outer bool) (n int) {
	for len(b) > 0 {
		field, kind, head := protowire.ConsumeTag(b)
		if head < 0 {
			return n
		}
		size := protowire.ConsumeFieldValue(field, kind, b[head:])
		if size < 0 {
			return n
		}
		if kind == protowire.BytesType {
			n++
			if outer && field == 1 {
				hello, _ := protowire.ConsumeBytes(b[head:])
				n += parts(hello, false)
			}
		}
		b = b[head+size:]
	}
	return n
}
