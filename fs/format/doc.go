// Package format turns layer blobs into plans.
package format
