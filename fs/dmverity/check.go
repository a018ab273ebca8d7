package dmverity

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/go-dmverity/pkg/verity"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// ErrMismatch marks an image, a tree and a root that do not go together.
var ErrMismatch = errors.New("the hash tree does not match")

func mismatch(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMismatch}, args...)...)
}

// Super reads the superblock of the tree that v describes from image data and holds
// it against v and against what can be used here. It returns the tree's salt. A
// difference wraps ErrMismatch.
func Super(image io.ReaderAt, v chunk.Verity) (salt []byte, err error) {
	var raw [verity.SuperblockSize]byte
	if n, err := image.ReadAt(raw[:], v.HashOffset); n < len(raw) {
		return nil, fmt.Errorf("reading the superblock of the hash tree: %w", err)
	}
	sb, err := verity.ReadSuperblock(bytes.NewReader(raw[:]), 0)
	if err != nil {
		return nil, mismatch("no superblock is at byte %d: %w", v.HashOffset, err)
	}
	algorithm := string(bytes.TrimRight(sb.Algorithm[:], "\x00"))
	switch {
	case sb.HashType != hashType || algorithm != hashName:
		return nil, mismatch("its superblock names hash type %d with %.32q, only %d with %q is known", sb.HashType, algorithm, hashType, hashName)
	case int64(sb.DataBlockSize) != v.BlockSize || int64(sb.HashBlockSize) != v.BlockSize:
		return nil, mismatch("its superblock has blocks of %d and %d bytes, the annotation says %d", sb.DataBlockSize, sb.HashBlockSize, v.BlockSize)
	case sb.DataBlocks != uint64(v.HashOffset/v.BlockSize):
		return nil, mismatch("its superblock covers %d blocks, the image has %d", sb.DataBlocks, v.HashOffset/v.BlockSize)
	case int(sb.SaltSize) > len(sb.Salt):
		return nil, mismatch("its superblock has a salt of %d bytes", sb.SaltSize)
	}
	return sb.Salt[:sb.SaltSize], nil
}

// Checker holds image data, which it is given from the first byte to the last,
// against its hash tree: every block of both.
type Checker struct {
	v     chunk.Verity
	b     *Builder
	tail  *os.File // the tree as it is
	n     int64    // bytes that came
	part  []byte   // of a block
	leafs []byte
}

// NewChecker reads the tree's superblock from image. The tree, 1/127 of the image,
// waits in an unnamed file in dir. A superblock that does not go with v wraps
// ErrMismatch. Close frees it.
func NewChecker(dir string, image io.ReaderAt, v chunk.Verity) (*Checker, error) {
	salt, err := Super(image, v)
	if err != nil {
		return nil, err
	}
	b, err := newBuilder(dir, form{block: int(v.BlockSize), salt: salt})
	if err != nil {
		return nil, err
	}
	tail, err := unnamed(dir)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return &Checker{v: v, b: b, tail: tail}, nil
}

// Write takes in image data.
func (c *Checker) Write(p []byte) (int, error) {
	total := len(p)
	if n := min(int64(len(p)), max(c.v.HashOffset-c.n, 0)); n > 0 {
		c.part = append(c.part, p[:n]...)
		whole := len(c.part) / c.b.form.block * c.b.form.block
		c.leafs = c.b.form.appendLeaves(c.leafs[:0], c.part[:whole])
		c.part = append(c.part[:0], c.part[whole:]...)
		if err := c.b.Add(c.leafs); err != nil {
			return 0, err
		}
		c.n += n
		p = p[n:]
	}
	if len(p) > 0 {
		if _, err := c.tail.WriteAt(p, c.n-c.v.HashOffset); err != nil {
			return total - len(p), fmt.Errorf("keeping the hash tree: %w", err)
		}
		c.n += int64(len(p))
	}
	return total, nil
}

// Finish gives the verdict, once all image data was written. A difference wraps
// ErrMismatch.
func (c *Checker) Finish() (err error) {
	if c.n < c.v.HashOffset {
		return mismatch("it begins at byte %d of %d", c.v.HashOffset, c.n)
	}
	want, err := c.b.Finish()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, want.Close()) }()
	if want.Verity.Root != c.v.Root {
		return mismatch("the image's root is %s, its annotation says %s", want.Verity.Root, c.v.Root)
	}
	if have := c.n - c.v.HashOffset; have != want.Size {
		return mismatch("it has %d bytes instead of %d", have, want.Size)
	}
	// The superblock was looked at; its UUID is anybody's choice.
	_, err = want.WriteTo(&comparing{file: c.tail, skip: c.v.BlockSize})
	return err
}

// Close frees what the Checker keeps.
func (c *Checker) Close() error { return errors.Join(c.b.Close(), c.tail.Close()) }

// comparing holds what is written to it against a file, from skip on.
type comparing struct {
	file      io.ReaderAt
	off, skip int64
	buf       []byte
}

// Write implements io.Writer.
func (c *comparing) Write(p []byte) (int, error) {
	c.buf = append(c.buf[:0], p...)
	if _, err := c.file.ReadAt(c.buf, c.off); err != nil {
		return 0, fmt.Errorf("reading the hash tree back: %w", err)
	}
	for i := range p {
		if p[i] != c.buf[i] && c.off+int64(i) >= c.skip {
			return i, mismatch("its byte %d is wrong", c.off+int64(i))
		}
	}
	c.off += int64(len(p))
	return len(p), nil
}
