package progress

import (
	"bytes"
	"os"
	"sync"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/differ/converter"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var a, b = digest.FromString("a"), digest.FromString("b")

func done(d digest.Digest, r converter.LayerResult) converter.Event {
	return converter.Event{Layer: d, Phase: converter.Done, Bytes: r.Size, Total: r.Size, Result: &r}
}

func play(d Display) {
	var wg sync.WaitGroup
	for _, l := range []digest.Digest{a, b} {
		wg.Go(func() {
			for i := range int64(100) {
				d.Show(converter.Event{Layer: l, Phase: converter.Convert, Bytes: i * 10, Total: 1000})
			}
			for i := range int64(100) {
				d.Show(converter.Event{Layer: l, Phase: converter.Push, Bytes: i, Total: 100})
			}
			if l == a {
				d.Show(done(a, converter.LayerResult{SourceSize: 1000, Size: 100, Inodes: 3, Chunks: 2, Seconds: 1.25}))
			}
		})
	}
	wg.Wait()
	d.Close()
}

func TestLines(t *testing.T) {
	var out bytes.Buffer
	play(New(&out))
	require.Equal(t, "ca978112ca1b  1kB -> 100B, 3 inodes, 2 chunks, 1.2 s\n", out.String())
	require.Contains(t, Line(b, &converter.LayerResult{Size: 5, Reused: true, Existed: true}), "carried over, 5B, was there")
}

func TestFileThatIsNoTerminal(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer f.Close()
	require.IsType(t, &lines{}, New(f))
}

// TestBars ends with one bar complete and one, as after an error, not.
func TestBars(t *testing.T) {
	var out bytes.Buffer
	play(newBars(&out))
	require.Contains(t, out.String(), "ca978112ca1b  1kB -> 100B, 3 inodes")
	require.NotContains(t, out.String(), "101B")
}

// TestBarsOfOtherWays shows an index, whose tars are copied after the push, a
// layer that an earlier run converted, and a check without results.
func TestBarsOfOtherWays(t *testing.T) {
	var out bytes.Buffer
	d := newBars(&out)
	for _, p := range []converter.Phase{converter.Convert, converter.Push, converter.Copy} {
		for i := range int64(11) {
			d.Show(converter.Event{Layer: a, Phase: p, Bytes: 10 * i, Total: 100})
		}
	}
	d.Show(done(a, converter.LayerResult{SourceSize: 100, Size: 100, Inodes: 3, Resumed: true, Existed: true}))
	d.Show(converter.Event{Layer: b, Phase: converter.Check, Bytes: 100, Total: 100})
	d.Show(converter.Event{Layer: b, Phase: converter.Done, Bytes: 100, Total: 100})
	d.Close()
	require.Contains(t, out.String(), "100B -> 100B, 3 inodes")
	require.Contains(t, out.String(), "3e23e8160039  done")
}
