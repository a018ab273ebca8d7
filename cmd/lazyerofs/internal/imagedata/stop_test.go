package imagedata

import (
	"context"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCopiesCanBeStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Stoppable(ctx, os.Stdin).Read(nil)
	require.ErrorIs(t, err, context.Canceled)
}
