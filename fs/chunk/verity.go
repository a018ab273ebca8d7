package chunk

import (
	"encoding/hex"
	"fmt"
	"strconv"

	digest "github.com/opencontainers/go-digest"
)

// Annotations of a layer whose image data ends in a dm-verity hash tree (draft
// EROFS image spec, 3.5), and the keys under which a snapshotter gets them.
const (
	// AnnotationVerityOffset is where the tree, with its superblock, begins in the
	// image data, decimal. It is also the length of the EROFS image.
	AnnotationVerityOffset = "org.erofs.dmverity.hash_offset"
	// AnnotationVerityRoot is the digest of the tree's root.
	AnnotationVerityRoot = "org.erofs.dmverity.root_digest"
	// AnnotationVerityBlock is the length of the tree's blocks and of those that it
	// covers, in bytes, decimal; VerityBlockSize when absent.
	AnnotationVerityBlock = "org.erofs.dmverity.block_size"

	LabelVerityOffset = SnapshotPrefix + "dmverity.hash_offset"
	LabelVerityRoot   = SnapshotPrefix + "dmverity.root_digest"
	LabelVerityBlock  = SnapshotPrefix + "dmverity.block_size"
)

// VerityBlockSize is the block size of hash trees that are written here, and of
// those whose annotations name none, in bytes.
const VerityBlockSize = 4096

// Verity says where the dm-verity hash tree in image data is and what it must be.
type Verity struct {
	// HashOffset is where the tree's superblock is in the image data, in bytes: the
	// length of the EROFS image, which the tree covers.
	HashOffset int64
	// Root is the SHA-256 at the root of the tree.
	Root digest.Digest
	// BlockSize is the length of data and hash blocks in bytes.
	BlockSize int64
}

// Hex is the root as the kernel's table and containerd's sidecar have it.
func (v Verity) Hex() string { return v.Root.Encoded() }

// ParseVerity reads the annotations of a layer with imageData bytes of image data,
// or those that reached a snapshotter as labels. It returns nil when there are
// none, and an error when they are incomplete or cannot be true.
func ParseVerity(annotations map[string]string, imageData int64) (*Verity, error) {
	look := func(label, annotation string) string {
		if v := annotations[label]; v != "" {
			return v
		}
		return annotations[annotation]
	}
	at, root := look(LabelVerityOffset, AnnotationVerityOffset), look(LabelVerityRoot, AnnotationVerityRoot)
	if at == "" && root == "" {
		return nil, nil
	}
	v := &Verity{Root: digest.Digest(root), BlockSize: VerityBlockSize}
	var err error
	if v.HashOffset, err = parseOffset(at); err != nil {
		return nil, fmt.Errorf("parsing the place of the hash tree: %w", err)
	}
	if sum, err := hex.DecodeString(root); err == nil && len(sum) == 32 { // without the algorithm, as veritysetup prints it
		v.Root = digest.NewDigestFromEncoded(digest.SHA256, root)
	}
	if err := v.Root.Validate(); err != nil || v.Root.Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("the root of the hash tree, %.80q, is not a SHA-256 digest", root)
	}
	if block := look(LabelVerityBlock, AnnotationVerityBlock); block != "" {
		if v.BlockSize, err = parseOffset(block); err != nil {
			return nil, fmt.Errorf("parsing the block size of the hash tree: %w", err)
		}
	}
	switch {
	case v.BlockSize < 512 || v.BlockSize > VerityBlockSize || v.BlockSize&(v.BlockSize-1) != 0:
		return nil, fmt.Errorf("the block size of the hash tree, %d, is not a power of two from 512 to %d", v.BlockSize, VerityBlockSize)
	case v.HashOffset == 0 || v.HashOffset%v.BlockSize != 0:
		return nil, fmt.Errorf("the hash tree begins at %d, which is not a multiple of its block size %d", v.HashOffset, v.BlockSize)
	case v.HashOffset >= imageData:
		return nil, fmt.Errorf("the hash tree begins at %d, but there are only %d bytes of image data", v.HashOffset, imageData)
	}
	return v, nil
}

// Annotate adds the annotations of v, under both names, to a.
func (v Verity) Annotate(a map[string]string) {
	at, block := strconv.FormatInt(v.HashOffset, 10), strconv.FormatInt(v.BlockSize, 10)
	a[AnnotationVerityOffset], a[LabelVerityOffset] = at, at
	a[AnnotationVerityRoot], a[LabelVerityRoot] = v.Root.String(), v.Root.String()
	a[AnnotationVerityBlock], a[LabelVerityBlock] = block, block
}
