package fanotify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// errEvent reports an event that is not laid out as we know it.
var errEvent = errors.New("malformed fanotify event")

// Sizes of uapi/linux/fanotify.h: struct fanotify_event_metadata, struct
// fanotify_event_info_header, struct fanotify_event_info_range.
const (
	metadataLen = 24
	infoHdrLen  = 4
	rangeLen    = 24
	// eventLen is one pre-content event: metadata and its range record.
	eventLen = metadataLen + rangeLen
	noFD     = -1 // FAN_NOFD
)

// event is one fanotify event. If fd is not noFD it must be answered.
type event struct {
	mask   uint64
	fd     int32
	pid    int32
	ranged bool  // off and n are valid
	off, n int64 // bytes of the file: what is about to be read
}

// overflow reports that the kernel lost events.
func (e *event) overflow() bool { return e.mask&unix.FAN_Q_OVERFLOW != 0 }

// next takes the first event of b, which read(2) filled from a group, and
// returns the rest. With an error, e.fd is still right if the metadata held
// one, so that it can be denied, and rest is empty when the length is not to be
// trusted. It does not allocate unless it fails.
func next(b []byte) (e event, rest []byte, err error) {
	e.fd = noFD
	if len(b) < metadataLen {
		return e, nil, fmt.Errorf("%w: %d bytes", errEvent, len(b))
	}
	ne := binary.NativeEndian
	total, skip := ne.Uint32(b), ne.Uint16(b[6:])
	e.mask = ne.Uint64(b[8:])
	e.fd = int32(ne.Uint32(b[16:]))
	e.pid = int32(ne.Uint32(b[20:]))
	if b[4] != unix.FANOTIFY_METADATA_VERSION {
		return e, nil, fmt.Errorf("%w: version %d", errEvent, b[4])
	}
	if uint64(total) > uint64(len(b)) || skip < metadataLen || uint32(skip) > total {
		return e, nil, fmt.Errorf("%w: length %d, metadata %d of %d bytes", errEvent, total, skip, len(b))
	}
	rest = b[total:]
	if err := e.records(b[skip:total]); err != nil {
		return e, rest, err
	}
	return e, rest, nil
}

// records reads the information records that follow the metadata.
func (e *event) records(b []byte) error {
	ne := binary.NativeEndian
	for len(b) > 0 {
		if len(b) < infoHdrLen {
			return fmt.Errorf("%w: %d bytes after the last record", errEvent, len(b))
		}
		kind, size := b[0], int(ne.Uint16(b[2:]))
		if size < infoHdrLen || size > len(b) {
			return fmt.Errorf("%w: record %d of %d bytes in %d", errEvent, kind, size, len(b))
		}
		if kind == unix.FAN_EVENT_INFO_TYPE_RANGE {
			if size < rangeLen || e.ranged {
				return fmt.Errorf("%w: range record of %d bytes", errEvent, size)
			}
			off, n := ne.Uint64(b[8:]), ne.Uint64(b[16:])
			if off > math.MaxInt64 || n > math.MaxInt64-off {
				return fmt.Errorf("%w: range %d+%d", errEvent, off, n)
			}
			e.off, e.n, e.ranged = int64(off), int64(n), true
		}
		b = b[size:]
	}
	return nil
}
