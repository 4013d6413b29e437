package fsm

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/musterhq/muster/job"
)

// SnapshotInfo reads a whole snapshot, and fails on whatever Restore would fail on: a wrong checksum, and a section or a
// row that this version of muster cannot read. It keeps one row in memory at a time. epoch is the highest in it, the
// store's included.
func SnapshotInfo(r io.Reader) (clusterID string, index uint64, epoch job.Epoch, err error) {
	var g globals
	checks := map[byte]func([]byte) error{
		sectionWindows: func(b []byte) error { return decoder.Unmarshal(b, new(window)) },
		sectionGlobals: func(b []byte) error { return decoder.Unmarshal(b, &g) },
	}
	for _, t := range newTables().sectionsOf(nil) {
		checks[t.number] = t.check
	}
	err = readSections(r, func(number byte) (func([]byte) error, error) {
		if checks[number] == nil {
			return nil, errUnknownSection(number)
		}
		return checks[number], nil
	}, func() {})
	if err != nil {
		return "", 0, 0, fmt.Errorf("read the snapshot: %w", err)
	}
	return g.ClusterID, g.Index, max(g.Epoch, g.StoreEpoch), nil
}

// RaiseSnapshotEpoch copies a snapshot, and makes its epoch max(what it is, atLeast) + 1, as RaiseEpoch does: whatever
// leads before the copy is restored is fenced out by it, and no fence of either history is issued twice. It streams, so a
// damaged snapshot shows at its end only: after an error, what was written is to be thrown away. Rows are copied as they
// are; SnapshotInfo tells whether they can be read.
func RaiseSnapshotEpoch(r io.Reader, w io.Writer, atLeast job.Epoch) error {
	if err := raiseSnapshotEpoch(r, w, atLeast); err != nil {
		return fmt.Errorf("raise the epoch of the snapshot: %w", err)
	}
	return nil
}

func raiseSnapshotEpoch(r io.Reader, out io.Writer, atLeast job.Epoch) error {
	sum := crc32.New(castagnoli)
	w := bufio.NewWriterSize(io.MultiWriter(out, sum), 256<<10)
	w.WriteString(snapshotMagic)
	w.WriteByte(snapshotFormat)
	sec := section{w: w}
	raised := false
	err := readSections(r, func(number byte) (func([]byte) error, error) {
		sec.begin(number)
		if number != sectionGlobals {
			return sec.raw, nil
		}
		return func(b []byte) error {
			var g globals
			if err := decoder.Unmarshal(b, &g); err != nil {
				return err
			}
			highest := max(g.Epoch, g.StoreEpoch, atLeast)
			if highest == 1<<32-1 {
				return errors.New("no epoch is left")
			}
			g.Epoch, raised = highest+1, true
			return sec.row(&g)
		}, nil
	}, sec.end)
	switch {
	case err != nil:
		return err
	case !raised:
		return errors.New("the snapshot has no epoch")
	}
	w.WriteByte(sectionEnd)
	if err := w.Flush(); err != nil { // which repeats the first error of any write
		return err
	}
	_, err = out.Write(binary.BigEndian.AppendUint32(nil, sum.Sum32()))
	return err
}
