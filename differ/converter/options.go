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
	// Platforms to convert, and no others; empty means the one that suits this
	// machine best.
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
	// KeepDir holds finished layers until the image has its name, so that a
	// conversion that was killed goes on where it was, and afterwards a small
	// record of each, so that what the target has is not converted again. What
	// was not used for two weeks goes. It is trusted like the program itself: it
	// must belong to the user alone. Empty keeps nothing.
	KeepDir string
	// Output is the shape of the result.
	Output Output
	// Progress is told how layers get on, from several goroutines; may be nil.
	Progress func(Event)
}

// Output is the shape of what Image writes.
type Output uint8

const (
	// Plain is a manifest for one platform, and an index for several whose entries
	// carry no os.features: default clients cannot select an entry that does.
	Plain Output = iota
	// Index is an index that holds the tar images as they were and, behind them,
	// the EROFS images with the os.feature "erofs". A client that knows nothing of
	// EROFS takes the tar image, which stands first.
	Index
)

// String returns the name of the shape as the command line writes it.
func (o Output) String() string {
	if o == Index {
		return "index"
	}
	return "plain"
}

// Phase is what happens to a layer.
type Phase uint8

const (
	// Convert means that the layer is read and converted; bytes are those of its source blob.
	Convert Phase = iota
	// Push means that the blob goes to the target; bytes are those of the new blob.
	Push
	// Copy means that the source blob goes to the target as it is, for an Index;
	// bytes are those of the source blob.
	Copy
	// Check means that the blob is read and held against its digests; bytes are its own.
	Check
	// Done means that the layer is at the target, or checked.
	Done
)

// String returns the phase as progress displays write it.
func (p Phase) String() string {
	switch p {
	case Convert:
		return "converting"
	case Push:
		return "pushing"
	case Copy:
		return "copying"
	case Check:
		return "checking"
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
	// Attestations are the build records of the converted images.
	Attestations []Attestation `json:"attestations,omitempty"`
	// Referrers are signatures, SBOMs and the like that speak of the source. They
	// are not carried over: they would say untrue things of the new image.
	Referrers []Referrer `json:"referrers,omitempty"`
	// Warnings are sentences about what the new image lacks or could not be found out.
	Warnings []string `json:"warnings,omitempty"`
}

// Attestation describes a build record that BuildKit put beside an image.
type Attestation struct {
	// Source is the old record, SourceImage the image that it names. The
	// statements in it are never changed, so they are about SourceImage.
	Source      digest.Digest `json:"source"`
	SourceImage digest.Digest `json:"sourceImage"`
	// Digest is the new record and Image what it names, both empty when the record
	// is left out because a single manifest has no place for it.
	Digest digest.Digest `json:"digest,omitempty"`
	Image  digest.Digest `json:"image,omitempty"`
	// Predicates are the types of the statements.
	Predicates []string `json:"predicates,omitempty"`
}

// Referrer describes something in the source's repository that is about the
// source.
type Referrer struct {
	// Subject is the manifest or index of the source that it is about.
	Subject digest.Digest `json:"subject"`
	// Digest is its manifest, and Tag the tag that leads to it, if one does.
	Digest digest.Digest `json:"digest"`
	Tag    string        `json:"tag,omitempty"`
	// MediaType and ArtifactType say what it is, as far as the source says it.
	MediaType    string `json:"mediaType,omitempty"`
	ArtifactType string `json:"artifactType,omitempty"`
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
	// Reused: the layer was native already. Existed: the target had the blob, or
	// could mount it from another repository. Resumed: an earlier run converted it.
	Reused  bool `json:"reused,omitempty"`
	Existed bool `json:"existed,omitempty"`
	Resumed bool `json:"resumed,omitempty"`
	// What follows is zero for a reused layer.
	TarSize   int64 `json:"tarSize,omitempty"`
	ImageSize int64 `json:"imageSize,omitempty"`
	MetaSize  int64 `json:"metaSize,omitempty"`
	// VeritySize is the length of the hash tree in bytes, 0 without one.
	VeritySize int64 `json:"veritySize,omitempty"`
	IndexSize  int64 `json:"indexSize,omitempty"`
	SpoolSize  int64 `json:"spoolSize,omitempty"`
	Chunks     int   `json:"chunks,omitempty"`
	Inodes     int   `json:"inodes,omitempty"`
	// Seconds is the time from the first byte read to the blob at the target.
	Seconds float64 `json:"seconds"`

	desc ocispec.Descriptor
}
