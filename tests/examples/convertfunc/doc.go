// Command convertfunc converts an image inside a containerd with the library of
// this project, as nerdctl or another client could. It is an example: the one
// line that matters is in convert. "lazyerofs convert" needs no containerd.
package main
