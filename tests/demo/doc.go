// Command demo shows on this machine what lazyerofs is for: the same image,
// behind the same line, cold, first with overlayfs and then with lazyerofs.
//
// It brings everything itself: a registry in this process, a line of 10 ms
// round trip and 100 MB/s in front of it, containerd and our daemon with
// directories of their own, and an image that it builds from the distribution's
// packages, or any image given with -image. It leaves nothing running and
// nothing mounted, also when it is interrupted; built images stay in .cache.
//
// Its parts are stopped in the order that tests/testenv asks for.
package main
