package differ

import (
	"fmt"
	"hash/crc32"
	"io"
)

// headLen is how much is read at once where only headers are wanted.
const headLen = 8 << 10

// window reads a source from front to back, in pieces as long as its buffer, and
// can pass over data that nobody wants.
type window struct {
	src  io.ReaderAt
	size int64
	buf  []byte
	from int64 // where what is in buf is from
	n    int   // how much that is
	at   int64 // where the next Read begins

	next    int64  // where the next header begins, once that is known
	crc     uint32 // of what was read from there on
	strayed bool   // something was passed over that nobody knew
}

// Read implements io.Reader.
func (w *window) Read(p []byte) (int, error) {
	got, err := w.ahead()
	if err != nil {
		return 0, err
	}
	n := copy(p, got)
	if w.at >= w.next { // and not the end of data, which tells that it is there
		w.crc = crc32.Update(w.crc, crc32.IEEETable, p[:n])
	}
	w.at += int64(n)
	return n, nil
}

// Seek implements io.Seeker, by which archive/tar passes over data. Nothing is read.
func (w *window) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += w.at
	case io.SeekEnd:
		offset += w.size
	}
	if offset < 0 {
		return w.at, fmt.Errorf("seeking to %d in a layer", offset)
	}
	w.strayed = w.strayed || offset > w.at && offset > w.next
	w.at = offset
	return offset, nil
}

// noteZeros counts zeros among what was read that were seen elsewhere.
func (w *window) noteZeros(n int64) {
	for ; n > 0; n -= min(n, scanLen) {
		w.crc = crc32.Update(w.crc, crc32.IEEETable, zeros[:min(n, scanLen)])
	}
}

// ahead returns what is in the buffer from at on, at least a byte.
func (w *window) ahead() ([]byte, error) {
	if w.at < w.from || w.at >= w.from+int64(w.n) {
		if err := w.fill(); err != nil {
			return nil, err
		}
	}
	return w.buf[w.at-w.from : w.n], nil
}

func (w *window) fill() error {
	left := w.size - w.at
	if left <= 0 {
		return io.EOF
	}
	p := w.buf[:min(left, int64(len(w.buf)))]
	w.from, w.n = w.at, 0
	if err := readFullAt(w.src, p, w.at); err != nil {
		return err
	}
	w.n = len(p)
	return nil
}

// readFullAt fills p. A ReaderAt may report the end along with the last bytes.
func readFullAt(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
