package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// probeWait bounds how long the probe waits for its own event. It is reached
// only on a machine that does not schedule us.
const probeWait = 10 * time.Second

// HavePreContent marks a sparse file in cacheDir for FAN_PRE_ACCESS, reads it,
// fills the range that the event names before it lets the read go on, and
// checks that the reader got those bytes. Needs Linux 6.14, CAP_SYS_ADMIN and
// a file system that takes such marks (ext4, xfs, btrfs).
func HavePreContent(cacheDir string) error {
	const what = "watching a file with fanotify pre-content events"
	dir, err := os.MkdirTemp(cacheDir, ".probe-fanotify-")
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer os.RemoveAll(dir)
	p, err := newPreContentProbe(filepath.Join(dir, "data"))
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer p.close()
	if err := p.run(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

type preContentProbe struct {
	path   string
	writer *os.File // opened before the mark: raises no events
	group  int
	page   int
}

func newPreContentProbe(path string) (*preContentProbe, error) {
	p := &preContentProbe{path: path, group: -1, page: os.Getpagesize()}
	w, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	p.writer = w
	if err := w.Truncate(int64(4 * p.page)); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *preContentProbe) close() {
	p.closeGroup()
	_ = p.writer.Close() // the probe file is thrown away
}

// closeGroup ends every wait for an answer: what is pending is allowed.
func (p *preContentProbe) closeGroup() {
	if p.group >= 0 {
		_ = unix.Close(p.group) // frees the number whatever it returns
		p.group = -1
	}
}

func (p *preContentProbe) mark() error {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_PRE_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK,
		unix.O_RDWR|unix.O_LARGEFILE|unix.O_CLOEXEC)
	switch {
	case errors.Is(err, unix.EPERM):
		return unsupported("fanotify_init", err, needAdmin)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return unsupported("fanotify_init", err, "the kernel lacks CONFIG_FANOTIFY_ACCESS_PERMISSIONS; use one that has it")
	case err != nil:
		return fmt.Errorf("fanotify_init: %w", err)
	}
	p.group = fd
	err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_PRE_ACCESS, unix.AT_FDCWD, p.path)
	switch {
	case errors.Is(err, unix.EINVAL):
		return unsupported("fanotify_mark", err, "the kernel has no FAN_PRE_ACCESS; Linux 6.14 or newer is needed")
	case errors.Is(err, unix.EOPNOTSUPP):
		return unsupported("fanotify_mark", err, "the file system takes no pre-content marks; put the cache directory on ext4, xfs or btrfs")
	case errors.Is(err, unix.EPERM):
		return unsupported("fanotify_mark", err, needAdmin)
	case err != nil:
		return fmt.Errorf("fanotify_mark: %w", err)
	}
	return nil
}

