package erofs

import "fmt"

// Policy is what Parse holds an image to besides the format: what the image
// must be bound to, and how much of this machine it may use. Parse never
// allocates by a number in the image before as many bytes of metadata were
// really read.
type Policy struct {
	// ImageSize is the length of the image in bytes. The superblock must announce
	// as many blocks; only the last one may be cut short.
	ImageSize int64
	// MetaHint is where metadata is said to end, in bytes, or 0. Reads stop there
	// until metadata beyond turns up, so that a true hint saves fetching file
	// data. It is not trusted: Parsed.MetaExtents says where metadata is.
	MetaHint int64
	// Devices are the extra devices that the image must name, in slot order. An
	// empty Tag accepts any tag.
	Devices []Device
	// NoHoles refuses files with holes.
	NoHoles bool
	// AnyXattrs accepts well-formed attributes that CheckXattr refuses: to look
	// into an image, not to mount it as a layer.
	AnyXattrs bool

	// MaxMeta bounds the bytes of metadata, MaxRead the bytes read to parse them.
	MaxMeta, MaxRead int64
	// MaxInodes and MaxEntries bound the inodes of the image and the names in one
	// directory, "." and ".." included.
	MaxInodes, MaxEntries int
	// MaxNames bounds all names together.
	MaxNames int
	// MaxDepth bounds how many directories are nested, the root not counted.
	MaxDepth int
	// MaxFileSize bounds the length of one file in bytes.
	MaxFileSize int64
	// MaxExtents bounds the extents of all files together, after joining
	// neighbours.
	MaxExtents int
	// MaxXattrs bounds the extended attributes of one inode, and MaxXattrBytes
	// their names and values together.
	MaxXattrs, MaxXattrBytes int
	// MaxXattrRefs bounds the extended attributes of all inodes together.
	MaxXattrRefs int
	// MaxMetaExtents bounds the separate runs of metadata.
	MaxMetaExtents int
}

// DefaultPolicy holds any image that a container layer reasonably is: up to 4
// million inodes in 1 GiB of metadata, without extra devices.
func DefaultPolicy(imageSize int64) Policy {
	const maxMeta = 1 << 30
	return Policy{
		ImageSize:      imageSize,
		MaxMeta:        maxMeta,
		MaxRead:        4 * maxMeta,
		MaxInodes:      4 << 20,
		MaxEntries:     4 << 20,
		MaxNames:       8 << 20,
		MaxDepth:       maxPath/2 + 1,
		MaxFileSize:    16 << 40,
		MaxExtents:     16 << 20,
		MaxXattrs:      1024,
		MaxXattrBytes:  512 << 10,
		MaxXattrRefs:   16 << 20,
		MaxMetaExtents: 64 << 10,
	}
}

// Rules of the parser. The names are stable: they go into logs and metrics.
const (
	RuleSuperblock  = "superblock"   // magic, fields out of range, reserved bytes
	RuleFeatures    = "features"     // a feature that our writer does not use
	RuleChecksum    = "checksum"     // the superblock's is missing or wrong
	RuleSize        = "size"         // the image is not as long as it says
	RuleDevices     = "devices"      // not the devices that it is bound to
	RuleBounds      = "bounds"       // an address outside the image
	RuleInode       = "inode"        // format bits, type, reserved bytes, time
	RuleLayout      = "layout"       // a data layout that does not go with the type
	RuleDirectory   = "directory"    // a malformed directory block
	RuleName        = "name"         // empty, too long, or with '/' or NUL
	RuleOrder       = "order"        // names not ascending through the directory
	RuleType        = "type"         // the entry's type is not the inode's
	RuleParent      = "parent"       // ".", ".." or a directory with two names
	RuleNlink       = "nlink"        // the link count is not the number of names
	RuleCount       = "count"        // the superblock's number of inodes
	RuleOverlap     = "overlap"      // two structures in one place
	RuleExtent      = "extent"       // file data outside its device or in metadata
	RuleHole        = "hole"         // a hole where none is allowed, or malformed
	RuleSymlink     = "symlink"      // an empty or too long target, or one with NUL
	RuleWhiteout    = "whiteout"     // a whiteout with content
	RuleXattr       = "xattr"        // a malformed extended attribute
	RuleXattrPolicy = "xattr-policy" // an attribute that no layer may carry
	RuleLimit       = "limit"        // more than the Policy allows
)

// RefusedError is the parser's verdict on an image: it is malformed, or not
// what the policy allows. Reading again gives the same answer.
type RefusedError struct {
	// Rule is one of the Rule constants.
	Rule string
	// Detail says what was found.
	Detail string
	// Off is the byte offset in the image of the structure at fault.
	Off int64
}

// Error names the rule, the place and what was found there.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("EROFS image refused (%s) at byte %d: %s", e.Rule, e.Off, e.Detail)
}

func refuse(rule string, off int64, format string, args ...any) error {
	return &RefusedError{Rule: rule, Off: off, Detail: fmt.Sprintf(format, args...)}
}
