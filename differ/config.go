package differ

import (
	"fmt"
	"os"
	"runtime"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// Form is how a native layer's image data is stored in its blob.
type Form uint8

const (
	// Zstd stores one zstd frame per chunk and the index in a skippable frame.
	Zstd Form = iota
	// Raw stores the image as it is and the index behind it.
	Raw
)

// String returns the form's name as the command line writes it.
func (f Form) String() string {
	if f == Raw {
		return "raw"
	}
	return "zstd"
}

const (
	// DefaultChunkSize is the chunk size in bytes of image data when Config says
	// nothing.
	DefaultChunkSize = 256 << 10
	// DefaultLevel is the zstd level when Config says nothing.
	DefaultLevel = 3

	blockBits = 12 // of the images written here
	blockSize = chunk.BlockSize
)

// Config says how Convert writes a layer. The zero value is ready to use. Form,
// ChunkSize, Level, Verity, First and Implied decide the bytes of the result; the
// other fields do not.
type Config struct {
	// Form is the form of the blob.
	Form Form
	// ChunkSize is the longest chunk, in bytes of image data: a multiple of
	// 4096, at most chunk.MaxChunkLen. 0 means DefaultChunkSize.
	ChunkSize int64
	// Level is the compression level as the zstd command line numbers it, 1 to
	// 22. 0 means DefaultLevel. Each worker needs memory for it, 3 MB at the
	// defaults and 0.7 GB at level 22 with chunks of 64 MiB.
	Level int
	// Verity appends a dm-verity hash tree to the image: about 1/127 of its size,
	// which hardly compresses.
	Verity bool
	// Workers is the number of chunks that are compressed at once. 0 means
	// GOMAXPROCS.
	Workers int
	// SpoolDir is the directory of the unnamed files that hold the layer's data
	// between the two passes. They need up to the size of the tar. Empty means
	// the system's directory for temporary files.
	SpoolDir string
	// First lists paths of files whose data is placed first, in this order.
	// Symbolic links are followed inside the layer; what is not a regular file
	// of this layer is passed over.
	First []string
	// Implied gives the attributes of a directory that the tar names only as the
	// parent of something, path without a leading slash. A directory must come
	// back; false means mode 0755, root's, 1970. nil is always false. An error ends
	// the conversion.
	Implied func(path string) (erofs.Attr, bool, error)
	// Progress is called with the number of uncompressed tar bytes read so far, of
	// what ConvertAt reads where it is with how many have been written; never by two
	// goroutines at once.
	Progress func(tarBytes int64)
}

// Result describes a layer that Convert wrote.
type Result struct {
	// Descriptor has media type, digest and size of the blob and every
	// annotation that makes it lazily mountable.
	Descriptor ocispec.Descriptor
	// DiffID is the layer's entry in rootfs.diff_ids: for Raw the digest of the
	// blob, for Zstd that of the image data.
	DiffID digest.Digest
	// TarDiffID is the digest of the uncompressed tar, TarSize its length.
	TarDiffID digest.Digest
	TarSize   int64
	// ImageSize is the length of the EROFS image, MetaSize that of its metadata,
	// which comes first, VeritySize that of the hash tree behind it, and IndexSize
	// that of the chunk index in the blob, all in bytes.
	ImageSize, MetaSize, VeritySize, IndexSize int64
	// SpoolSize is the most that the conversion kept on disk, in bytes.
	SpoolSize int64
	// Inodes is the number of inodes and Chunks that of chunks.
	Inodes, Chunks int
}

// Check reports whether the options can be used, in the words of the error that
// Convert would return.
func (c Config) Check() error {
	_, err := c.withDefaults()
	return err
}

// withDefaults fills what was left open and checks the rest.
func (c Config) withDefaults() (Config, error) {
	if c.ChunkSize == 0 {
		c.ChunkSize = DefaultChunkSize
	}
	if c.Level == 0 {
		c.Level = DefaultLevel
	}
	if c.Workers == 0 {
		c.Workers = runtime.GOMAXPROCS(0)
	}
	if c.SpoolDir == "" {
		c.SpoolDir = os.TempDir()
	}
	switch {
	case c.Form != Zstd && c.Form != Raw:
		return c, fmt.Errorf("layer form %d is not defined, use zstd or raw", c.Form)
	case c.ChunkSize < blockSize || c.ChunkSize > chunk.MaxChunkLen || c.ChunkSize%blockSize != 0:
		return c, fmt.Errorf("chunk size %d is not a multiple of %d between %d and %d",
			c.ChunkSize, blockSize, blockSize, chunk.MaxChunkLen)
	case c.Level < 1 || c.Level > 22:
		return c, fmt.Errorf("zstd level %d is not between 1 and 22", c.Level)
	case c.Workers < 1:
		return c, fmt.Errorf("%d workers cannot convert a layer, use 1 or more", c.Workers)
	}
	return c, nil
}

// alignUp rounds n up to the next multiple of the block size.
func alignUp(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }
