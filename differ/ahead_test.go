package differ

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

func TestAheadGivesWhatTheStreamHas(t *testing.T) {
	for _, n := range []int{0, 1, aheadLen - 1, aheadLen, 3*aheadLen + 7, (aheadMost + 3) * aheadLen} {
		data := []byte(random(uint64(n), n))
		for name, src := range map[string]io.Reader{
			"plain":        bytes.NewReader(data),
			"halves":       iotest.HalfReader(bytes.NewReader(data)),
			"data and end": iotest.DataErrReader(bytes.NewReader(data)),
		} {
			sum := sha256.New()
			a := readAhead(t.Context(), src, sum)
			got, err := io.ReadAll(iotest.HalfReader(a))
			require.NoError(t, err, name)
			require.True(t, bytes.Equal(data, got), "%d bytes, %s", n, name)
			require.Equal(t, sha256.Sum256(data), [sha256.Size]byte(sum.Sum(nil)))
			_, err = a.Read(make([]byte, 1))
			require.Equal(t, io.EOF, err, "the end stays")
			a.close()
		}
	}
}

// TestAheadFails: what came before an error is read first, and the error stays.
func TestAheadFails(t *testing.T) {
	broken := errors.New("connection reset")
	data := []byte(random(1, aheadLen+5))
	a := readAhead(t.Context(), io.MultiReader(bytes.NewReader(data), errReader{broken}), sha256.New())
	defer a.close()
	got := make([]byte, len(data))
	_, err := io.ReadFull(a, got)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))
	for range 2 {
		n, err := a.Read(got)
		require.ErrorIs(t, err, broken)
		require.Zero(t, n)
	}
}

// TestAheadStops: a reader that is not served ends with its context, and close
// ends everything in the middle of a stream.
func TestAheadStops(t *testing.T) {
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	a := readAhead(ctx, r, sha256.New())
	done := make(chan error, 1)
	go func() {
		_, err := a.Read(make([]byte, 1))
		done <- err
	}()
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.NoError(t, w.Close()) // or close would wait for more
	a.close()

	endless := readAhead(t.Context(), endlessZeros{}, sha256.New())
	_, err := endless.Read(make([]byte, 1))
	require.NoError(t, err)
	endless.close()
}

type endlessZeros struct{}

func (endlessZeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
