// Package verity has the daemon as it ships seal complete layers with fs-verity and
// mount them through dm-verity, inside a guest whose kernel and file system have both:
// few machines that tests run on do. It is there too that the tests of packages which
// do either find it to work.
//
// Its tests need the build tag guest.
package verity
