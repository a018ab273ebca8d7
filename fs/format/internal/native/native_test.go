package native

import (
	"crypto/sha256"
	"crypto/sha512"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

func TestHashes(t *testing.T) {
	stored := []byte("stored")
	long, short := sha512.Sum512(stored), sha256.Sum256(stored)
	c := chunk.Chunk{Blob: chunk.Extent{Off: 7, Len: int64(len(stored))}}
	for _, sum := range [][]byte{long[:], short[:]} {
		c.Sum = sum
		require.NoError(t, check("sha256:x", stored, c))
		require.ErrorContains(t, check("sha256:x", []byte("st0red"), c), "its digest is not")
	}
	require.ErrorContains(t, check("sha256:x", stored[1:], c), "5 bytes came instead of 6")
	c.Sum = nil
	err := check("sha256:x", stored, c)
	require.ErrorContains(t, err, "digest of 0 bytes")
	var ce *chunk.CorruptError
	require.ErrorAs(t, err, &ce)
}

func TestMatch(t *testing.T) {
	k := Kind{ID: "k", Types: []string{"a", "b"}}
	require.Equal(t, "k", k.Name())
	for mediaType, want := range map[string]bool{"a": true, "b": true, "c": false, "": false} {
		require.Equal(t, want, k.Match(ocispec.Descriptor{MediaType: mediaType}), mediaType)
	}
}
