package converter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// job is one distinct layer, whichever images it is in.
type job struct {
	desc    ocispec.Descriptor
	diffIDs []digest.Digest // that configs claim; all must be the same
	below   []*job          // the layers under it in the first image that has it
	dirs    dirs
	key     string // of its conversion, in the directory of finished layers
	tar     bool   // the target wants the source blob as well
	result  LayerResult
}

// convertLayers converts every distinct layer of the images once.
func (c *conversion) convertLayers(ctx context.Context, imgs []*image) error {
	var order []*job
	for _, img := range imgs {
		var stack []*job
		for i, l := range img.manifest.Layers {
			if err := checkLayer(l); err != nil {
				return fmt.Errorf("%s: %w", c.src, err)
			}
			j, ok := c.jobs[l.Digest]
			if !ok {
				j = &job{desc: l, below: slices.Clone(stack), dirs: dirs{ready: make(chan struct{})}}
				c.jobs[l.Digest] = j
				order = append(order, j)
			}
			j.tar = j.tar || img.tar
			j.diffIDs = append(j.diffIDs, img.config.RootFS.DiffIDs[i])
			stack = append(stack, j)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(c.opts.Parallel)
	for _, j := range order {
		g.Go(func() error {
			defer close(j.dirs.ready)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := c.layer(ctx, j); err != nil {
				return fmt.Errorf("layer %s of %s: %w", j.desc.Digest, c.src, err)
			}
			c.opts.Progress(Event{Layer: j.desc.Digest, Phase: Done, Bytes: j.result.Size, Total: j.result.Size, Result: &j.result})
			return nil
		})
	}
	return g.Wait()
}

// layer brings one layer to the target.
func (c *conversion) layer(ctx context.Context, j *job) error {
	if c.export != nil {
		return c.exportLayer(ctx, j)
	}
	if chunk.IsNative(j.desc.MediaType) {
		return c.native(ctx, j)
	}
	if c.keep != nil {
		j.key = keyOf(j, c.opts.Layer)
	}
	resumed, err := c.resume(ctx, j)
	if err == nil && !resumed {
		err = c.convert(ctx, j)
	}
	if err == nil && j.tar {
		_, err = c.copyBlob(ctx, j.desc, c.progress(j, Copy, j.desc.Size))
	}
	return err
}

// checkLayer refuses what is neither native nor a tar that can be read.
func checkLayer(l ocispec.Descriptor) error {
	if err := l.Digest.Validate(); err != nil {
		return fmt.Errorf("layer digest %.80q: %w", string(l.Digest), err)
	}
	if l.Size < 0 {
		return fmt.Errorf("layer %s has a negative size", l.Digest)
	}
	if chunk.IsNative(l.MediaType) {
		return nil
	}
	base, _, _ := strings.Cut(l.MediaType, "+")
	switch {
	case strings.HasSuffix(l.MediaType, "+encrypted"):
		return fmt.Errorf("layer %s is encrypted; decrypt the image first", l.Digest)
	case base == "application/vnd.oci.image.layer.v1.tar", strings.HasPrefix(base, "application/vnd.docker.image.rootfs.diff.tar"):
		return nil
	}
	return fmt.Errorf("layer %s is a %q; only tar layers (plain, gzip, zstd) and native EROFS layers can be converted", l.Digest, l.MediaType)
}

// reuse carries a native layer over as it is.
func (c *conversion) reuse(ctx context.Context, j *job) error {
	start := time.Now()
	j.result = LayerResult{
		Source: j.desc.Digest, Digest: j.desc.Digest, SourceSize: j.desc.Size, Size: j.desc.Size,
		DiffID: j.diffIDs[0], Reused: true, desc: j.desc,
	}
	existed, err := c.copyBlob(ctx, j.desc, c.progress(j, Push, j.desc.Size))
	j.result.Existed, j.result.Seconds = existed, time.Since(start).Seconds()
	return err
}

// copyBlob puts a blob of the source as it is.
func (c *conversion) copyBlob(ctx context.Context, d ocispec.Descriptor, report func(int64)) (existed bool, err error) {
	if err := d.Digest.Validate(); err != nil {
		return false, fmt.Errorf("descriptor in %s: %w", c.src, err)
	}
	var in *checked
	existed, err = c.dst.Put(ctx, mountable(d, c.src, c.dst), func(ctx context.Context) (io.ReadCloser, error) {
		rc, err := c.src.Open(ctx, d)
		if err != nil {
			return nil, err
		}
		in = newChecked(ctx, rc, d, report)
		return in, nil
	})
	if err != nil && in != nil && in.other.Load() {
		return false, errOtherBytes // the target's words are about itself
	}
	return existed, err
}

// convert makes a native layer of a tar and puts it.
func (c *conversion) convert(ctx context.Context, j *job) error {
	if ra := c.plainTar(ctx, j.desc); ra != nil {
		defer ra.Close()
		return c.convertAt(ctx, j, ra)
	}
	rc, err := c.src.Open(ctx, j.desc)
	if err != nil {
		return err
	}
	in := newChecked(ctx, rc, j.desc, c.progress(j, Convert, j.desc.Size))
	defer in.Close()
	return c.fromTar(ctx, j, func(dst io.Writer, cfg differ.Config) (differ.Result, error) {
		res, err := differ.Convert(ctx, in, dst, cfg)
		if verr := in.verify(err == nil); verr != nil {
			return res, verr // a tar that makes no sense is only a consequence
		}
		if err != nil {
			return res, err
		}
		return res, j.claimed(res.TarDiffID)
	})
}

// claimed holds the digest of a tar against what configs say.
func (j *job) claimed(tar digest.Digest) error {
	for _, id := range j.diffIDs {
		if id != tar {
			return fmt.Errorf("its tar is %s, but the image's config says %s", tar, id)
		}
	}
	return nil
}

// fromTar puts the native layer that makeIt makes of a tar.
func (c *conversion) fromTar(ctx context.Context, j *job, makeIt func(io.Writer, differ.Config) (differ.Result, error)) (err error) {
	start := time.Now()
	dir := c.opts.WorkDir
	if c.keep != nil {
		dir = c.keep.dir // a file can be named only in its own file system
	}
	blob, err := tempFile(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	cfg := c.opts.Layer
	cfg.Progress = nil
	cfg.Implied = implied(ctx, j.below)
	res, err := makeIt(blob, cfg)
	if err != nil {
		return err
	}
	if err := j.dirs.keep(blob, res, cfg.Form); err != nil {
		return err
	}
	d := res.Descriptor
	j.result = LayerResult{
		Source: j.desc.Digest, Digest: d.Digest, SourceSize: j.desc.Size, Size: d.Size, DiffID: res.DiffID,
		TarSize: res.TarSize, ImageSize: res.ImageSize, MetaSize: res.MetaSize, IndexSize: res.IndexSize, SpoolSize: res.SpoolSize,
		VeritySize: res.VeritySize, Chunks: res.Chunks, Inodes: res.Inodes, desc: d,
	}
	if j.key != "" { // only what has the digest of a tar is kept
		if err := c.keep.save(j.key, blob, &record{Desc: d, TarDiffID: res.TarDiffID, Result: j.result}, j.dirs.meta); err != nil {
			return err
		}
	}
	j.result.Existed, err = c.dst.Put(ctx, d, func(ctx context.Context) (io.ReadCloser, error) {
		report := c.progress(j, Push, d.Size)
		return &counting{ctx: ctx, r: io.NewSectionReader(blob, 0, d.Size), report: report}, nil
	})
	j.result.Seconds = time.Since(start).Seconds()
	return err
}

func (c *conversion) progress(j *job, p Phase, total int64) func(int64) {
	return func(n int64) { c.opts.Progress(Event{Layer: j.desc.Digest, Phase: p, Bytes: n, Total: total}) }
}

// counting reports how far a reader is and stops with its context.
type counting struct {
	ctx    context.Context // of the one transfer that the reader serves
	r      io.Reader
	n      int64
	report func(int64)
}

func (c *counting) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.report(c.n)
	return n, err
}

func (c *counting) Close() error { return nil }

// checked is a blob on its way in, whose size and digest are held against its
// descriptor.
type checked struct {
	counting
	rc    io.Closer
	sum   digest.Verifier
	desc  ocispec.Descriptor
	other atomic.Bool // more bytes came, or all did and are not those of the descriptor
}

func newChecked(ctx context.Context, rc io.ReadCloser, desc ocispec.Descriptor, report func(int64)) *checked {
	v := desc.Digest.Verifier()
	return &checked{
		counting: counting{ctx: ctx, r: io.TeeReader(rc, v), report: report},
		rc:       rc, sum: v, desc: desc,
	}
}

// Read notes whether what came is something else than the descriptor says.
func (c *checked) Read(p []byte) (int, error) {
	n, err := c.counting.Read(p)
	if c.n > c.desc.Size || errors.Is(err, io.EOF) && (c.n != c.desc.Size || !c.sum.Verified()) {
		c.other.Store(true)
	}
	return n, err
}

// maxJudge is how much of a layer that failed to convert is still read to tell
// whether the registry is to blame or the image.
const maxJudge = 64 << 20

// verify reads what is left and compares. When the conversion failed (whole is
// false) there is a verdict only if the rest is short.
func (c *checked) verify(whole bool) error {
	limit := int64(maxJudge)
	if whole {
		limit = c.desc.Size + 1
	}
	n, err := io.CopyN(io.Discard, c, limit)
	ended := errors.Is(err, io.EOF)
	if err != nil && !ended {
		return err
	}
	if !whole && !ended {
		return nil
	}
	if n == limit {
		return fmt.Errorf("more bytes came than the %d of its descriptor", c.desc.Size)
	}
	if c.n != c.desc.Size || !c.sum.Verified() {
		return errOtherBytes
	}
	return nil
}

func (c *checked) Close() error { return c.rc.Close() }
