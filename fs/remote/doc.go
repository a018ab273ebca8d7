// Package remote reads registry blobs in ranges.
package remote
