package differ

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/lazyerofs/lazyerofs/fs/dmverity"
)

// loadHashed is load for an image that gets a hash tree: the digests of the blocks
// are made on the workers too.
func (e *emitter) loadHashed(c *codec, j *job) error {
	if err := e.load(c, j); err != nil {
		return err
	}
	if len(j.data)%blockSize != 0 {
		return fmt.Errorf("a chunk of %d bytes cannot be in a hash tree", len(j.data))
	}
	j.leaves = dmverity.AppendLeaves(j.leaves[:0], j.data)
	return nil
}

// writeTree appends the hash tree of all that was written as chunks of its own: a
// mount never reads it, and whoever has the image alone has the same chunks.
func (e *emitter) writeTree(ctx context.Context) (err error) {
	tree, err := e.tree.Finish()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	e.tree = nil // the tree is not in itself
	c, err := newCodec(e.cfg)
	if err != nil {
		return err
	}
	defer c.close()
	w := &treeWriter{ctx: ctx, e: e, c: c}
	if _, err := tree.WriteTo(w); err != nil {
		return err
	}
	e.verity = &tree.Verity
	return w.flush()
}

// treeWriter cuts a hash tree into chunks.
type treeWriter struct {
	ctx context.Context // of the one conversion
	e   *emitter
	c   *codec
	j   job
}

// Write implements io.Writer.
func (w *treeWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n := min(len(p), int(w.e.cfg.ChunkSize)-len(w.j.data))
		w.j.data = append(w.j.data, p[:n]...)
		p = p[n:]
		if len(w.j.data) == int(w.e.cfg.ChunkSize) {
			if err := w.flush(); err != nil {
				return total - len(p), err
			}
		}
	}
	return total, nil
}

func (w *treeWriter) flush() error {
	if err := w.ctx.Err(); err != nil {
		return context.Cause(w.ctx)
	}
	if len(w.j.data) == 0 {
		return nil
	}
	if err := w.c.pack(&w.j); err != nil {
		return err
	}
	for _, sink := range w.e.sinks() {
		if err := sink(&w.j); err != nil {
			return err
		}
	}
	w.j.data = w.j.data[:0]
	return nil
}

// addTree appends the hash tree of the image in f, which is to become LayerFile in
// dir, and says so beside it. The file that says so comes first: alone it means
// nothing.
func addTree(dir string, f *os.File) (err error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("making a hash tree: %w", err)
	}
	b, err := dmverity.NewBuilder(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	buf := make([]byte, scanLen)
	var leaves []byte
	for off := int64(0); off < size; off += int64(len(buf)) {
		n, err := io.ReadFull(io.NewSectionReader(f, off, size-off), buf)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) || n%blockSize != 0 {
			return fmt.Errorf("making a hash tree: %d bytes at %d of %d: %w", n, off, size, err)
		}
		leaves = dmverity.AppendLeaves(leaves[:0], buf[:n])
		if err := b.Add(leaves); err != nil {
			return err
		}
	}
	tree, err := b.Finish()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	if _, err := tree.WriteTo(io.NewOffsetWriter(f, size)); err != nil {
		return err
	}
	return dmverity.WriteSidecar(filepath.Join(dir, LayerFile), tree.Verity)
}

// removeSidecar removes what addTree said beside LayerFile in dir, if it did.
func removeSidecar(dir string) error {
	err := os.Remove(filepath.Join(dir, LayerFile+dmverity.SidecarSuffix))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing what was said of a hash tree: %w", err)
	}
	return nil
}
