package fusetree

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// parse reads the metadata of a layer, which is in image, with the strict parser:
// what the kernel is shown here passed it too. It reads the data file as it is,
// because all metadata is in there before a mount, whatever a residency bitmap that
// was not flushed says to a successor; what else the parser reads of it, it does
// not look at.
func parse(l driver.Layer) (p *erofs.Parsed, image *os.File, err error) {
	data, err := l.Data().Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("looking at its data: %w", err)
	}
	policy, image := erofs.DefaultPolicy(driver.ImageSize(l, data.Size())), l.Data()
	if meta := l.Meta(); meta != nil {
		if policy, err = policyBeside(meta, data.Size()); err != nil {
			return nil, nil, err
		}
		image = meta
	}
	p, err = erofs.Parse(image, policy)
	return p, image, err
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
	p, image, err := parse(l)
	if err != nil {
		return nil, err
	}
	return newTree(p, image, []driver.Layer{l, l}, d.stats)
}

// imageTree is the tree of a stack of layers, bottom first.
func (d *Driver) imageTree(layers []driver.Layer) (*tree, error) {
	trees := make([]*erofs.Tree, len(layers))
	opts := erofs.WriteOptions{Devices: make([]erofs.Device, len(layers)), BlockBits: 12}
	for k, l := range layers {
		p, _, err := parse(l)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.ID(), err)
		}
		trees[k] = p.Tree
		opts.BlockBits = min(opts.BlockBits, p.BlockBits)
	}
	for k, l := range layers {
		data, err := l.Data().Stat()
		if err != nil {
			return nil, fmt.Errorf("looking at the data of layer %s: %w", l.ID(), err)
		}
		block := int64(1) << opts.BlockBits
		opts.Devices[k].Blocks = uint64((data.Size() + block - 1) / block)
	}
	t, err := erofs.Merge(trees...)
	if err != nil {
		return nil, err
	}
	return writtenTree(t, opts, append([]driver.Layer{nil}, layers...), d.stats)
}

// writtenTree serves t, written out to memory of its own: that takes less than t,
// and is served as the metadata of a layer is. The numbers of its inodes are those
// of erofs.Layout, so a successor has them too.
func writtenTree(t *erofs.Tree, opts erofs.WriteOptions, layers []driver.Layer, stats *counters) (s *tree, err error) {
	layout, err := erofs.NewLayout(t, opts)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("lazyerofs-image", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making memory for the metadata: %w", err)
	}
	f := os.NewFile(uintptr(fd), "lazyerofs-image")
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if _, err := layout.WriteMeta(f, 0); err != nil {
		return nil, err
	}
	policy := erofs.DefaultPolicy(layout.MetaSize())
	policy.Devices = opts.Devices
	p, err := erofs.Parse(f, policy)
	if err != nil {
		return nil, err
	}
	if s, err = newTree(p, f, layers, stats); err == nil {
		s.own = f
	}
	return s, err
}

// hasACL reports whether any inode has an access control list. Where none has,
// the kernel need not ask for one at every step of a path.
func hasACL(t *erofs.Tree) bool {
	for i := range t.Len() {
		for name := range t.Xattrs(erofs.Inode(i)) {
			if string(name) == erofs.XattrACLAccess || string(name) == erofs.XattrACLDefault {
				return true
			}
		}
	}
	return false
}
