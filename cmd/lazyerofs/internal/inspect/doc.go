// Package inspect looks into the layers of an image: how they are cut, how much of
// them is metadata, and what a kernel needs to mount them. It fetches indexes and
// metadata only, checks both as a mount would, and keeps nothing.
package inspect
