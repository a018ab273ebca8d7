package cachefiles

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

const (
	// blockSize is what O_DIRECT wants: offsets, lengths and memory are multiples.
	blockSize = 4096
	// window is how much is written ahead of a request when it is there anyway, and
	// the most that is copied at once.
	window = 256 << 10
)

// run takes requests until Shutdown, and hands on all that it took.
func (d *Driver) run() {
	fds := []unix.PollFd{{Fd: int32(d.dev.fd), Events: unix.POLLIN}, {Fd: int32(d.wake), Events: unix.POLLIN}}
	buf := messageBuffer()
	for {
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			d.trouble("waiting for requests", err)
			if !d.watchers.Pause() {
				return
			}
			continue
		}
		if fds[1].Revents != 0 {
			return
		}
		for d.take(buf) {
		}
	}
}

// messageBuffer returns memory for read(2) that cannot fault within it, as far as
// RLIMIT_MEMLOCK lets it: a fault fails when a SIGKILL is pending, and the kernel
// has taken the request from the queue by then and ends it with EFAULT
// (cachefiles_ondemand_daemon_read), which no successor can make good.
func messageBuffer() []byte {
	buf := make([]byte, messageMax)
	clear(buf) // fresh memory of the heap has no page yet
	_ = unix.Mlock(buf)
	return buf
}

// take reads one request; false when there is none, or it is time to stop.
func (d *Driver) take(buf []byte) bool {
	if d.watchers.Stopped() {
		return false
	}
	m, n, err := d.dev.read(buf)
	switch {
	case err == nil && n == 0:
		return false
	case err != nil && n == 0:
		// The kernel has refused the request itself.
		d.trouble("taking a request", err)
		return d.watchers.Pause()
	case err != nil:
		d.trouble("taking a request", err)
		d.refuseMessage(m)
		return true
	}
	switch m.op {
	case opOpen:
		d.handOn(func() { d.open(m) })
	case opRead:
		d.handOn(func() { d.read(m) })
	case opClose:
		d.closed(m.object)
	}
	return true
}

// handOn lets a goroutine answer. At the limit the loop waits here, except in
// Shutdown, where what was taken must be finished.
func (d *Driver) handOn(answer func()) {
	held := true
	select {
	case d.tokens <- struct{}{}:
	case <-d.watchers.Stopping():
		held = false
	}
	d.tasks.Go(func() {
		if held {
			defer func() { <-d.tokens }()
		}
		answer()
	})
}

// refuseMessage answers what was not understood, as far as it can be answered.
func (d *Driver) refuseMessage(m message) {
	if m.fd >= 0 {
		_ = unix.Close(m.fd) // nothing was written
	}
	if m.op == opOpen {
		if err := d.dev.refuse(m.id, syscall.EIO); err != nil {
			d.trouble("refusing a request", err)
		}
	}
}

// open answers OPEN: the object is with the Keeper before the kernel may ask for
// its data, so that no end of this process closes it.
func (d *Driver) open(m message) {
	file := os.NewFile(uintptr(m.fd), "cachefiles object "+m.cookie)
	o, err := d.admit(m, file)
	if err == nil {
		err = d.dev.copen(m.id, o.size)
		if err != nil {
			// Whoever asked was killed meanwhile.
			err = errors.Join(err, d.forget(o))
			d.trouble("opening "+m.cookie, err)
		}
		return
	}
	log.G(d.ctx).WithError(err).Warnf("cachefiles: refusing to open %q", m.cookie)
	if err := errors.Join(file.Close(), d.dev.refuse(m.id, driver.Errno(err))); err != nil {
		d.trouble("refusing to open "+m.cookie, err)
	}
}

