package differ

import "github.com/lazyerofs/lazyerofs/fs/erofs"

// limits bound what a layer makes us keep in memory until its end is known. A tar
// repeats itself in a thousandth of its length when it is compressed, so that
// neither the size of a blob nor the names in it say how much that is.
type limits struct {
	entries int // of the tar
	inodes  int // also those of files that were replaced, and those of whiteouts
	kept    int // bytes of names, targets and attributes, with what holds them
}

// What holds something that is kept, in bytes, about.
const (
	nameCost  = 16
	xattrCost = 32
	markCost  = 64
	linkCost  = 128
)

// layerLimits are what the strict parser accepts, so that nothing is written that it
// refuses, and a memory of 2 GiB at most.
func layerLimits() limits {
	p := erofs.DefaultPolicy(0)
	return limits{entries: p.MaxNames, inodes: p.MaxInodes, kept: int(p.MaxMeta / 2)}
}

// keep accounts for n bytes that stay in memory.
func (t *ingest) keep(n int) error {
	if t.kept += n; t.kept > t.most.kept {
		return &LimitError{What: "bytes of names, link targets and attributes", Most: int64(t.most.kept)}
	}
	return nil
}

// made accounts for an inode that was made, if it is new, and its name. Those of
// whiteouts are made when all entries are known.
func (t *ingest) made(i erofs.Inode, path, target string) error {
	if i <= t.newest {
		return nil
	}
	t.newest = i
	if err := t.room(); err != nil {
		return err
	}
	return t.named(path, 2*len(target))
}

func (t *ingest) room() error {
	if int(t.newest)+t.marks.whiteouts.len() >= t.most.inodes {
		return &LimitError{What: "files (replaced ones counted)", Most: int64(t.most.inodes)}
	}
	return nil
}

// named accounts for a name, and n bytes besides.
func (t *ingest) named(path string, n int) error {
	_, base := splitPath(path)
	return t.keep(len(base) + nameCost + n)
}
