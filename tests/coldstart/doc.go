// Package coldstart measures how long it takes from "not on this node" to the
// end of a workload, for any system that can pull and run an image. The demo
// and the benches share it.
//
// Cold means: a node without any content, freshly started daemons, and empty
// page, dentry and inode caches. The registry's files are read back into the
// cache, because its disk is not what is measured.
//
// It empties the caches of the whole machine and needs root. Stopping a node is
// left to Measure; after it has returned nothing of the node runs.
package coldstart
