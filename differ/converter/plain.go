package converter

import (
	"context"
	"errors"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/differ"
)

// errOtherBytes is said of a blob that is not what its descriptor says.
var errOtherBytes = errors.New("the bytes that came do not match its digest")

// plainTar opens a layer that is a tar on this machine, which needs neither to be
// decompressed nor to wait anywhere. nil means that it is to be read as a stream,
// which also says what is wrong with it.
func (c *conversion) plainTar(ctx context.Context, desc ocispec.Descriptor) content.ReaderAt {
	local, ok := c.src.(RandomAccess)
	if !ok || desc.Digest.Algorithm() != digest.SHA256 { // which is the one that comes with the conversion
		return nil
	}
	ra, err := local.ReaderAt(ctx, desc)
	if err != nil {
		return nil
	}
	if plain, err := differ.IsPlain(ra); err != nil || !plain || ra.Size() != desc.Size {
		_ = ra.Close() // nothing was written to it
		return nil
	}
	return ra
}

// convertAt makes a native layer of such a tar.
func (c *conversion) convertAt(ctx context.Context, j *job, ra content.ReaderAt) error {
	return c.fromTar(ctx, j, func(dst io.Writer, cfg differ.Config) (differ.Result, error) {
		cfg.Progress = c.progress(j, Convert, j.desc.Size)
		res, err := differ.ConvertAt(ctx, ra, j.desc.Size, dst, cfg)
		if err != nil {
			if ctx.Err() == nil && !verified(ra, j.desc) {
				err = errOtherBytes // a tar that makes no sense is only a consequence
			}
			return res, err
		}
		if res.TarDiffID != j.desc.Digest {
			return res, errOtherBytes
		}
		return res, j.claimed(res.TarDiffID)
	})
}

// verified tells whether a blob that can be read has its digest.
func verified(ra content.ReaderAt, desc ocispec.Descriptor) bool {
	v := desc.Digest.Verifier()
	_, err := io.Copy(v, content.NewReader(ra))
	return err != nil || v.Verified()
}
