package ledger

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// treeHash returns the tree hash of the first n entries, for n = 0 that of RFC 6962: the SHA-256 of nothing.
func treeHash(n int64, hashes tlog.HashReader) (tlog.Hash, error) {
	if n == 0 {
		return emptyRoot, nil
	}
	return tlog.TreeHash(n, hashes)
}

// emptyRoot is the SHA-256 of no bytes.
var emptyRoot = tlog.Hash{
	0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
	0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
}

// checkGrowth proves that a ledger of a checkpoint has grown from an older one: no entry of the older one was changed or
// removed. The error wraps ErrTampered.
func checkGrowth(older, newer *Checkpoint, hashes tlog.HashReader) error {
	switch {
	case older.Origin != newer.Origin:
		return fmt.Errorf("%w: the origin was %q and is %q", ErrTampered, older.Origin, newer.Origin)
	case older.Size > newer.Size:
		return fmt.Errorf("%w: it had %d entries and has %d: this is an older copy", ErrTampered, older.Size, newer.Size)
	case older.Size == newer.Size:
		if older.Root != newer.Root {
			return forked(older.Size)
		}
		return nil
	case older.Size == 0:
		return nil
	}
	proof, err := tlog.ProveTree(newer.Size, older.Size, hashes)
	if err != nil {
		return fmt.Errorf("%w: the stored hashes: %w", ErrTampered, err)
	}
	if tlog.CheckTree(proof, newer.Size, newer.Root, older.Size, older.Root) != nil {
		return forked(older.Size)
	}
	return nil
}

func forked(size int64) error {
	return fmt.Errorf("%w: the first %d entries are not those of the checkpoint that was seen before", ErrTampered, size)
}

// memory is a hash reader that reads each hash once. For one transaction, and one goroutine.
type memory struct {
	stored tlog.HashReader
	known  map[int64]tlog.Hash // also those that the transaction adds
}

func remember(stored tlog.HashReader) *memory { return &memory{stored, map[int64]tlog.Hash{}} }

// ReadHashes implements tlog.HashReader.
func (m *memory) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var missing []int64
	for _, index := range indexes {
		if _, ok := m.known[index]; !ok {
			missing = append(missing, index)
		}
	}
	if missing != nil {
		found, err := m.stored.ReadHashes(missing)
		if err != nil {
			return nil, err
		}
		for i, hash := range found {
			m.known[missing[i]] = hash
		}
	}
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		out[i] = m.known[index]
	}
	return out, nil
}

// frontier computes the tree hash of leaves that come one after the other.
type frontier struct {
	size     int64
	subtrees []subtree // complete ones, from left to right
}

// add adds a leaf. node, if it is not nil, is called with each subtree that it completes, and how many of its level are before.
func (f *frontier) add(leaf tlog.Hash, node func(s subtree, n int64)) {
	s, n := subtree{hash: leaf}, f.size
	for {
		if node != nil {
			node(s, n)
		}
		last := len(f.subtrees) - 1
		if last < 0 || f.subtrees[last].level != s.level {
			break
		}
		s, n = subtree{s.level + 1, tlog.NodeHash(f.subtrees[last].hash, s.hash)}, n/2
		f.subtrees = f.subtrees[:last]
	}
	f.subtrees = append(f.subtrees, s)
	f.size++
}

// root returns the tree hash of the leaves so far.
func (f *frontier) root() tlog.Hash {
	if len(f.subtrees) == 0 {
		return emptyRoot
	}
	root := f.subtrees[len(f.subtrees)-1].hash
	for i := len(f.subtrees) - 2; i >= 0; i-- {
		root = tlog.NodeHash(f.subtrees[i].hash, root)
	}
	return root
}

// subtree is the hash of a complete subtree.
type subtree struct {
	level int
	hash  tlog.Hash
}
