package inspect

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/imagedata"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// Image is what was found out about one platform's image.
type Image struct {
	Ref      string `json:"ref"`
	Digest   string `json:"digest"`
	Platform string `json:"platform"`
	// Lazy says that every layer can be loaded on demand.
	Lazy bool `json:"lazy"`
	// Size is the sum of the blobs, ImageSize of the image data, MetaSize of the
	// metadata in it; bytes. The last two count lazy layers only.
	Size      int64   `json:"size"`
	ImageSize int64   `json:"imageSize"`
	MetaSize  int64   `json:"metaSize"`
	Layers    []Layer `json:"layers"`
}

// Layer is what was found out about one layer.
type Layer struct {
	Digest    string `json:"digest"`
	MediaType string `json:"mediaType"`
	// Size is the blob's length in bytes.
	Size int64 `json:"size"`
	// Lazy says that the layer can be loaded on demand; if not, Reason says why.
	Lazy   bool   `json:"lazy"`
	Reason string `json:"reason,omitempty"`
	// The rest is of lazy layers. Format is the name of the blob's format.
	Format string `json:"format,omitempty"`
	// ImageSize is the length of the EROFS image, MetaSize of all metadata in it,
	// MetaStored of the chunks that hold it, IndexSize of the chunk index; bytes.
	ImageSize int64 `json:"imageSize,omitempty"`
	MetaSize  int64 `json:"metaSize,omitempty"`
	// Verity is the root digest of the dm-verity hash tree behind the image, if there
	// is one, and VeritySize its length in bytes.
	Verity     string `json:"verity,omitempty"`
	VeritySize int64  `json:"veritySize,omitempty"`
	MetaStored int64  `json:"metaStored,omitempty"`
	IndexSize  int64  `json:"indexSize,omitempty"`
	// Chunks is their number, LargestChunk the longest one's image data in bytes.
	Chunks       int   `json:"chunks,omitempty"`
	LargestChunk int64 `json:"largestChunk,omitempty"`
	Inodes       int   `json:"inodes,omitempty"`
	// Features are the EROFS features that a kernel must know, Kernel the first
	// Linux release that mounts the layer when it is local.
	Features []string `json:"features,omitempty"`
	Kernel   string   `json:"kernel,omitempty"`
}

// Subject is an image to look at.
type Subject struct {
	// Ref is what reports and messages call it.
	Ref string
	converter.Picked
	// Open opens the blob of a layer. What it returns beside it is called when the
	// blob is not needed any more.
	Open func(ctx context.Context, layer ocispec.Descriptor) (remote.Blob, func() error, error)
}

// notNative is the reason of a layer that no format reads.
const notNative = "media type is none that lazyerofs loads lazily; convert the image"

// Run looks at every layer of img. A layer that cannot be loaded lazily is a
// finding; the error is about a registry that did not answer.
func Run(ctx context.Context, img *Subject, formats []format.Format) (*Image, error) {
	out := &Image{
		Ref: img.Ref, Digest: img.Desc.Digest.String(), Lazy: true,
		Platform: platforms.Format(img.Config.Platform),
	}
	for _, desc := range img.Manifest.Layers {
		l, err := layer(ctx, desc, img, formats)
		if err != nil {
			return nil, fmt.Errorf("inspecting layer %s of %s: %w", desc.Digest, img.Ref, err)
		}
		out.Lazy = out.Lazy && l.Lazy
		out.Size += l.Size
		out.ImageSize += l.ImageSize
		out.MetaSize += l.MetaSize
		out.Layers = append(out.Layers, l)
	}
	return out, nil
}

func layer(ctx context.Context, desc ocispec.Descriptor, of *Subject, formats []format.Format) (l Layer, err error) {
	l = Layer{Digest: desc.Digest.String(), MediaType: desc.MediaType, Size: desc.Size}
	var f format.Format
	for _, try := range formats {
		if try.Match(desc) {
			f = try
			break
		}
	}
	if f == nil {
		l.Reason = notNative
		return l, nil
	}
	l.Format = f.Name()
	blob, done, err := of.Open(ctx, desc)
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, done()) }()
	if err := l.fill(ctx, f, blob, desc); err != nil {
		if !finding(err) {
			return l, err
		}
		l.Reason = err.Error()
		return l, nil
	}
	l.Lazy = true
	return l, nil
}

// finding reports whether err is about the layer and not about the registry.
func finding(err error) bool {
	var refused *erofs.RefusedError
	var corrupt *chunk.CorruptError
	return errors.Is(err, format.ErrNotLazy) || errors.As(err, &refused) || errors.As(err, &corrupt)
}

func (l *Layer) fill(ctx context.Context, f format.Format, blob remote.Blob, desc ocispec.Descriptor) error {
	plan, err := f.Open(ctx, blob, desc)
	if err != nil {
		return err
	}
	l.ImageSize, l.Chunks, l.IndexSize = plan.ImageSize(), plan.Data.Len(), blob.Size()
	if plan.Verity != nil {
		l.Verity, l.VeritySize = plan.Verity.Root.String(), plan.Data.Size()-plan.ImageSize()
	}
	for i := range plan.Data.Len() {
		c := plan.Data.At(i)
		l.LargestChunk = max(l.LargestChunk, c.Data.Len)
		l.IndexSize -= c.Blob.Len
	}
	r := imagedata.NewReader(ctx, blob, plan)
	policy := erofs.DefaultPolicy(plan.ImageSize())
	policy.MetaHint = plan.PinnedHint.End()
	parsed, err := erofs.Parse(r, policy)
	if err != nil {
		return err
	}
	l.Inodes = parsed.Tree.Len()
	l.Features, l.Kernel = needs(parsed)
	next := 0
	for _, m := range parsed.MetaExtents {
		l.MetaSize += m.Len
		for i := max(next, plan.Data.Find(m.Off)); i < plan.Data.Len() && plan.Data.At(i).Data.Off < m.Off+m.Len; i++ {
			l.MetaStored += plan.Data.At(i).Blob.Len
			next = i + 1
		}
	}
	return nil
}

// linux is a kernel release, for example {6, 14}.
type linux struct{ major, minor int }

func (l linux) String() string { return fmt.Sprintf("%d.%d", l.major, l.minor) }

func (l linux) before(o linux) bool {
	return l.major < o.major || l.major == o.major && l.minor < o.minor
}

// Feature bits of the superblock (include/linux/erofs_fs.h) that an accepted
// image may carry, with the release that brought them.
var features = []struct {
	bit   uint32
	name  string
	since linux
}{
	{0x4, "chunked-file", linux{5, 15}},
	{0x8, "device-table", linux{5, 16}},
	{0x40, "xattr-prefixes", linux{6, 4}},
}

// needs returns the features of an image and the first release that mounts it:
// EROFS left staging in 5.4, and blocks smaller than a page came with 6.4.
func needs(p *erofs.Parsed) (names []string, kernel string) {
	since := linux{5, 4}
	add := func(name string, l linux) {
		names = append(names, name)
		if since.before(l) {
			since = l
		}
	}
	for _, f := range features {
		if p.Incompat&f.bit != 0 {
			add(f.name, f.since)
		}
	}
	if p.BlockBits < 12 {
		add("sub-page-blocks", linux{6, 4})
	}
	return names, since.String()
}