// run raises one event and serves it. The reader is always waited for, after
// the group is closed, so that it cannot stay blocked.
func (p *preContentProbe) run() error {
	if err := p.mark(); err != nil {
		return err
	}
	// Opened after the mark: the kernel decides at open whether to raise events.
	reader, err := os.Open(p.path)
	if err != nil {
		return err
	}
	defer reader.Close()

	var ended [2]int // readable as soon as the reader has come back
	if err := unix.Pipe2(ended[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	defer unix.Close(ended[0])
	got := make([]byte, p.page)
	done := make(chan error, 1)
	go func() {
		_, err := reader.ReadAt(got, int64(p.page))
		_ = unix.Close(ended[1]) // frees the number whatever it returns
		done <- err
	}()
	want := bytes.Repeat([]byte("fill"), p.page/4)
	serveErr := p.serve(want, ended[0])
	p.closeGroup()
	readErr := <-done
	if serveErr != nil {
		return serveErr
	}
	if readErr != nil {
		return fmt.Errorf("reading the watched file: %w", readErr)
	}
	if !bytes.Equal(got, want) {
		return unsupported("reading the watched file", nil, "the kernel raised the event but did not wait for the answer")
	}
	return nil
}

// serve waits for the event, writes fill at page 1 and allows the read.
func (p *preContentProbe) serve(fill []byte, ended int) error {
	n, buf, err := p.readEvent(ended)
	if err != nil {
		return err
	}
	event, off, count, err := parseRangeEvent(buf[:n])
	if event.fd >= 0 {
		defer unix.Close(int(event.fd))
	}
	if err != nil {
		return err
	}
	page := uint64(p.page)
	if event.mask&unix.FAN_PRE_ACCESS == 0 || off > page || off+count < 2*page {
		return unsupported("reading the event", nil,
			fmt.Sprintf("mask %#x, range [%d,+%d) does not cover the read; use another kernel", event.mask, off, count))
	}
	if _, err := p.writer.WriteAt(fill, int64(page)); err != nil {
		return fmt.Errorf("filling the range: %w", err)
	}
	var resp [8]byte
	binary.NativeEndian.PutUint32(resp[:], uint32(event.fd))
	binary.NativeEndian.PutUint32(resp[4:], unix.FAN_ALLOW)
	if _, err := unix.Write(p.group, resp[:]); err != nil {
		return fmt.Errorf("answering the event: %w", err)
	}
	return nil
}

// readEvent waits for the event. A reader that comes back while the group has
// none was never stopped.
func (p *preContentProbe) readEvent(ended int) (int, []byte, error) {
	buf := make([]byte, 512)
	deadline := time.Now().Add(probeWait)
	for {
		fds := []unix.PollFd{
			{Fd: int32(p.group), Events: unix.POLLIN},
			{Fd: int32(ended), Events: unix.POLLIN},
		}
		left := time.Until(deadline)
		if left <= 0 {
			return 0, nil, fmt.Errorf("no event within %v", probeWait)
		}
		_, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, nil, fmt.Errorf("waiting for the event: %w", err)
		}
		n, err := unix.Read(p.group, buf)
		switch {
		case err == nil:
			return n, buf, nil
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return 0, nil, fmt.Errorf("reading the event: %w", err)
		case fds[1].Revents != 0:
			return 0, nil, unsupported("reading the watched file", nil,
				"the kernel took the mark but raised no event; use another kernel or file system")
		}
	}
}

type rangeEvent struct {
	fd   int32
	mask uint64
}

// parseRangeEvent reads one event with its range record: struct
// fanotify_event_metadata, then records of {type u8, pad u8, len u16}, of which
// type 6 goes on with {pad u32, offset u64, count u64} (uapi/linux/fanotify.h).
// The descriptor is returned with an error too, for the caller to close.
func parseRangeEvent(b []byte) (e rangeEvent, off, count uint64, err error) {
	const metadata, header, rangeLen = 24, 4, 24
	ne := binary.NativeEndian
	e.fd = -1
	if len(b) < metadata {
		return e, 0, 0, fmt.Errorf("reading the event: %d bytes", len(b))
	}
	e.mask, e.fd = ne.Uint64(b[8:]), int32(ne.Uint32(b[16:]))
	if b[4] != unix.FANOTIFY_METADATA_VERSION {
		return e, 0, 0, unsupported("reading the event", nil, fmt.Sprintf("metadata version %d is unknown", b[4]))
	}
	total, skip := int(ne.Uint32(b)), int(ne.Uint16(b[6:]))
	if total > len(b) || skip > total {
		return e, 0, 0, fmt.Errorf("reading the event: lengths %d and %d of %d bytes", total, skip, len(b))
	}
	for rec := b[skip:total]; len(rec) >= header; {
		n := int(ne.Uint16(rec[2:]))
		if n < header || n > len(rec) {
			return e, 0, 0, fmt.Errorf("reading the event: record of %d bytes", n)
		}
		if rec[0] == unix.FAN_EVENT_INFO_TYPE_RANGE && n >= rangeLen {
			return e, ne.Uint64(rec[8:]), ne.Uint64(rec[16:]), nil
		}
		rec = rec[n:]
	}
	return e, 0, 0, unsupported("reading the event", nil, "it has no range record; Linux 6.14 or newer is needed")
}
