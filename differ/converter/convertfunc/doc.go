// Package convertfunc is the converter for programs that keep images in a
// containerd content store, such as nerdctl: containerd's converter.ConvertFunc.
// tests/examples/convertfunc is a program that uses it.
//
// # Contract
//
// Image converts a whole image and is for converter.WithIndexConvertFunc. It does
// all that "lazyerofs convert" does: it looks up the attributes of directories
// that a layer only implies, rewrites config, manifest and index, and binds
// attestations to the new image.
//
// Layer converts one layer and is for converter.WithLayerConvertFunc, for programs
// that do the rest themselves. It sees one layer at a time, so a directory that a
// layer only implies becomes root's with mode 0755, and it cannot add the
// os.feature "erofs" to the config.
//
// Everything written carries the labels that containerd's garbage collector and
// its own converter look for. The caller holds a lease, as converter.Convert does.
// Content is written whole or not at all.
//
// # Known deadlocks
//
// None. The work directory must not be on a lazy layer.
package convertfunc
