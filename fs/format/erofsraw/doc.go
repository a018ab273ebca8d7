// Package erofsraw reads native EROFS layers that are stored as they are, with
// the chunk index as trailing bytes (application/vnd.erofs.layer.v1 and the
// draft's name for it).
//
// It keeps no state and takes no lock. Nothing here can deadlock.
package erofsraw
