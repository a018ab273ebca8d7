package converter

import (
	"context"
	"errors"
	"io"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter/layertar"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// hasIndex tells whether a native layer says where its chunk index is. Builders
// that carry a layer over and write a manifest of their own, as BuildKit does, drop
// the annotations that say it; other makers of EROFS have no index at all.
func hasIndex(d ocispec.Descriptor) bool {
	return d.Annotations[chunk.AnnotationIndexRange] != "" && d.Annotations[chunk.AnnotationIndexDigest] != ""
}

// native brings a layer to the target that is EROFS already: as it is, or, when it
// could not be loaded lazily so, made anew. What the strict parser refuses is
// carried over, for containerd may still mount it.
func (c *conversion) native(ctx context.Context, j *job) error {
	if hasIndex(j.desc) {
		j.dirs.whole = c.wholeOf(j.desc)
		return c.reuse(ctx, j)
	}
	data, err := OpenWhole(ctx, c.src, j.desc, c.opts.WorkDir)
	var refused *erofs.RefusedError
	if errors.As(err, &refused) {
		c.warn("layer %s has no chunk index and cannot be given one, so that it is not loaded lazily: %v", j.desc.Digest, err)
		return c.reuse(ctx, j)
	}
	if err != nil {
		return err
	}
	return errors.Join(c.remake(ctx, j, data), data.Close())
}

// remake converts the content of a native layer as if its tar had come.
func (c *conversion) remake(ctx context.Context, j *job, data *ImageData) error {
	r, w := io.Pipe()
	var writer sync.WaitGroup
	defer writer.Wait()
	defer r.Close() // the writer must not wait for a reader that has given up
	writer.Go(func() {
		out := &countingWriter{w: w, report: c.packed(j, data.Tree)}
		w.CloseWithError(layertar.Write(ctx, out, data.Tree, data.Data))
	})
	return c.fromTar(ctx, j, func(dst io.Writer, cfg differ.Config) (differ.Result, error) {
		return differ.Convert(ctx, r, dst, cfg)
	})
}
