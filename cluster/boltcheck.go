package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
)

// checkBolt looks at a bolt file before bolt maps it into memory and trusts it: a page behind the end of a truncated file
// would end the process with a signal, and a damaged branch page can send bolt round in circles until memory is full. It
// reads what bolt writes: meta pages 0 and 1, of which the valid one of the newer transaction counts, and the tree of
// pages below it. Numbers are in the machine's byte order. It reads the heads of pages, not the entries in them.
func checkBolt(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open raft log: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open raft log: %w", err)
	}
	if info.Size() == 0 {
		return nil
	}
	if err := checkBoltFile(f, info.Size()); err != nil {
		return fmt.Errorf("the raft log %s is damaged: %w; %s", path, err, whatToDo(filepath.Dir(path)))
	}
	return nil
}

// What bolt has on disk.
const (
	boltMagic    = 0xED0CDAED
	boltHeader   = 16 // of a page: id (8), flags (2), count (2), overflow (4)
	boltElement  = 16 // of a branch: pos (4), key (4), page (8); of a leaf: flags (4), pos (4), key (4), value (4)
	boltMeta     = 64 // magic, version, page size, flags (4 each), root, sequence, freelist, pages, transaction, checksum (8 each)
	boltBranch   = 0x01
	boltLeaf     = 0x02
	boltFreelist = 0x10
	boltBucket   = 0x01      // flag of a leaf's element: its value begins with the page of a tree of its own
	boltNoList   = 1<<64 - 1 // instead of the freelist's page
	boltManyFree = 0xFFFF    // a freelist that is longer has its length in front
)

var boltOrder = binary.NativeEndian

type boltFile struct {
	f        *os.File
	pageSize int64
	pages    uint64
	seen     map[uint64]bool
}

type boltMetaPage struct {
	pageSize                    int64
	root, freelist, pages, txid uint64
}

func checkBoltFile(f *os.File, size int64) error {
	meta := func(at int64) (m boltMetaPage, ok bool) {
		b := make([]byte, boltMeta)
		if _, err := f.ReadAt(b, at+boltHeader); err != nil {
			return m, false
		}
		h := fnv.New64a()
		_, _ = h.Write(b[:boltMeta-8])
		if boltOrder.Uint32(b) != boltMagic || boltOrder.Uint64(b[boltMeta-8:]) != h.Sum64() {
			return m, false
		}
		u := func(i int) uint64 { return boltOrder.Uint64(b[16+8*i:]) }
		return boltMetaPage{int64(boltOrder.Uint32(b[8:])), u(0), u(2), u(3), u(4)}, true
	}
	m, ok := meta(0)
	if !ok {
		m.pageSize = int64(os.Getpagesize())
	}
	if second, valid := meta(m.pageSize); valid && (!ok || second.txid > m.txid) {
		m, ok = second, true
	}
	switch {
	case !ok || m.pageSize < 512 || m.pages > 1<<40:
		return errors.New("neither of its meta pages is valid")
	case size/m.pageSize < int64(m.pages):
		return fmt.Errorf("it is truncated, it has %d bytes of %d", size, int64(m.pages)*m.pageSize)
	}
	b := &boltFile{f: f, pageSize: m.pageSize, pages: m.pages, seen: map[uint64]bool{}}
	if err := b.freelist(m.freelist); err != nil {
		return err
	}
	return b.tree(m.root)
}

// page reads the head of a page: n bytes, which lie within it. It refuses one that it has seen.
func (b *boltFile) page(id uint64) (flags, count uint16, bytes int64, err error) {
	if id < 2 || id >= b.pages {
		return 0, 0, 0, fmt.Errorf("page %d is referred to and does not exist", id)
	}
	if b.seen[id] {
		return 0, 0, 0, fmt.Errorf("page %d is in two places", id)
	}
	b.seen[id] = true
	h := make([]byte, boltHeader)
	if _, err := b.f.ReadAt(h, int64(id)*b.pageSize); err != nil {
		return 0, 0, 0, fmt.Errorf("read page %d: %w", id, err)
	}
	overflow := uint64(boltOrder.Uint32(h[12:]))
	if got := boltOrder.Uint64(h); got != id || overflow >= b.pages-id {
		return 0, 0, 0, fmt.Errorf("page %d has the head of another one", id)
	}
	return boltOrder.Uint16(h[8:]), boltOrder.Uint16(h[10:]), int64(overflow+1) * b.pageSize, nil
}

func (b *boltFile) freelist(id uint64) error {
	if id == boltNoList {
		return nil
	}
	flags, count, bytes, err := b.page(id)
	if err != nil {
		return err
	}
	free, first := uint64(count), uint64(0)
	if count == boltManyFree {
		h := make([]byte, 8)
		if _, err := b.f.ReadAt(h, int64(id)*b.pageSize+boltHeader); err != nil {
			return fmt.Errorf("read page %d: %w", id, err)
		}
		free, first = boltOrder.Uint64(h), 1
	}
	if flags != boltFreelist || free > b.pages || boltHeader+8*int64(free+first) > bytes {
		return fmt.Errorf("page %d is no list of free pages", id)
	}
	list := make([]byte, 8*free)
	if _, err := b.f.ReadAt(list, int64(id)*b.pageSize+boltHeader+8*int64(first)); err != nil {
		return fmt.Errorf("read page %d: %w", id, err)
	}
	for ; len(list) > 0; list = list[8:] {
		if p := boltOrder.Uint64(list); p < 2 || p >= b.pages {
			return fmt.Errorf("page %d lists a page that does not exist", id)
		}
	}
	return nil
}

// tree checks a page and those below it. Since no page is seen twice it ends.
func (b *boltFile) tree(id uint64) error {
	flags, count, bytes, err := b.page(id)
	if err != nil {
		return err
	}
	table := boltElement * int64(count)
	if flags != boltBranch && flags != boltLeaf || boltHeader+table > bytes || flags == boltBranch && count == 0 {
		return fmt.Errorf("page %d is no page of a tree", id)
	}
	e := make([]byte, table)
	if _, err := b.f.ReadAt(e, int64(id)*b.pageSize+boltHeader); err != nil {
		return fmt.Errorf("read page %d: %w", id, err)
	}
	for at := int64(boltHeader); len(e) > 0; e, at = e[boltElement:], at+boltElement {
		u := func(i int) int64 { return int64(boltOrder.Uint32(e[4*i:])) }
		if flags == boltBranch {
			if at+u(0)+u(1) > bytes {
				return fmt.Errorf("page %d has a key that reaches beyond it", id)
			}
			if err := b.tree(boltOrder.Uint64(e[8:])); err != nil {
				return err
			}
			continue
		}
		value := at + u(1) + u(2)
		if value+u(3) > bytes {
			return fmt.Errorf("page %d has a value that reaches beyond it", id)
		}
		if u(0)&boltBucket == 0 {
			continue
		}
		root := make([]byte, 8)
		if _, err := b.f.ReadAt(root, int64(id)*b.pageSize+value); err != nil {
			return fmt.Errorf("read page %d: %w", id, err)
		}
		if r := boltOrder.Uint64(root); r != 0 { // 0: the tree is within this page
			if err := b.tree(r); err != nil {
				return err
			}
		}
	}
	return nil
}
