package fusesession

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNames(t *testing.T) {
	first := NewName("tree-a-b")
	at, ok := PlaceOf(first)
	require.True(t, ok)
	require.Equal(t, "tree-a-b", at)
	for _, other := range []string{"", "-0123456789abcdef", "a", "a-0123456789abcde", "a-0123456789abcdeg", StateName(first)} {
		_, ok := PlaceOf(other)
		require.False(t, ok, other)
	}
	second := "tree-a-b-7fffffffffffffff"
	all := []string{"other-8000000000000000", second, first, StateName(second), "tree-a-b"}
	require.Equal(t, second, Newest("tree-a-b", all))
	require.Empty(t, Newest("tree-a", all))
}
