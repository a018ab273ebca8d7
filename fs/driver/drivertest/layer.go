package drivertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// chunkSize is the fake layer's unit of residency in bytes.
const chunkSize = 64 << 10

// Layer is a driver.Layer over an Image whose data file fills on demand.
type Layer struct {
	id         string
	img        *Image
	data, meta *os.File
	complete   chan struct{}
	resident   []atomic.Bool // by chunk
	missing    atomic.Int64  // chunks

	fills   atomic.Int64
	failure atomic.Pointer[error]

	mu   sync.Mutex
	gate chan struct{} // nil: fills pass
	held chan struct{} // closed when the first fill waits at the gate
}

// NewLayer is CreateLayer for a test.
func NewLayer(tb testing.TB, dir, id string, img *Image) *Layer {
	tb.Helper()
	l, err := CreateLayer(dir, id, img)
	require.NoError(tb, err)
	return l
}

// CreateLayer makes the files of a layer in dir, with only the metadata there.
func CreateLayer(dir, id string, img *Image) (*Layer, error) {
	data, err := os.OpenFile(filepath.Join(dir, id+".data"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = data.WriteAt(img.Data[:img.Pinned], 0)
	err = errors.Join(err, data.Truncate(int64(len(img.Data))))
	var meta *os.File
	if err == nil && img.Meta != nil {
		path := filepath.Join(dir, id+".meta")
		if err = os.WriteFile(path, img.Meta, 0o600); err == nil {
			meta, err = os.Open(path)
		}
	}
	if err != nil {
		return nil, errors.Join(err, data.Close())
	}
	return OpenLayer(id, img, data, meta), nil
}

// OpenLayer is the layer on files that are there; what data holds beyond the
// metadata is not known, so it is filled again.
func OpenLayer(id string, img *Image, data, meta *os.File) *Layer {
	l := &Layer{
		id: id, img: img, data: data, meta: meta,
		complete: make(chan struct{}),
		resident: make([]atomic.Bool, (len(img.Data)+chunkSize-1)/chunkSize),
	}
	l.missing.Store(int64(len(l.resident)))
	for i := range int(img.Pinned / chunkSize) {
		l.put(i)
	}
	return l
}

// Successor is the same layer as another process would open it, on the
// descriptor that was kept, with the same residency.
func (l *Layer) Successor(data *os.File) *Layer {
	n := OpenLayer(l.id, l.img, data, l.meta)
	for i := range l.resident {
		if l.resident[i].Load() {
			n.put(i)
		}
	}
	return n
}

// put sets the bit of a chunk, once.
func (l *Layer) put(i int) {
	if !l.resident[i].Swap(true) && l.missing.Add(-1) == 0 {
		close(l.complete)
	}
}

// Close closes the files.
func (l *Layer) Close() error {
	if l.meta != nil {
		if err := l.meta.Close(); err != nil {
			return err
		}
	}
	return l.data.Close()
}

// ID implements driver.Layer, like the methods below.
func (l *Layer) ID() string { return l.id }

// Meta returns the metadata image or nil.
func (l *Layer) Meta() *os.File { return l.meta }

// Data returns the writer.
func (l *Layer) Data() *os.File { return l.data }

// Complete is closed when every chunk is there.
func (l *Layer) Complete() <-chan struct{} { return l.complete }

// Resident reports whether every chunk of the range is there.
func (l *Layer) Resident(off, n int64) bool {
	for i := off / chunkSize; i*chunkSize < off+n; i++ {
		if !l.resident[i].Load() {
			return false
		}
	}
	return true
}

// Ensure copies the missing chunks of the range from the image.
func (l *Layer) Ensure(ctx context.Context, off, n int64) error {
	if err := l.wait(ctx); err != nil {
		return err
	}
	for i := off / chunkSize; i*chunkSize < off+n; i++ {
		if l.resident[i].Load() {
			continue
		}
		if err := l.failure.Load(); err != nil {
			return *err
		}
		from := i * chunkSize
		to := min(from+chunkSize, int64(len(l.img.Data)))
		if _, err := l.data.WriteAt(l.img.Data[from:to], from); err != nil {
			return fmt.Errorf("filling chunk %d: %w", i, err)
		}
		l.fills.Add(1)
		l.put(int(i))
	}
	return nil
}

// ReadAt reads image data.
func (l *Layer) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n := min(int64(len(p)), int64(len(l.img.Data))-off)
	if err := l.Ensure(ctx, off, n); err != nil {
		return 0, err
	}
	return l.data.ReadAt(p, off)
}

// Fail makes fills fail with err, or succeed again with nil.
func (l *Layer) Fail(err error) {
	if err == nil {
		l.failure.Store(nil)
		return
	}
	l.failure.Store(&err)
}

// Hold makes fills wait until the returned function is called.
func (l *Layer) Hold() (release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	gate := make(chan struct{})
	l.gate, l.held = gate, make(chan struct{})
	return sync.OnceFunc(func() {
		l.mu.Lock()
		l.gate = nil
		l.mu.Unlock()
		close(gate)
	})
}

// Held is closed once a fill waits because of the last Hold.
func (l *Layer) Held() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held
}

func (l *Layer) wait(ctx context.Context) error {
	l.mu.Lock()
	gate := l.gate
	if gate != nil {
		select {
		case <-l.held:
		default:
			close(l.held)
		}
	}
	l.mu.Unlock()
	if gate == nil {
		return nil
	}
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Fills counts chunks that were filled on demand.
func (l *Layer) Fills() int64 { return l.fills.Load() }

// Fill makes everything resident.
func (l *Layer) Fill(ctx context.Context) error {
	return l.Ensure(ctx, 0, int64(len(l.img.Data)))
}
