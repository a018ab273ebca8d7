// Package dmverity makes and checks the dm-verity hash tree that may follow an
// EROFS image in its image data, and opens devices through which the kernel checks
// every block that it reads against such a tree.
//
// # Contract
//
// The tree is in the kernel's own format, version 1, as veritysetup(8) and
// containerd's EROFS differ write it: a superblock in a block of its own, then the
// levels from the root's children down to the digests of the data blocks. SHA-256,
// blocks of 4096 bytes, a salt of 32 zero bytes as containerd has it; the UUID
// comes from the root, so that the same image gives the same bytes.
//
// A device goes away with its last user: nothing of it is recorded, and nothing is
// left to clean up after a crash but one that was made and not yet mounted.
//
// # Known deadlocks
//
// The kernel reads the image to check it. A file that this process serves to the
// kernel must never be behind a device of its own: only complete layers are.
package dmverity
