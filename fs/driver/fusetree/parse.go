package fusetree

import (
	"errors"
	"fmt"
	"os"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// complete reports whether every byte of a layer is there.
func complete(l driver.Layer) bool {
	select {
	case <-l.Complete():
		return true
	default:
		return false
	}
}

// parse reads the metadata of a layer with the strict parser: what the kernel is
// shown here passed it too. It reads the data file as it is, because all metadata
// is in there before a mount, whatever a residency bitmap that was not flushed says
// to a successor; what else the parser reads of it, it does not look at.
func parse(l driver.Layer) (*erofs.Tree, error) {
	data, err := l.Data().Stat()
	if err != nil {
		return nil, fmt.Errorf("looking at its data: %w", err)
	}
	policy, image := erofs.DefaultPolicy(data.Size()), l.Data()
	if meta := l.Meta(); meta != nil {
		if policy, err = policyBeside(meta, data.Size()); err != nil {
			return nil, err
		}
		image = meta
	}
	parsed, err := erofs.Parse(image, policy)
	if err != nil {
		return nil, err
	}
	return parsed.Tree, nil
}

// blockBitsOffset is where a superblock says log2 of its block size
// (fs/erofs/erofs_fs.h).
const blockBitsOffset = 1024 + 12

// policyBeside holds metadata that was written beside a data file of size bytes,
// its one device.
func policyBeside(meta *os.File, size int64) (erofs.Policy, error) {
	st, err := meta.Stat()
	if err != nil {
		return erofs.Policy{}, fmt.Errorf("looking at its metadata: %w", err)
	}
	var bits [1]byte
	if _, err := meta.ReadAt(bits[:], blockBitsOffset); err != nil {
		return erofs.Policy{}, fmt.Errorf("reading its metadata: %w", err)
	}
	if bits[0] > 16 {
		return erofs.Policy{}, errors.New("its metadata has no block size")
	}
	block := int64(1) << bits[0]
	policy := erofs.DefaultPolicy(st.Size())
	policy.Devices = []erofs.Device{{Blocks: uint64((size + block - 1) / block)}}
	return policy, nil
}

// layerTree is the tree of one layer, its overlayfs marks included.
func (d *Driver) layerTree(l driver.Layer) (*tree, error) {
	t, err := parse(l)
	if err != nil {
		return nil, err
	}
	return newTree(t, []driver.Layer{l, l}, d.stats)
}

// imageTree is the tree of a stack of layers, bottom first.
func (d *Driver) imageTree(layers []driver.Layer) (*tree, error) {
	trees := make([]*erofs.Tree, len(layers))
	for k, l := range layers {
		var err error
		if trees[k], err = parse(l); err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.ID(), err)
		}
	}
	t, err := erofs.Merge(trees...)
	if err != nil {
		return nil, err
	}
	return newTree(t, append([]driver.Layer{nil}, layers...), d.stats)
}

// hasACL reports whether any inode has an access control list. Where none has,
// the kernel need not ask for one at every step of a path.
func (s *tree) hasACL() bool {
	for i := range s.t.Len() {
		for name := range s.t.Xattrs(erofs.Inode(i)) {
			if string(name) == "system.posix_acl_access" || string(name) == "system.posix_acl_default" {
				return true
			}
		}
	}
	return false
}
