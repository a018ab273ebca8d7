package format

import (
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

// Recorder is a Blob that keeps what ReadAt returned.
type Recorder struct {
	remote.Blob

	mu  sync.Mutex
	buf []byte
}

// Record returns a Blob that reads from b and keeps what ReadAt returns, so
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
	r.mu.Lock()
	defer r.mu.Unlock()
	r.buf = binary.LittleEndian.AppendUint64(r.buf, uint64(off))
	r.buf = binary.LittleEndian.AppendUint64(r.buf, uint64(n))
	r.buf = append(r.buf, p[:n]...)
	return n, nil
}

// Bytes returns the recording. The slice is not changed by later reads.
func (r *Recorder) Bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf[:len(r.buf):len(r.buf)]
}

// replayed is a Blob whose ReadAt is answered from a recording.
type replayed struct {
	remote.Blob

	parts []part
}

type part struct {
	off  int64
	data []byte
}

// Replay returns a Blob whose ReadAt gives what recording holds and fails with
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
	for _, part := range r.parts {
		if d := off - part.off; d >= 0 && d <= int64(len(part.data)) && int64(len(p)) <= int64(len(part.data))-d {
			return copy(p, part.data[d:]), nil
		}
	}
	return 0, fmt.Errorf("reading %d bytes at %d: %w", len(p), off, errors.Join(ErrNotRecorded, io.ErrUnexpectedEOF))
}
