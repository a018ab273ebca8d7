// Package caches drops the page, dentry and inode caches of the whole machine for
// tests that want to read from the disk, and keeps them for tests of other packages,
// which run at the same time and look at what the kernel has cached. It imports
// nothing of ours, so that any package may use it.
package caches
