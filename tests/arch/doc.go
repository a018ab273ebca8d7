// Package arch checks what a compiler cannot: which part may depend on which,
// how long a file may be, how much of the repository is test code, that every
// package states its contract, and that the two sides of a hand-shake agree on
// its names. It is imported by nothing.
//
// It asks the go command about the packages as they are on disk and reads their
// files; it changes nothing and holds no lock.
package arch
