// Package native is what the two native layer formats share: the chunk index that
// annotations lead to, the check of a stored chunk's digest, and the plan.
//
// An annotation is a claim. What makes the index trustworthy is that its digest
// stands beside the range in the same descriptor; that the descriptor belongs
// to the image is the caller's to know.
//
// It keeps no state and takes no lock. Nothing here can deadlock.
package native
