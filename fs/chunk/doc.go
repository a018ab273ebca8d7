// Package chunk is the vocabulary that all parts share.
package chunk