// admit registers and keeps the object of an OPEN.
func (d *Driver) admit(m message, file *os.File) (*object, error) {
	g := d.guardOf(m)
	if g == nil {
		return nil, fmt.Errorf("object %q of volume %q belongs to no mount of ours", m.cookie, m.volume)
	}
	o := &object{kept: kept{msg: m.id, id: m.object, key: m.cookie}, guard: g, file: file}
	s, err := g.await(d.ctx)
	if err == nil {
		o.size = s.size
		err = d.conf.Keeper.Put(o.name(), file)
	}
	defer g.askedOnce.Do(func() { close(g.asked) })
	d.mu.Lock()
	defer d.mu.Unlock()
	g.refusal = err
	if err != nil {
		return nil, fmt.Errorf("keeping object %q: %w", m.cookie, err)
	}
	d.add(o)
	return o, nil
}

// closed acts on CLOSE: the kernel has let go of an object.
func (d *Driver) closed(id uint32) {
	d.mu.Lock()
	o := d.objects[id]
	d.mu.Unlock()
	if o == nil {
		return
	}
	if err := d.forget(o); err != nil {
		d.trouble("closing object "+o.key, err)
	}
}

// read answers READ. Whatever happens, the request is completed: the kernel looks
// again whether the data is there, and gives its reader EIO when it is not.
func (d *Driver) read(m message) {
	d.mu.Lock()
	o := d.objects[m.object]
	d.mu.Unlock()
	if o == nil {
		d.trouble("reading", fmt.Errorf("object %d, of request %d, is not known", m.object, m.id))
		return
	}
	err := d.fill(o, m.off, m.n)
	if err != nil {
		d.denied.Add(1)
		d.denials.Note(d.ctx, o.guard.layerID, m.off, m.n, err)
	}
	if err := d.complete(o.file, m.id); err != nil {
		// EINVAL: its reader was killed meanwhile.
		if !errors.Is(err, unix.EINVAL) {
			d.trouble("answering a read", err)
		}
	}
}

// fill writes a range into the kernel's cache.
func (d *Driver) fill(o *object, off, n int64) error {
	s, err := o.guard.await(d.ctx)
	if err != nil {
		return err
	}
	if off >= o.size {
		return fmt.Errorf("a read at %d, behind the end at %d", off, o.size)
	}
	end := min(off+n, o.size)
	off -= off % blockSize
	if s.resident(off, end-off) {
		d.hits.Add(1)
	} else {
		d.misses.Add(1)
	}
	ahead := min((end+window-1)/window*window, o.size)
	if s.resident(off, ahead-off) {
		end = ahead
	}
	buf := d.buffer()
	defer d.buffers.Put(buf)
	for off < end {
		part := min(end-off, window)
		if err := d.copy(o, s, (*buf)[:roundUp(part)], part, off); err != nil {
			return err
		}
		off += part
	}
	return nil
}

// copy writes n bytes at off and pads them to whole blocks.
func (d *Driver) copy(o *object, s *source, p []byte, n, off int64) error {
	if err := s.readAt(d.ctx, p[:n], off); err != nil {
		return err
	}
	clear(p[n:])
	w, err := o.file.WriteAt(p, off)
	if err != nil {
		return fmt.Errorf("writing [%d, +%d) of %s to the kernel's cache, %d written: %w", off, len(p), o.key, w, err)
	}
	return nil
}

func roundUp(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }

// buffer returns window bytes that are aligned to pages.
func (d *Driver) buffer() *[]byte {
	if b, ok := d.buffers.Get().(*[]byte); ok {
		return b
	}
	raw := make([]byte, window+blockSize)
	at := -uintptr(unsafe.Pointer(unsafe.SliceData(raw))) & (blockSize - 1)
	b := raw[at : at+window : at+window]
	return &b
}

func (d *Driver) trouble(what string, err error) {
	log.G(d.ctx).WithError(err).Error("cachefiles: " + what)
}

// wakeLoop lets the loop see that it is to end, used once.
func (d *Driver) wakeLoop() {
	if _, err := unix.Write(d.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		d.trouble("stopping", err)
	}
}
