package arch

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/snapshot"
)

// TestDifferAndSnapshotterMeet: the two never import each other and speak
// through names of files only; a difference would silently unpack every layer
// into the wrong place.
func TestDifferAndSnapshotterMeet(t *testing.T) {
	require.Equal(t, snapshot.MarkerFile, differ.MarkerFile)
	require.Equal(t, snapshot.LayerFileName, differ.LayerFile)
}
