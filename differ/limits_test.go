package differ

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/metrics"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/pkg/archive"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// openFiles counts this process' descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	ents, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(ents)
}

// tarStream writes a tar of big and small files of random bytes while it is
// read, so that the test does not hold it.
func tarStream(big, small int) io.ReadCloser {
	pr, pw := io.Pipe()
	go func() {
		w := tar.NewWriter(pw)
		r := rand.NewChaCha8([32]byte{1})
		put := func(name string, size int64) error {
			if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size}); err != nil {
				return err
			}
			_, err := io.CopyN(w, r, size)
			return err
		}
		var err error
		for i := 0; i < big && err == nil; i++ {
			err = put(fmt.Sprintf("big/%d", i), 8<<20+5)
		}
		for i := 0; i < small && err == nil; i++ {
			err = put(fmt.Sprintf("small/%d", i), 30000)
		}
		pw.CloseWithError(errors.Join(err, w.Close()))
	}()
	return pr
}

// TestMemory: 320 MB go through while the heap stays below 48 MB.
func TestMemory(t *testing.T) {
	src := tarStream(24, 4000)
	defer src.Close()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	var most uint64
	var calls int
	res, err := Convert(t.Context(), src, io.Discard, Config{
		Level: 1, Workers: 4, SpoolDir: t.TempDir(),
		Progress: func(int64) {
			if calls++; calls%256 == 0 {
				metrics.Read(sample)
				most = max(most, sample[0].Value.Uint64())
			}
		},
	})
	require.NoError(t, err)
	require.Greater(t, res.TarSize, int64(300<<20))
	require.Greater(t, calls, 256)
	require.Less(t, most, uint64(48<<20))
}

// peak calls sample to look at the heap, and returns the most that was seen.
func peak() (sample func(int64), most *uint64) {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	most = new(uint64)
	calls := 0
	return func(int64) {
		if calls++; calls%64 == 0 {
			metrics.Read(s)
			*most = max(*most, s[0].Value.Uint64())
		}
	}, most
}

// TestServiceMemory: 110 MB are unpacked, from tars and from a native layer, and
// compared, while the heap stays below 48 MB.
func TestServiceMemory(t *testing.T) {
	big := newBox(t, "", func(string) {})
	in := tarStream(10, 1000)
	defer in.Close()
	tarFile := filepath.Join(t.TempDir(), "tar")
	f, err := os.Create(tarFile)
	require.NoError(t, err)
	n, err := io.Copy(f, in)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	f, err = os.Open(tarFile)
	require.NoError(t, err)
	defer f.Close()
	_, err = archive.Apply(t.Context(), big.merged, f)
	require.NoError(t, err)

	sample, most := peak()
	d := New(oneFile{path: tarFile}, ServiceConfig{})
	_, mounts := snapshotDir(t, t.TempDir())
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("x"), Size: n}
	progress := func(_ context.Context, _ ocispec.Descriptor, c *diff.ApplyConfig) error {
		c.Progress = sample
		return nil
	}
	_, err = d.Apply(t.Context(), desc, mounts, progress)
	require.NoError(t, err)
	require.Positive(t, *most)

	store := newLayerStore(t)
	counted := countingStore{Store: store, sample: sample}
	for _, mediaType := range []string{chunk.MediaTypeLayerZstd, ocispec.MediaTypeImageLayerZstd} {
		desc, err = New(counted, ServiceConfig{Snapshots: big.snaps, Layer: Config{Level: 1, Workers: 2, SpoolDir: t.TempDir()}}).
			Compare(t.Context(), big.parent, big.mounts, diff.WithMediaType(mediaType))
		require.NoError(t, err)
		require.Greater(t, desc.Size, int64(100<<20))
		_, mounts = snapshotDir(t, t.TempDir())
		_, err = New(store, ServiceConfig{}).Apply(t.Context(), desc, mounts, progress)
		require.NoError(t, err)
	}
	require.Less(t, *most, uint64(48<<20))
}

// countingStore looks at the heap whenever something is written.
type countingStore struct {
	content.Store
	sample func(int64)
}

type countingWriter struct {
	content.Writer
	sample func(int64)
}

func (s countingStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := s.Store.Writer(ctx, opts...)
	return countingWriter{w, s.sample}, err
}

func (w countingWriter) Write(p []byte) (int, error) {
	w.sample(0)
	return w.Writer.Write(p)
}

