package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// Errors that callers tell apart.
var (
	// ErrNoSpace marks a write that found the disk or the quota full. The chunk
	// is not resident; nothing that was resident is affected.
	ErrNoSpace = errors.New("no space left for image data")
	// ErrNotResident marks a read of image data that has not arrived.
	ErrNotResident = errors.New("image data is not resident")
	// ErrInUse marks a layer that another File, here or in another process, has
	// open.
	ErrInUse = errors.New("layer is in use")
)

// Names of the files in a layer's directory.
const (
	dataName   = "data"
	bitmapName = "bitmap"
	recordName = "meta.json"
	indexName  = "index"
)

// DefaultFlushInterval is how long a set bit waits for the disk at most. A
// crash within it costs fetching those chunks again.
const DefaultFlushInterval = 5 * time.Second

// Options say what to open.
type Options struct {
	// Dir is the layer's directory. It is made when it does not exist.
	Dir string
	// ID is the digest of the layer's blob.
	ID digest.Digest
	// Map is the layer's chunk map. A bitmap of another map is discarded.
	Map chunk.Map
	// Writer is the descriptor of the data file that a predecessor of this
	// process left, or nil to open the file. The File owns it from a successful
	// OpenFile on.
	Writer *os.File
	// FlushInterval overrides DefaultFlushInterval when above 0.
	FlushInterval time.Duration
}

// File is the data file of one layer with its bitmap. Its methods are safe for
// concurrent use.
type File struct {
	dir  string
	id   identity
	name string // of the layer, for errors
	m    chunk.Map
	lock *os.File

	data   *os.File
	bitmap *os.File

	bits     bitset
	whole    atomic.Bool  // every bit is set
	resident atomic.Int64 // bytes of image data

	// writing is held shared from before a chunk is written until its bit is set,
	// and exclusively while bits are taken back after a failed sync.
	writing sync.RWMutex

	flushing   sync.Mutex // guards durable, unrecorded and the bitmap file
	durable    slot       // what is known to be on disk
	unrecorded bool       // sealed, but sealName does not say so
	seal       atomic.Pointer[digest.Digest]
	verified   atomic.Bool
	complete   chan struct{} // closed once durable has every bit
	datasync   func(*os.File) error

	dirty, urgent chan struct{} // capacity 1: wake the flusher
	stop          context.CancelFunc
	stopped       chan struct{}
	closeOnce     sync.Once
	closeErr      error
}

