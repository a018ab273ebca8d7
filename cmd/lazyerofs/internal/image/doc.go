// Package image finds an image in a registry and reads its manifest and config
// for the commands that look at images. It never fetches a layer.
package image
