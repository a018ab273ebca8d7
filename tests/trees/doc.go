// Package trees holds converted layers of real images against the trees that
// their tars extract to: every path, type, mode, owner, time, extended
// attribute, link count and byte, through the kernel.
package trees
