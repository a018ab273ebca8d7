package format

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// ErrNotRecorded reports a read of a range that a recording does not hold.
var ErrNotRecorded = errors.New("range was not recorded")

// A recording is a magic number, then for each read its blob offset and its
// length as little-endian 64-bit numbers and its bytes.
const (
	recordMagic     = "lazyrec1"
	recordHeaderLen = 16
)

// Recorder is a Blob that keeps what was read from it.
type Recorder struct {
	remote.Blob

	mu  sync.Mutex
	buf []byte
}

// Record returns a Blob that reads from b and keeps what its readers get, so
// that Replay can open the same layer again without a network.
func Record(b remote.Blob) *Recorder {
	return &Recorder{Blob: b, buf: []byte(recordMagic)}
}

// ReadAt reads from the blob and keeps what it gives. See remote.Blob.
func (r *Recorder) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := r.Blob.ReadAt(ctx, p, off)
	if err != nil {
		return n, err
	}
	r.keep(p[:n], off)
	return n, nil
}

// ReadExtents reads from the blob and keeps what fn read of the extents for which
// it returns nil: what it refused is not to be replayed. See remote.Blob.
func (r *Recorder) ReadExtents(ctx context.Context, es []chunk.Extent, fn func(i int, r io.Reader) error) error {
	return r.Blob.ReadExtents(ctx, es, func(i int, rd io.Reader) error {
		var read bytes.Buffer
		if err := fn(i, io.TeeReader(rd, &read)); err != nil {
			return err
		}
		r.keep(read.Bytes(), es[i].Off)
		return nil
	})
}

// keep records a read.
func (r *Recorder) keep(p []byte, off int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.buf = binary.LittleEndian.AppendUint64(r.buf, uint64(off))
	r.buf = binary.LittleEndian.AppendUint64(r.buf, uint64(len(p)))
	r.buf = append(r.buf, p...)
}

// Bytes returns the recording. The slice is not changed by later reads.
func (r *Recorder) Bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf[:len(r.buf):len(r.buf)]
}

// replayed is a Blob whose reads are answered from a recording.
type replayed struct {
	remote.Blob

	parts []part
}

type part struct {
	off  int64
	data []byte
}

// Replay returns a Blob whose reads give what recording holds and fail with
// ErrNotRecorded for any other range; every other method is b's. The bytes are
// as untrusted as b's own. A recording that is torn or foreign gives a
// *chunk.CorruptError.
func Replay(b remote.Blob, recording []byte) (remote.Blob, error) {
	if len(recording) < len(recordMagic) || string(recording[:len(recordMagic)]) != recordMagic {
		return nil, badRecording("it does not start with %q", recordMagic)
	}
	r := &replayed{Blob: b}
	for rest := recording[len(recordMagic):]; len(rest) > 0; {
		if len(rest) < recordHeaderLen {
			return nil, badRecording("it ends inside a header")
		}
		off := binary.LittleEndian.Uint64(rest)
		n := binary.LittleEndian.Uint64(rest[8:])
		rest = rest[recordHeaderLen:]
		if n > uint64(len(rest)) || off > uint64(1<<63-1)-n {
			return nil, badRecording("a part of %d bytes at %d does not fit", n, off)
		}
		r.parts = append(r.parts, part{int64(off), rest[:n:n]})
		rest = rest[n:]
	}
	return r, nil
}

func badRecording(format string, args ...any) error {
	return &chunk.CorruptError{Origin: chunk.OriginDisk, What: "recorded index", Reason: fmt.Sprintf(format, args...)}
}

// ReadAt copies from the part that holds all of [off, off+len(p)).
func (r *replayed) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	data, err := r.find(off, int64(len(p)))
	return copy(p, data), err
}

// ReadExtents hands each extent to fn in turn. See remote.Blob.
func (r *replayed) ReadExtents(ctx context.Context, es []chunk.Extent, fn func(i int, r io.Reader) error) error {
	for i, e := range es {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := r.find(e.Off, e.Len)
		if err != nil {
			return err
		}
		if err := fn(i, bytes.NewReader(data)); err != nil {
			return err
		}
	}
	return nil
}

// find returns the n bytes at off from the part that holds them all.
func (r *replayed) find(off, n int64) ([]byte, error) {
	for _, part := range r.parts {
		if d := off - part.off; d >= 0 && d <= int64(len(part.data)) && n <= int64(len(part.data))-d {
			return part.data[d : d+n], nil
		}
	}
	return nil, fmt.Errorf("reading %d bytes at %d: %w", n, off, errors.Join(ErrNotRecorded, io.ErrUnexpectedEOF))
}
