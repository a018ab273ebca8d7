package differ

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// paxXattr is the prefix of PAX records that hold extended attributes.
const paxXattr = "SCHILY.xattr."

// POSIX access control lists as the kernel stores them
// (include/uapi/linux/posix_acl_xattr.h): a version, then 8 bytes per entry.
const (
	aclAccess   = erofs.XattrACLAccess
	aclDefault  = erofs.XattrACLDefault
	aclVersion  = 2
	aclHeadLen  = 4
	aclEntryLen = 8
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
	aclMinimal  = aclHeadLen + 3*aclEntryLen // owner, group and others: what the mode says
)

// File capabilities (include/uapi/linux/capability.h): a little-endian word that is
// the revision and, at most, one flag.
const (
	capability   = "security.capability"
	capEffective = 1
	capRevision2 = 0x02000000
	capRevision3 = 0x03000000
	capLen2      = 20
	capLen3      = 24
)

// markXattrs is how many more attributes an opaque directory with whiteouts gets.
const markXattrs = 2

// xattrs sets the extended attributes of an entry. trusted.* is dropped, as
// containerd's unpacking drops it: with trusted.overlay.* in its headers a tar
// could redirect a directory or forge opaque ones. So is what the kernel would
// refuse to set: user.* on anything but files and directories, and names of no
// known family.
func (t *ingest) xattrs(hdr *tar.Header, i erofs.Inode, a erofs.Attr) error {
	if len(hdr.PAXRecords) == 0 {
		return nil
	}
	limit, n := erofs.DefaultPolicy(0).MaxXattrs-markXattrs, 0
	for _, key := range slices.Sorted(maps.Keys(hdr.PAXRecords)) {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !keepXattr(name, a.Mode&unix.S_IFMT) {
			continue
		}
		value := []byte(hdr.PAXRecords[key])
		if name == aclAccess || name == aclDefault {
			if value = effectiveACL(name, value, a.Mode); value == nil {
				continue
			}
		}
		if why := checkXattr(name, value, a.Mode); why != "" {
			return badEntry(hdr.Name, "has an attribute %q that no layer may carry: %s", name, why)
		}
		if n++; n > limit {
			return badEntry(hdr.Name, "has more than %d extended attributes", limit)
		}
		if err := t.keep(len(name) + len(value) + xattrCost); err != nil {
			return err
		}
		err := t.b.SetXattr(i, name, value)
		if err != nil && !errors.Is(err, erofs.ErrXattrName) {
			return wrapEntry(hdr.Name, err)
		}
	}
	return nil
}

// checkXattr says why a layer may not carry an attribute, or "": the strict
// parser's rules, so that no layer is written that it refuses, and the kernel's
// own for capabilities, since one that is malformed makes a program fail to start.
func checkXattr(name string, value []byte, mode uint16) string {
	if name == capability && !validCapability(value) {
		return "it is malformed"
	}
	return erofs.CheckXattr(name, value, mode)
}

func validCapability(v []byte) bool {
	if len(v) < 4 {
		return false
	}
	switch binary.LittleEndian.Uint32(v) &^ capEffective {
	case capRevision2:
		return len(v) == capLen2
	case capRevision3:
		return len(v) == capLen3
	}
	return false
}

// effectiveACL returns what a file has after containerd's unpacking set the list v
// and then the mode: the kernel drops what counts for nothing, chmod(2) changes the
// list too, and one that says no more than the mode is not kept. nil is none.
func effectiveACL(name string, v []byte, mode uint16) []byte {
	if len(v) == 0 || len(v) == aclHeadLen { // the kernel removes the list then
		return nil
	}
	if len(v) > aclHeadLen && binary.LittleEndian.Uint32(v) != aclVersion { // which the kernel calls not supported
		return nil
	}
	if erofs.CheckXattr(name, v, mode) != "" { // which is reported later
		return v
	}
	if name == aclAccess && len(v) == aclMinimal {
		return nil
	}
	v = slices.Clone(v)
	var group []byte // of the mask, or of the group where there is no mask
	for e := v[aclHeadLen:]; len(e) > 0; e = e[aclEntryLen:] {
		switch e[0] {
		case aclUser, aclGroup:
			continue
		case aclGroupObj, aclMask: // the mask comes later
			group = e
		case aclUserObj:
			if name == aclAccess {
				e[2] = byte(mode >> 6 & 7)
			}
		case aclOther:
			if name == aclAccess {
				e[2] = byte(mode & 7)
			}
		}
		copy(e[4:aclEntryLen], "\xff\xff\xff\xff") // nobody's id is in it
	}
	if name == aclAccess {
		group[2] = byte(mode >> 3 & 7)
	}
	return v
}

// keepXattr reports whether a file of that type may have that attribute.
func keepXattr(name string, fileType uint16) bool {
	switch {
	case strings.HasPrefix(name, "user."):
		return name != "user." && (fileType == unix.S_IFREG || fileType == unix.S_IFDIR)
	case strings.HasPrefix(name, "security."):
		return name != "security."
	case name == aclAccess:
		return fileType != unix.S_IFLNK
	case name == aclDefault:
		return fileType == unix.S_IFDIR
	}
	return false
}
