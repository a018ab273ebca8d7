package differ

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// paxXattr is the prefix of PAX records that hold extended attributes.
const paxXattr = "SCHILY.xattr."

// POSIX access control lists as the kernel stores them
// (include/uapi/linux/posix_acl_xattr.h): a version, then 8 bytes per entry.
const (
	aclAccess   = "system.posix_acl_access"
	aclDefault  = "system.posix_acl_default"
	aclVersion  = 2
	aclHeadLen  = 4
	aclEntryLen = 8
)

// xattrs sets the extended attributes of an entry. trusted.* is dropped, as
// containerd's unpacking drops it: with trusted.overlay.* in its headers a tar
// could redirect a directory or forge opaque ones. So is what the kernel would
// refuse to set: user.* on anything but files and directories, and names of no
// known family.
func (t *ingest) xattrs(hdr *tar.Header, i erofs.Inode, a erofs.Attr) error {
	if len(hdr.PAXRecords) == 0 {
		return nil
	}
	for _, key := range slices.Sorted(maps.Keys(hdr.PAXRecords)) {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !keepXattr(name, a.Mode&modeType) {
			continue
		}
		value := []byte(hdr.PAXRecords[key])
		if (name == aclAccess || name == aclDefault) && !validACL(value) {
			return badEntry(hdr.Name, "has an access control list %q of %d bytes that no kernel accepts", name, len(value))
		}
		err := t.b.SetXattr(i, name, value)
		if err != nil && !errors.Is(err, erofs.ErrXattrName) {
			return wrapEntry(hdr.Name, err)
		}
	}
	return nil
}

// keepXattr reports whether a file of that type may have that attribute.
func keepXattr(name string, fileType uint16) bool {
	switch {
	case strings.HasPrefix(name, "user."):
		return name != "user." && (fileType == modeReg || fileType == modeDir)
	case strings.HasPrefix(name, "security."):
		return name != "security."
	case name == aclAccess:
		return fileType != modeLink
	case name == aclDefault:
		return fileType == modeDir
	}
	return false
}

func validACL(v []byte) bool {
	return len(v) >= aclHeadLen && (len(v)-aclHeadLen)%aclEntryLen == 0 &&
		binary.LittleEndian.Uint32(v) == aclVersion
}
