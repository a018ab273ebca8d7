package differ

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	digest "github.com/opencontainers/go-digest"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/dmverity"
)

// emitter is the second pass: it loads, compresses and checks chunks on all
// cores and writes them in order.
type emitter struct {
	cfg  Config
	st   *store
	plan *plan
	pool *pool

	// Owned by the pool's sink until it has ended.
	dst       io.Writer
	blobSum   hash.Hash
	imageSum  hash.Hash
	blobOff   int64
	imageOff  int64
	index     *chunk.IndexBuilder
	metaEnd   chunkEnd
	firstEnd  chunkEnd
	dataSeen  int
	indexSize int64
	indexID   digest.Digest

	tree   *dmverity.Builder // nil: no hash tree
	verity *chunk.Verity     // set once the tree is written
}

// chunkEnd is where a chunk ends in the image data and in the blob.
type chunkEnd struct{ image, blob int64 }

func newEmitter(cfg Config, st *store, p *plan, dst io.Writer) *emitter {
	codec := chunk.CodecZstd
	if cfg.Form == Raw {
		codec = chunk.CodecNone
	}
	return &emitter{
		cfg: cfg, st: st, plan: p, dst: dst,
		blobSum: sha256.New(), imageSum: sha256.New(),
		index: chunk.NewIndexBuilder(codec, sha256.Size),
	}
}

// run writes metadata, data, the hash tree if there is to be one, and index.
func (e *emitter) run(ctx context.Context, writeMeta func(io.Writer) error) (err error) {
	load := e.load
	if e.cfg.Verity {
		if e.tree, err = dmverity.NewBuilder(e.cfg.SpoolDir); err != nil {
			return err
		}
		builder := e.tree
		defer func() { err = errors.Join(err, builder.Close()) }()
		load = e.loadHashed
	}
	e.pool = newPool(ctx, e.cfg, load, e.write)
	err = e.feed(writeMeta)
	if perr := e.pool.wait(); perr != nil {
		return perr
	}
	if err != nil {
		return err
	}
	if e.tree != nil {
		if err := e.writeTree(ctx); err != nil {
			return err
		}
	}
	return e.writeIndex()
}

// feed submits all chunks in the order of the image.
func (e *emitter) feed(writeMeta func(io.Writer) error) error {
	m := metaWriter{e: e}
	if err := writeMeta(&m); err != nil {
		return fmt.Errorf("writing metadata: %w", err)
	}
	if m.cur != nil {
		e.pool.submit(m.cur)
	}
	for _, p := range e.plan.pieces {
		j, err := e.pool.get()
		if err != nil {
			return err
		}
		j.piece = p
		e.pool.submit(j)
	}
	return nil
}

// metaWriter cuts metadata into chunks.
type metaWriter struct {
	e   *emitter
	cur *job
}

// Write implements io.Writer.
func (m *metaWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if m.cur == nil {
			j, err := m.e.pool.get()
			if err != nil {
				return total - len(p), err
			}
			j.piece = piece{meta: true}
			m.cur = j
		}
		n := min(len(p), int(m.e.cfg.ChunkSize)-len(m.cur.data))
		m.cur.data = append(m.cur.data, p[:n]...)
		p = p[n:]
		if len(m.cur.data) == int(m.e.cfg.ChunkSize) {
			m.e.pool.submit(m.cur)
			m.cur = nil
		}
	}
	return total, nil
}

// load runs on the pool's workers: it fills in what the piece of a job says.
func (e *emitter) load(c *codec, j *job) error {
	switch {
	case j.piece.meta:
	case j.piece.frame >= 0:
		return e.loadFrame(c, j)
	default:
		if err := e.loadSmall(j); err != nil {
			return err
		}
	}
	j.store = c.encode(j.store[:0], j.data)
	j.sum = sha256.Sum256(j.store)
	return nil
}

// loadFrame reads a chunk of a big file back.
func (e *emitter) loadFrame(c *codec, j *job) error {
	f := &e.st.frames[j.piece.frame]
	j.store = resize(j.store, f.stored)
	if err := e.st.big.readFull(j.store, f.off, f.check); err != nil {
		return err
	}
	j.sum = f.sum
	var err error
	if j.data, err = c.decode(j.data[:0], j.store); err != nil {
		return err
	}
	if len(j.data) != f.data {
		return fmt.Errorf("spooled chunk holds %d bytes instead of %d", len(j.data), f.data)
	}
	return nil
}

func (e *emitter) loadSmall(j *job) error {
	j.data = j.data[:0]
	for _, f := range e.plan.smalls[j.piece.from:j.piece.to] {
		at := len(j.data)
		j.data = resize(j.data, at+int(alignUp(f.size)))
		clear(j.data[at+int(f.size):])
		if err := e.st.small.readFull(j.data[at:at+int(f.size)], f.off, f.check); err != nil {
			return err
		}
	}
	return nil
}

// resize returns b with length n; what was in b stays.
func resize(b []byte, n int) []byte {
	if n <= cap(b) {
		return b[:n]
	}
	return append(b, make([]byte, n-len(b))...)
}

// write runs on the pool's sink.
func (e *emitter) write(j *job) error {
	if err := e.index.Add(e.blobOff, e.imageOff, j.sum[:]); err != nil {
		return err
	}
	if err := e.store(j); err != nil {
		return err
	}
	e.imageOff += int64(len(j.data))
	if e.tree != nil {
		if err := e.tree.Add(j.leaves); err != nil {
			return err
		}
	}
	end := chunkEnd{image: e.imageOff, blob: e.blobOff}
	if j.piece.meta {
		e.metaEnd = end
		return nil
	}
	if e.dataSeen++; e.dataSeen == e.plan.prefetch {
		e.firstEnd = end
	}
	return nil
}

// store appends a chunk to the blob, and to the digest of the image meanwhile: both
// go through every byte in order, which no number of cores makes faster.
func (e *emitter) store(j *job) error {
	if e.cfg.Form == Raw {
		return e.put(j.store)
	}
	var image sync.WaitGroup
	image.Go(func() { e.imageSum.Write(j.data) })
	err := e.put(j.store)
	image.Wait()
	return err
}

// put appends p to the blob.
func (e *emitter) put(p []byte) error {
	if _, err := e.dst.Write(p); err != nil {
		return fmt.Errorf("writing the layer: %w", err)
	}
	e.blobSum.Write(p)
	e.blobOff += int64(len(p))
	return nil
}

// writeIndex ends the blob.
func (e *emitter) writeIndex() error {
	section := e.index.Bytes(e.imageOff)
	e.indexID = digest.FromBytes(section)
	if e.cfg.Form == Zstd {
		section = chunk.AppendSkippableFrame(nil, section)
	}
	e.indexSize = int64(len(section))
	return e.put(section)
}
