// Package layertar writes the tar of a native layer: what an OCI image layer
// would be that has the same content.
//
// # Contract
//
// The tar has every path, type, mode, owner, time, link, extended attribute and
// byte of the tree, whiteouts and opaque directories in the form of the OCI layer
// spec. The same tree gives the same bytes: entries come depth first, in the
// order of their names as bytes, directories before what is in them, and of
// several names of a file the first has the content and the others are hard
// links to it. The root has an entry only if its attributes are not those that an
// unpacker would give it.
//
// Memory is bounded: a buffer, and one path for each file that has several names.
// Holes of files are not read. overlayfs' origin marks are dropped: they say that
// a directory holds whiteouts, which the tar says itself.
//
// It starts no goroutine and takes no lock. Nothing here can deadlock.
package layertar
