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

// subtree is the hash of a complete subtree.
type subtree struct {
	level int
	hash  tlog.Hash
}

// grow adds a leaf to the complete subtrees of a tree, from left to right, and calls each, if it is not nil, for the nodes
// that the leaf completes.
func grow(subtrees []subtree, leaf tlog.Hash, each func(node subtree)) []subtree {
	for node := (subtree{hash: leaf}); ; {
		if each != nil {
			each(node)
		}
		last := len(subtrees) - 1
		if last < 0 || subtrees[last].level != node.level {
			return append(subtrees, node)
		}
		node = subtree{node.level + 1, tlog.NodeHash(subtrees[last].hash, node.hash)}
		subtrees = subtrees[:last]
	}
}

// rootOf returns the tree hash of the leaves.
func rootOf(subtrees []subtree) tlog.Hash {
	if len(subtrees) == 0 {
		return emptyRoot
	}
	root := subtrees[len(subtrees)-1].hash
	for i := len(subtrees) - 2; i >= 0; i-- {
		root = tlog.NodeHash(subtrees[i].hash, root)
	}
	return root
}
