// Package differ turns layers into EROFS.
//
// Convert reads the tar of a layer and writes a native layer blob: the EROFS
// image of its files, all metadata first, cut into chunks that can be fetched and
// verified one by one, and the index of those chunks. The Differ is containerd's
// diff service for snapshots of ours: Apply puts a layer that is not loaded lazily
// beside the snapshot as an EROFS image, Compare makes a layer of what a container
// changed.
//
// # Contract
//
// The same tar and options give the same bytes on any number of cores, as a stream
// or as a file, from every build with the same ZstdEncoder. Memory does not grow
// with the data of a layer, only with its number of files: data waits on disk in
// unnamed files that vanish with the process, or in the tar itself when ConvertAt can
// read that at random. Such a tar must not change meanwhile; it is an error if it
// does, unless somebody forges checksums. An error leaves nothing behind. Every
// goroutine ends before the call that started it returns.
//
// A few kilobytes can unpack to millions of entries, so a layer that has more than
// 8 Mi of them, more than 4 Mi files, of which one that replaces another is one more,
// or more than 512 MiB of names, targets and attributes gives a LimitError.
//
// # What a tar entry means
//
// The rules are those of the OCI image spec; where it leaves something open,
// those of containerd's unpacking (pkg/archive), with these decisions:
//
//   - Names: a leading slash is dropped, "./" and ".." are resolved as text, a name
//     that leaves the root is refused (containerd takes it as a name in the root).
//     The parents of a name are followed through symbolic links of the same layer,
//     which cannot lead out of it; a parent that is a file is refused.
//   - The entry of the root sets the root's attributes (containerd ignores it).
//     Without it the root has mode 0755 and belongs to root, as have parents that
//     have no entry (see Config.Implied); Apply takes those from the layers below as
//     far as they are here whole, unless a layer between deleted or hides them.
//   - A later entry replaces an earlier one of the same name; a directory over a
//     directory replaces only its attributes.
//   - ".wh.x" becomes a character device 0:0, ".wh..wh..opq" an opaque directory,
//     other ".wh..wh.*" are dropped. Neither touches entries of its own layer. A
//     real entry beats a whiteout of its name in any order; if it is a directory it
//     becomes opaque, since the one below was deleted. A whiteout with data, or
//     with entries below it, is refused.
//   - Hard links may come before their target. The link's own header counts for
//     nothing but the name. A target that never comes is an error.
//   - Extended attributes come from SCHILY.xattr PAX records. trusted.*, what is
//     neither user.*, security.* nor an access control list, and user.* of what is
//     neither file nor directory are dropped, as containerd and the kernel do. What
//     is left must pass the strict parser's policy (erofs.CheckXattr): a malformed
//     list or capability is refused. An access control list is adapted to the mode,
//     as chmod(2) would, and dropped when it says no more than the mode.
//   - Times before 1970 are 1970. Global PAX headers are ignored. Any type but file,
//     directory, link, symbolic link, device and FIFO is refused.
//   - Zeros in runs of at least 64 KiB become holes in files of at least one chunk.
//     Sparse members of both kinds are files with holes.
//
// # What an upper directory means
//
// Compare reads overlayfs' form of changes from the upper directory alone and
// keeps it in a native layer; a tar gets ".wh." names for it. Besides:
//
//   - A file with several names in the directory has them in the layer; as tar
//     entries, the later ones repeat its capability, which chown(2) takes. Holes stay
//     holes. Attributes are user.*, security.capability and access control lists:
//     other security.* labels belong to this host.
//   - A socket becomes a whiteout: no layer holds one, and what it hides must not
//     come back.
//   - A directory that was renamed by overlayfs' redirect_dir, and a file whose
//     data stayed below by its metacopy, give ErrNotImplemented.
//   - Tar entries have whole seconds and no entry for a usual root, as containerd
//     writes them. A file called ".wh.x" fails the comparison, since as a tar entry
//     it would delete x.
//
// # Known deadlocks
//
// None: nothing here reads from a mount. SpoolDir must not be on a lazy layer.
// Compare goes through the upper directory by descriptors and follows no link, so
// that a container which changes it meanwhile cannot lead it elsewhere.
package differ
