package differ

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	digest "github.com/opencontainers/go-digest"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/dmverity"
)

// emitter is the second pass: it loads, compresses and checks chunks on all
// cores and writes them in order.
type emitter struct {
	cfg  Config
	data dataSource
	plan *plan
	pool *pool

	report func(done, of int64) // of data; may be nil

	// Owned by the pool's sinks until it has ended: imageSum by the second.
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

func newEmitter(cfg Config, data dataSource, p *plan, dst io.Writer) *emitter {
	codec := chunk.CodecZstd
	if cfg.Form == Raw {
		codec = chunk.CodecNone
	}
	return &emitter{
		cfg: cfg, data: data, plan: p, dst: dst,
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
	e.pool = newPool(ctx, e.cfg, load, e.sinks()...)
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
	left := e.plan.pieces
	return e.pool.feed(func(j *job) bool {
		if len(left) == 0 {
			return false
		}
		j.piece, left = left[0], left[1:]
		return true
	})
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
	case j.piece.rec >= 0:
		return e.data.chunk(c, j, &e.data.files().records[j.piece.rec], j.piece.from)
	default:
		if err := e.loadSmall(j); err != nil {
			return err
		}
	}
	return c.pack(j)
}

func (e *emitter) loadSmall(j *job) error {
	j.data = j.data[:0]
	for _, rec := range e.plan.smalls[j.piece.from:j.piece.to] {
		at, size := len(j.data), e.data.files().records[rec].size
		j.data = resize(j.data, at+int(alignUp(size)))
		clear(j.data[at+int(size):])
		if err := e.data.smallFile(j.data[at:at+int(size)], rec); err != nil {
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

// write is the first of the pool's sinks.
func (e *emitter) write(j *job) error {
	if err := e.index.Add(e.blobOff, e.imageOff, j.sum[:]); err != nil {
		return err
	}
	if err := e.put(j.store); err != nil {
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
	if e.report != nil {
		e.report(e.imageOff-e.metaEnd.image, e.plan.size)
	}
	if e.dataSeen++; e.dataSeen == e.plan.prefetch {
		e.firstEnd = end
	}
	return nil
}

// sinks are what goes through every byte in order, which no number of cores makes
// faster.
func (e *emitter) sinks() []func(*job) error {
	if e.cfg.Form == Raw {
		return []func(*job) error{e.write}
	}
	return []func(*job) error{e.write, e.digestImage}
}

// digestImage is the second sink.
func (e *emitter) digestImage(j *job) error {
	e.imageSum.Write(j.data)
	return nil
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