// OpenFile opens the data file of a layer and believes of its bitmap what is
// whole and belongs to it. It gives ErrInUse when the layer is open already.
// On success a goroutine that Close ends keeps the bitmap on disk up to date.
func OpenFile(o Options) (*File, error) {
	f := &File{
		dir: o.Dir, name: o.ID.String(), m: o.Map,
		id:       identity{chunks: o.Map.Len(), size: o.Map.Size(), fingerprint: fingerprint(o.ID.String(), o.Map)},
		bits:     newBitset(o.Map.Len()),
		complete: make(chan struct{}),
		datasync: datasync,
		dirty:    make(chan struct{}, 1),
		urgent:   make(chan struct{}, 1),
		stopped:  make(chan struct{}),
	}
	if err := f.open(o.Writer); err != nil {
		err = errors.Join(err, f.closeFiles(o.Writer))
		return nil, fmt.Errorf("opening the data file of %s in %s: %w", o.ID, o.Dir, err)
	}
	if o.FlushInterval <= 0 {
		o.FlushInterval = DefaultFlushInterval
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	go f.flusher(ctx, o.FlushInterval)
	return f, nil
}

func (f *File) open(writer *os.File) (err error) {
	if f.lock, err = lockDir(f.dir, true); err != nil {
		return err
	}
	path := filepath.Join(f.dir, dataName)
	if writer != nil {
		f.data = writer
		if err := sameFile(writer, path); err != nil {
			return err
		}
	} else if err = f.openData(path); err != nil {
		return err
	}
	if f.bitmap, err = os.OpenFile(filepath.Join(f.dir, bitmapName), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if err := f.believe(); err != nil {
		return err
	}
	if writer == nil { // one that can be written to was never sealed
		replace, err := f.doubtSeal()
		if err == nil && replace {
			err = f.startOver()
		}
		if err != nil {
			return err
		}
	}
	f.adopt()
	return reserve(f.bitmap, 2*slotLen(f.id.chunks))
}

// believe reads what the bitmap says of the data file, if it can be believed.
func (f *File) believe() error {
	fresh, err := f.prepareData()
	if err != nil {
		return err
	}
	f.durable = slot{words: make([]uint64, len(f.bits))}
	if fresh {
		return nil
	}
	s, err := loadSlots(&f.id, f.bitmap)
	if err != nil {
		return err
	}
	f.durable = *s
	return nil
}

// prepareData gives the data file its length and its tag. It reports whether
// the file is new or not as it was left, so that no bitmap may be believed.
func (f *File) prepareData() (fresh bool, err error) {
	want := (f.id.size + chunk.BlockSize - 1) / chunk.BlockSize * chunk.BlockSize
	st, err := f.data.Stat()
	if err != nil {
		return false, err
	}
	if st.Size() != want {
		fresh = true
		if f.seal.Load() != nil {
			return true, nil // it can only be replaced
		}
		if err := f.data.Truncate(want); err != nil {
			return false, err
		}
	}
	found, ok, err := readTag(f.data)
	if err != nil {
		return false, err
	}
	if ok && !fresh {
		f.id.tag = found
		return false, nil
	}
	if f.seal.Load() != nil {
		return true, nil
	}
	f.id.tag = newTag()
	return true, writeTag(f.data, f.id.tag)
}

// adopt makes the bits that are on disk the bits in memory.
func (f *File) adopt() {
	f.bits.restore(f.durable.words)
	f.verified.Store(f.durable.verified)
	f.recount()
	if f.whole.Load() {
		close(f.complete)
	}
}

// recount derives the counters from the bits.
func (f *File) recount() {
	var n int64
	for i := range f.id.chunks {
		if f.bits.get(i) {
			n += f.m.At(i).Data.Len
		}
	}
	f.resident.Store(n)
	f.whole.Store(n == f.id.size)
}

// ID returns the digest of the layer's blob.
func (f *File) ID() string { return f.name }

// Data returns the descriptor through which all I/O on the data file must go. The
// File owns it. It is for reading only once the file is sealed, or was to be.
func (f *File) Data() *os.File { return f.data }

// Size returns the length of the image data in bytes. The data file is as long,
// rounded up to chunk.BlockSize.
func (f *File) Size() int64 { return f.id.size }

// Resident reports whether image data [off, off+n) is in the data file. What
// lies after the image's end counts as resident, what lies before 0 does not.
// It takes no lock and does not allocate.
func (f *File) Resident(off, n int64) bool {
	if f.whole.Load() {
		return true
	}
	if off < 0 {
		return false
	}
	if n <= 0 || off >= f.id.size {
		return true
	}
	last := f.id.size - 1
	if n-1 < last-off {
		last = off + n - 1
	}
	first := f.m.Find(off)
	c := f.m.At(first)
	if last < c.Data.Off+c.Data.Len {
		return f.bits.get(first)
	}
	return f.bits.all(first, f.m.Find(last))
}

// ResidentChunk reports whether chunk i, 0 <= i < Map.Len, is in the data file.
// It takes no lock and does not allocate.
func (f *File) ResidentChunk(i int) bool { return f.bits.get(i) }

// WriteChunk puts the verified image data of chunk i into the data file. A
// chunk that is resident is not written again. A full disk gives ErrNoSpace;
// after any error the chunk is not resident, whatever part of it was written.
func (f *File) WriteChunk(i int, data []byte) error {
	if i < 0 || i >= f.id.chunks {
		return fmt.Errorf("writing chunk %d of %s: it has %d chunks", i, f.name, f.id.chunks)
	}
	c := f.m.At(i)
	if int64(len(data)) != c.Data.Len {
		return fmt.Errorf("writing chunk %d of %s: got %d bytes of %d", i, f.name, len(data), c.Data.Len)
	}
	f.writing.RLock()
	defer f.writing.RUnlock()
	if f.bits.get(i) {
		return nil
	}
	if _, err := f.data.WriteAt(data, c.Data.Off); err != nil {
		if isNoSpace(err) {
			err = fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
		return fmt.Errorf("writing chunk %d of %s: %w", i, f.name, err)
	}
	if !f.bits.set(i) {
		return nil
	}
	if f.resident.Add(c.Data.Len) == f.id.size {
		f.whole.Store(true)
		wake(f.urgent)
	}
	wake(f.dirty)
	return nil
}

// ReadAt reads image data. It gives ErrNotResident, and no bytes, unless all of
// it is in the data file, and io.EOF as an io.ReaderAt does.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if !f.Resident(off, int64(len(p))) {
		return 0, fmt.Errorf("reading %d bytes at %d of %s: %w", len(p), off, f.name, ErrNotResident)
	}
	return f.data.ReadAt(p, off)
}

// Complete is closed once every chunk is in the data file and both data and
// bitmap are on disk, so that a successor of this process finds them so.
func (f *File) Complete() <-chan struct{} { return f.complete }

// Progress returns how many bytes of image data are resident and how many there
// are.
func (f *File) Progress() (resident, total int64) { return f.resident.Load(), f.id.size }

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
