package differ

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
)

// run is a part of a file that is stored. What lies between runs is a hole.
type run struct{ off, len int64 }

const (
	// scanLen is how much of a file is read and looked at at once.
	scanLen = 64 << 10
	// maxUnits bounds the chunk map of a file with holes: 8 bytes of metadata,
	// which is always resident, for each unit.
	maxUnits = 8192
)

var zeros [scanLen]byte

// holeUnit returns the granularity of holes in a file of size bytes, a power of
// two. A 4 KiB hole would be of no use: zeros compress to nothing, but the chunk
// map would have an entry for each 4 KiB of the file, and kernels before 7.2 read
// each map entry's range in a request of its own.
func holeUnit(size int64) int64 {
	unit := int64(scanLen)
	for size/unit > maxUnits {
		unit *= 2
	}
	return unit
}

// scanRuns reads the size bytes of a file from r, hands all but the holes to
// emit, in pieces that are valid only during the call, and appends what it
// handed on to runs. A hole is a unit of zeros, wherever they come from: an
// archive's sparse map reads as zeros too.
func scanRuns(ctx context.Context, r io.Reader, size int64, buf []byte, runs []run, emit func([]byte) error) ([]run, error) {
	unit := holeUnit(size)
	first := len(runs)
	for off := int64(0); off < size; off += unit {
		n := min(unit, size-off)
		stored, err := scanUnit(ctx, r, n, buf, emit)
		if err != nil {
			return runs, err
		}
		if stored {
			runs = appendRun(runs, first, off, n)
		}
	}
	return runs, nil
}

// appendRun appends the next n bytes that a file stores, which go with those before
// them if nothing is between. The file's own runs begin at first.
func appendRun(runs []run, first int, off, n int64) []run {
	if k := len(runs) - 1; k >= first && runs[k].off+runs[k].len == off {
		runs[k].len += n
		return runs
	}
	return append(runs, run{off: off, len: n})
}

// scanUnit reads n bytes and emits them unless all are zero. Zeros are only
// counted until the first other byte: a unit may be longer than any buffer.
func scanUnit(ctx context.Context, r io.Reader, n int64, buf []byte, emit func([]byte) error) (stored bool, err error) {
	var blank int64
	for done := int64(0); done < n; {
		if err := ctx.Err(); err != nil { // a hole in an archive is read without reading the archive
			return false, err
		}
		p := buf[:min(int64(len(buf)), n-done)]
		if _, err := io.ReadFull(r, p); err != nil {
			return false, fileReadError(err)
		}
		done += int64(len(p))
		if !stored && bytes.Equal(p, zeros[:len(p)]) {
			blank += int64(len(p))
			continue
		}
		for ; blank > 0; blank -= min(blank, scanLen) {
			if err := emit(zeros[:min(blank, scanLen)]); err != nil {
				return false, err
			}
		}
		stored = true
		if err := emit(p); err != nil {
			return false, err
		}
	}
	return stored, nil
}

// fileReadError gives a failed read of a file's data its meaning: a file that is
// shorter than its header says was cut off.
func fileReadError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("reading its data: %w", ErrTruncated)
	}
	return fmt.Errorf("reading its data: %w", err)
}
