// Command lazyerofs makes, mounts and looks at lazy container images, with or
// without containerd.
package main
