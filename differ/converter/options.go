package converter

import (
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/differ"
)

// Options say how Image converts. The zero value converts the platform of this
// machine.
type Options struct {
	// Layer says how layers are written. Its Progress and Implied are not used,
	// and its SpoolDir defaults to WorkDir.
	Layer differ.Config
	// Platforms to convert; empty means that of this machine.
	Platforms []ocispec.Platform
	// AllPlatforms converts every Linux platform of an index.
	AllPlatforms bool
	// Parallel is how many layers are converted at once; 0 means 2, because one
	// conversion already compresses on all cores.
	Parallel int
	// WorkDir holds spools and finished blobs in unnamed files, up to the size of
	// the layers under way, and what a source archive holds until it is closed;
	// empty means the system's directory for temporary files.
	WorkDir string
	// Progress is told how layers get on, from several goroutines; may be nil.
	Progress func(Event)
}

// Phase is what happens to a layer.
type Phase uint8

const (
	// Convert means that the layer is read and converted; bytes are those of its source blob.
	Convert Phase = iota
	// Push means that the blob goes to the target; bytes are those of the new blob.
	Push
	// Done means that the layer is at the target.
	Done
)

// String returns the phase as progress displays write it.
func (p Phase) String() string {
	switch p {
	case Convert:
		return "converting"
	case Push:
		return "pushing"
	}
	return "done"
}

// Event is a step of one layer.
type Event struct {
	// Layer is the digest of the source layer.
	Layer digest.Digest
	// Phase is what goes on.
	Phase Phase
	// Bytes of Total are through this phase.
	Bytes, Total int64
	// Result is set with Done.
	Result *LayerResult
}

// Result describes a conversion. Its JSON form is the output of
// "lazyerofs convert --json".
type Result struct {
	// Source and Target are what was given.
	Source string `json:"source"`
	Target string `json:"target"`
	// Digest and MediaType are those of the new manifest or index.
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	// Images holds one entry per platform.
	Images []ImageResult `json:"images"`
	// Skipped names entries of the index that are no Linux images.
	Skipped []string `json:"skipped,omitempty"`
}

// ImageResult describes the image of one platform.
type ImageResult struct {
	// Platform is written as os/arch[/variant].
	Platform string `json:"platform"`
	// Source and Digest are the old and the new manifest.
	Source digest.Digest `json:"source"`
	Digest digest.Digest `json:"digest"`
	// Layers are in order, the lowest first.
	Layers []LayerResult `json:"layers"`
}

// LayerResult describes a layer. Sizes are in bytes.
type LayerResult struct {
	// Source and Digest are the old and the new blob, SourceSize and Size theirs.
	Source     digest.Digest `json:"source"`
	Digest     digest.Digest `json:"digest"`
	SourceSize int64         `json:"sourceSize"`
	Size       int64         `json:"size"`
	// DiffID is the new entry of rootfs.diff_ids.
	DiffID digest.Digest `json:"diffID"`
	// Reused: the layer was native already. Existed: the target had the blob.
	Reused  bool `json:"reused,omitempty"`
	Existed bool `json:"existed,omitempty"`
	// What follows is zero for a reused layer.
	TarSize   int64 `json:"tarSize,omitempty"`
	ImageSize int64 `json:"imageSize,omitempty"`
	MetaSize  int64 `json:"metaSize,omitempty"`
	IndexSize int64 `json:"indexSize,omitempty"`
	SpoolSize int64 `json:"spoolSize,omitempty"`
	Chunks    int   `json:"chunks,omitempty"`
	Inodes    int   `json:"inodes,omitempty"`
	// Seconds is the time from the first byte read to the blob at the target.
	Seconds float64 `json:"seconds"`

	desc ocispec.Descriptor
}