// TestCancel: at any moment everything ends, and nothing is left in the spool
// directory or open.
func TestCancel(t *testing.T) {
	src := layerTar(t)
	spool := t.TempDir()
	before := openFiles(t)
	for _, at := range []int64{1, 100000, 2000000, int64(len(src)) - 600} {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := Convert(ctx, bytes.NewReader(src), io.Discard, Config{SpoolDir: spool, Progress: func(n int64) {
			if n >= at {
				cancel()
			}
		}})
		cancel()
		require.ErrorIs(t, err, context.Canceled)
	}
	left, err := os.ReadDir(spool)
	require.NoError(t, err)
	require.Empty(t, left)
	closesAll(t, before)
}

// failAfter fails a write after n bytes.
type failAfter struct {
	n      int
	err    error
	cancel func()
}

func (w *failAfter) Write(p []byte) (int, error) {
	if w.n -= len(p); w.n < 0 {
		if w.cancel != nil {
			w.cancel()
			return len(p), nil
		}
		return 0, w.err
	}
	return len(p), nil
}

func TestFailingOutput(t *testing.T) {
	src := layerTar(t)
	before := openFiles(t)
	broken := errors.New("broken pipe")
	for _, n := range []int{0, 5000, 300000} {
		_, err := Convert(t.Context(), bytes.NewReader(src), &failAfter{n: n, err: broken}, Config{SpoolDir: t.TempDir()})
		require.ErrorIs(t, err, broken)
		ctx, cancel := context.WithCancel(t.Context())
		_, err = Convert(ctx, bytes.NewReader(src), &failAfter{n: n, cancel: cancel}, Config{SpoolDir: t.TempDir()})
		cancel()
		require.ErrorIs(t, err, context.Canceled)
	}
	closesAll(t, before)
}

func TestFailingInput(t *testing.T) {
	src := layerTar(t)
	broken := errors.New("connection reset")
	for _, n := range []int64{0, 2, 700000} {
		r := io.MultiReader(io.LimitReader(bytes.NewReader(src), n), errReader{broken})
		_, err := Convert(t.Context(), r, io.Discard, Config{SpoolDir: t.TempDir()})
		require.ErrorIs(t, err, broken)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// TestDiskFull: the error names the directory that is too small.
func TestDiskFull(t *testing.T) {
	d := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", d, "tmpfs", 0, "size=1m"))
	defer func() { require.NoError(t, unix.Unmount(d, 0)) }()
	for _, e := range []ent{file("big", random(1, 4<<20)), file("small", random(2, 200000))} {
		var ents []ent
		for i := range 8 {
			e := e
			e.Name += fmt.Sprint(i)
			ents = append(ents, e)
		}
		_, err := Convert(t.Context(), bytes.NewReader(mkTar(t, ents...)), io.Discard, Config{SpoolDir: d})
		require.ErrorIs(t, err, unix.ENOSPC)
		require.ErrorContains(t, err, "spool file in "+d)
	}
}

// claim is a tar of one sparse file (GNU's PAX 0.1) that has no data.
func claim(size int64) []byte {
	n := fmt.Sprint(size)
	return append(append(pax('x', "GNU.sparse.size", n, "GNU.sparse.numblocks", "1", "GNU.sparse.map", n+",0"),
		header("claim", '0', 0, map[int]string{magicAt: ustar})...), make([]byte, 1024)...)
}

// impatient is a context that ends when it was asked so many times.
type impatient struct {
	context.Context
	asked *atomic.Int64
}

func (c impatient) Err() error {
	if c.asked.Add(-1) < 0 {
		return context.Canceled
	}
	return c.Context.Err()
}

// TestCancelInHole: a few bytes of tar can claim years of zeros, during which the
// context is asked, and what no layer can hold is refused at once.
func TestCancelInHole(t *testing.T) {
	var asked atomic.Int64
	asked.Store(2000) // 128 MB
	_, err := Convert(impatient{t.Context(), &asked}, bytes.NewReader(claim(16<<40)), io.Discard, Config{SpoolDir: t.TempDir()})
	require.ErrorIs(t, err, context.Canceled)
	_, err = Convert(t.Context(), bytes.NewReader(claim(16<<40+1)), io.Discard, Config{SpoolDir: t.TempDir()})
	require.ErrorContains(t, err, `"claim" has size 17592186044417, a layer's files have at most 17592186044416 bytes`)
}
