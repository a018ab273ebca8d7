// Package image finds an image in a registry and reads its manifest and config
// for the commands that mount it. It never fetches a layer.
package image
