package dmverity

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/go-dmverity/pkg/verity"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

const (
	blockSize = chunk.VerityBlockSize
	hashName  = "sha256"
	hashType  = 1
)

// form is what may differ between trees.
type form struct {
	block int    // bytes, of data and of the tree
	salt  []byte // before every block that is hashed
}

// ours is the form of trees that are made here. Zeros for a salt, as containerd has
// it, so that the same image has the same root everywhere.
var ours = form{block: blockSize, salt: make([]byte, sha256.Size)}

// AppendLeaves appends the digests of the blocks of image, whose length is a
// multiple of chunk.VerityBlockSize, to dst. They are what Builder.Add takes.
func AppendLeaves(dst, image []byte) []byte { return ours.appendLeaves(dst, image) }

func (f form) appendLeaves(dst, image []byte) []byte {
	block := make([]byte, len(f.salt)+f.block)
	copy(block, f.salt)
	for len(image) >= f.block {
		copy(block[len(f.salt):], image[:f.block])
		sum := sha256.Sum256(block)
		dst = append(dst, sum[:]...)
		image = image[f.block:]
	}
	return dst
}

// alignUp rounds n up to whole blocks.
func (f form) alignUp(n int64) int64 { return (n + int64(f.block) - 1) &^ (int64(f.block) - 1) }

// Builder takes in the digests of an image's blocks and makes its tree. It is not
// safe for concurrent use.
type Builder struct {
	form   form
	dir    string
	leaves *os.File
	n      int64 // digests
	last   []byte
}

// NewBuilder returns a Builder that keeps digests, 1/128 of the image, in an
// unnamed file in dir. Close gives it back.
func NewBuilder(dir string) (*Builder, error) { return newBuilder(dir, ours) }

func newBuilder(dir string, how form) (*Builder, error) {
	f, err := unnamed(dir)
	if err != nil {
		return nil, err
	}
	return &Builder{form: how, dir: dir, leaves: f}, nil
}

// unnamed makes a file in dir that is gone with its descriptor.
func unnamed(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), filepath.Join(dir, "(hash tree)")), nil
	}
	f, err := os.CreateTemp(dir, "lazyerofs-verity-*") // no such files on this file system
	if err != nil {
		return nil, fmt.Errorf("making a file for the hash tree: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("making a file for the hash tree: %w", err), f.Close())
	}
	return f, nil
}

// Close frees what the Builder keeps.
func (b *Builder) Close() error { return b.leaves.Close() }

// Add takes in what AppendLeaves returned for the next blocks of the image.
func (b *Builder) Add(leaves []byte) error {
	if len(leaves) == 0 {
		return nil
	}
	if _, err := b.leaves.WriteAt(leaves, b.n*sha256.Size); err != nil {
		return fmt.Errorf("keeping digests of the hash tree: %w", err)
	}
	b.n += int64(len(leaves) / sha256.Size)
	b.last = append(b.last[:0], leaves[len(leaves)-sha256.Size:]...)
	return nil
}

// Tree is a finished hash tree.
type Tree struct {
	// Verity describes it.
	Verity chunk.Verity
	// Size is its length in bytes, superblock included: a multiple of its block size.
	Size int64

	super  []byte
	upper  *os.File // levels above the leaves
	leaves io.Reader
}

// Finish makes the tree over what was added. The Builder must stay open, and take
// in nothing more, until the tree was read.
func (b *Builder) Finish() (*Tree, error) {
	if b.n == 0 {
		return nil, errors.New("making a hash tree: there is no image")
	}
	t := &Tree{Verity: chunk.Verity{HashOffset: b.n * int64(b.form.block), BlockSize: int64(b.form.block)}, leaves: io.LimitReader(nil, 0)}
	root := b.last // of an image of one block
	var upper int64
	if b.n > 1 {
		var err error
		if root, upper, err = b.climb(t); err != nil {
			return nil, fmt.Errorf("making a hash tree: %w", err)
		}
	}
	t.Verity.Root = digest.NewDigestFromBytes(digest.SHA256, root)
	var err error
	if t.super, err = b.form.superblock(root, b.n); err != nil {
		return nil, errors.Join(fmt.Errorf("making a hash tree: %w", err), t.Close())
	}
	t.Size = int64(len(t.super)) + upper
	if b.n > 1 {
		t.Size += b.form.alignUp(b.n * sha256.Size)
	}
	return t, nil
}

// climb makes the levels above the digests: to them, the blocks of digests are an
// image like any other. It returns the root and the length of these levels.
func (b *Builder) climb(t *Tree) (root []byte, length int64, err error) {
	size := b.form.alignUp(b.n * sha256.Size)
	if err := b.leaves.Truncate(size); err != nil {
		return nil, 0, err
	}
	p := verity.DefaultParams()
	p.HashName, p.HashType, p.NoSuperblock = hashName, hashType, true
	block := uint32(b.form.block)
	p.DataBlockSize, p.HashBlockSize, p.DataBlocks = block, block, uint64(size)/uint64(block)
	p.Salt, p.SaltSize = b.form.salt, uint16(len(b.form.salt))
	n, err := verity.GetHashTreeSize(&p)
	if err != nil {
		return nil, 0, err
	}
	if t.upper, err = unnamed(b.dir); err != nil {
		return nil, 0, err
	}
	if root, err = verity.Create(&p, procPath(b.leaves), procPath(t.upper)); err != nil {
		return nil, 0, errors.Join(err, t.Close())
	}
	t.leaves = io.NewSectionReader(b.leaves, 0, size)
	return root, int64(n), nil
}

// procPath is a path by which a library opens f anew.
func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// superblock returns the block that begins the tree of an image of n blocks.
func (f form) superblock(root []byte, n int64) ([]byte, error) {
	sb := verity.NewSuperblock()
	sb.HashType, sb.DataBlockSize, sb.HashBlockSize, sb.DataBlocks = hashType, uint32(f.block), uint32(f.block), uint64(n)
	sb.SaltSize = uint16(len(f.salt))
	copy(sb.Salt[:], f.salt)
	copy(sb.UUID[:], root)
	sb.UUID[6] = sb.UUID[6]&0x0f | 0x80 // RFC 9562, version 8: for anyone's own use
	sb.UUID[8] = sb.UUID[8]&0x3f | 0x80
	b, err := sb.Serialize()
	if err != nil {
		return nil, err
	}
	return append(b, make([]byte, f.block-len(b))...), nil
}

// WriteTo writes the tree, once.
func (t *Tree) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(t.super)
	total := int64(n)
	for _, r := range []io.Reader{t.upperLevels(), t.leaves} {
		if err != nil {
			break
		}
		var m int64
		m, err = io.Copy(w, r)
		total += m
	}
	if err == nil && total != t.Size {
		err = fmt.Errorf("it has %d bytes instead of %d", total, t.Size)
	}
	if err != nil {
		return total, fmt.Errorf("writing the hash tree: %w", err)
	}
	return total, nil
}

func (t *Tree) upperLevels() io.Reader {
	if t.upper == nil {
		return io.LimitReader(nil, 0)
	}
	return io.NewSectionReader(t.upper, 0, 1<<62)
}

// Close frees what the Tree keeps.
func (t *Tree) Close() error {
	if t.upper == nil {
		return nil
	}
	return t.upper.Close()
}
