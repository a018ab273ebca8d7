// Package image makes the image of tests in guests: small files, big and sparse
// ones, and a layer that deletes and replaces, pushed to a registry in the test's
// process and converted there. It knows every byte of it.
package image
