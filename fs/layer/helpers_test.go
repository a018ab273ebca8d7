package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/format/formattest"
	"github.com/lazyerofs/lazyerofs/fs/format/zstdseek"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testChunk = 16 << 10

// rig is a layer under test with everything around it.
type rig struct {
	t     testing.TB
	image []byte
	blob  *formattest.Blob
	desc  ocispec.Descriptor
	plan  *format.Plan
	dir   string
	conf  Config

	mu     sync.Mutex
	events []Event
}

// newRig makes a zstd layer of n bytes of image data. The knobs of rig.blob and
// the fields of rig.conf may be set until open.
func newRig(t testing.TB, n int) *rig {
	t.Helper()
	image := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(image)
	for i := 0; i+8192 <= n; i += 8192 {
		copy(image[i:], bytes.Repeat([]byte{byte(i >> 13), 1}, 2048)) // half of it compresses
	}
	data, desc, err := formattest.BuildZstd(image, testChunk)
	require.NoError(t, err)
	r := &rig{t: t, image: image, blob: formattest.NewBlob(data), desc: desc, dir: t.TempDir()}
	r.plan, err = zstdseek.New().Open(context.Background(), r.blob, desc)
	require.NoError(t, err)
	r.plan.Validate = nil
	r.conf.MaxReadAhead = -1
	r.conf.Trace = func(e Event) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.events = append(r.events, e)
	}
	return r
}

func (r *rig) open() *Layer {
	r.t.Helper()
	f, err := cache.OpenFile(cache.Options{Dir: r.dir, ID: r.blob.Digest(), Map: r.plan.Data, FlushInterval: 1000 * time.Hour})
	require.NoError(r.t, err)
	c := r.conf
	c.Plan, c.File = r.plan, f
	if c.Blob == nil {
		c.Blob = r.blob
	}
	l, err := New(c)
	require.NoError(r.t, err)
	r.t.Cleanup(func() { require.NoError(r.t, l.Close(context.Background())) })
	return l
}

// wholeDigest is the digest of the image data.
func (r *rig) wholeDigest() digest.Digest { return digest.FromBytes(r.image) }

// read reads a range through the layer and compares it with the truth.
func (r *rig) read(l *Layer, off, n int64) {
	r.t.Helper()
	p := make([]byte, n)
	got, err := l.ReadAt(context.Background(), p, off)
	if !errors.Is(err, io.EOF) {
		require.NoError(r.t, err)
	}
	require.True(r.t, bytes.Equal(r.image[off:off+int64(got)], p[:got]), "[%d, +%d) is wrong", off, n)
}

// checkResident holds every resident chunk of the data file against the truth.
func (r *rig) checkResident(l *Layer) int {
	r.t.Helper()
	n := 0
	for i := range r.plan.Data.Len() {
		if !l.file.ResidentChunk(i) {
			continue
		}
		d := r.plan.Data.At(i).Data
		p := make([]byte, d.Len)
		_, err := l.Data().ReadAt(p, d.Off)
		require.NoError(r.t, err)
		require.True(r.t, bytes.Equal(r.image[d.Off:d.End()], p), "chunk %d is resident and wrong", i)
		n++
	}
	return n
}

// gate lets requests through one at a time: each announces itself on arrived
// and waits for a verdict.
type gate struct {
	arrived chan []chunk.Extent
	verdict chan error
}

func newGate() *gate { return &gate{arrived: make(chan []chunk.Extent), verdict: make(chan error)} }

func (g *gate) hold(ctx context.Context, es []chunk.Extent) error {
	select {
	case g.arrived <- es:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-g.verdict:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// waiters returns how many calls of fetch wait for chunk i.
func waiters(l *Layer, i int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.calls[i]; c != nil {
		return c.waiters
	}
	return 0
}

// smallDisk mounts a tmpfs of the given size.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

// settled waits until nothing is under way: a read that joins a fetch shares its
// failure, and only the next one begins anew.
func (r *rig) settled(l *Layer) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.calls) == 0
	}, 10*time.Second, time.Millisecond)
}
