package erofs

import (
	"encoding/binary"
	"strings"
)

// Extended attributes with a meaning in a layer.
const (
	// XattrOpaque marks a directory whose lower ones overlayfs does not show: "y".
	// An empty XattrOrigin makes overlayfs look for whiteouts when it lists a
	// directory that is in one layer only (Documentation/filesystems/overlayfs.rst).
	XattrOpaque = "trusted.overlay.opaque"
	XattrOrigin = "trusted.overlay.origin"
	// XattrACLAccess and XattrACLDefault hold access control lists
	// (uapi/linux/posix_acl_xattr.h).
	XattrACLAccess  = "system.posix_acl_access"
	XattrACLDefault = "system.posix_acl_default"
)

// CheckXattr says why a layer may not carry the attribute, by its full name, on
// an inode of that mode, or "". Parse refuses such an image; who makes layers
// from other formats has to leave such attributes out.
//
// trusted.* speaks to the kernel and its helpers, and only root can set it: a
// layer that brought its own trusted.overlay.redirect or metacopy could make
// overlayfs look elsewhere. What remains are the two marks that layers are made
// of: an opaque directory, and the empty origin of a directory with whiteouts.
func CheckXattr(name string, value []byte, mode uint16) string {
	isDir := mode&modeType == modeDir
	switch {
	case name == XattrOpaque:
		if !isDir || string(value) != "y" {
			return `only "y" on a directory is allowed`
		}
	case name == XattrOrigin:
		if !isDir || len(value) != 0 {
			return "only an empty one on a directory is allowed"
		}
	case strings.HasPrefix(name, "trusted."):
		return "no layer may carry it"
	case name == XattrACLAccess, name == XattrACLDefault:
		if mode&modeType == modeLink {
			return "a symbolic link has no access control list"
		}
		if name == XattrACLDefault && !isDir {
			return "only a directory has a default access control list"
		}
		return checkACL(value)
	}
	return ""
}

// Tags and layout of an access control list as user space and EROFS store it
// (uapi/linux/posix_acl_xattr.h).
const (
	aclVersion  = 2
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
	aclNoID     = 0xFFFFFFFF
)

// checkACL says what is wrong with an access control list, or "". The kernel's
// own check (posix_acl_valid) asks for the same order of tags.
func checkACL(v []byte) string {
	le := binary.LittleEndian
	if len(v) < 4 || le.Uint32(v) != aclVersion || len(v)%8 != 4 {
		return "it is not an access control list of version 2"
	}
	state, named := aclUserObj, false
	for v = v[4:]; len(v) > 0; v = v[8:] {
		tag, perm, id := int(le.Uint16(v)), le.Uint16(v[2:]), le.Uint32(v[4:])
		if perm > 7 {
			return "it grants more than read, write and execute"
		}
		switch {
		case tag == aclUserObj && state == aclUserObj:
			state = aclUser
		case tag == aclUser && state == aclUser, tag == aclGroup && state == aclGroup:
			if id == aclNoID {
				return "it names no user or group"
			}
			named = true
		case tag == aclGroupObj && state == aclUser:
			state = aclGroup
		case tag == aclMask && state == aclGroup:
			state = aclOther
		case tag == aclOther && (state == aclOther || state == aclGroup && !named):
			state = 0
		default:
			return "its entries are out of order, incomplete or unknown"
		}
	}
	if state != 0 {
		return "its entries are incomplete"
	}
	return ""
}
