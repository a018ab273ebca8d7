// Package erofs is our own EROFS: one entry model, a strict parser, a writer and mounting.
package erofs
