package fanotify

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// Reasons for which an event is denied without asking a layer.
var (
	errUnknown  = errors.New("event of a file that no mounted layer owns")
	errNoRange  = errors.New("event without a range")
	errSuspect  = errors.New("events of this layer were lost; unmount and mount it again")
	errNotAdopt = errors.New("no one adopted the layer")
	errHollow   = errors.New("the layer said that the range is there, but it is not")
)

// batchLen is how many events one read may take: enough that parallel readers
// share a system call, few enough that they do not wait for each other long.
const batchLen = 16 * eventLen

// loop takes events and answers those that need no fill. All that it touches
// for each event is here, allocated once.
type loop struct {
	d   *Driver
	buf [batchLen]byte
	st  unix.Stat_t
	out unix.FanotifyResponse
}

// run takes events until Shutdown, and answers or hands on all that it took.
func (l *loop) run() {
	fds := []unix.PollFd{
		{Fd: int32(l.d.group.fd), Events: unix.POLLIN},
		{Fd: int32(l.d.wake), Events: unix.POLLIN},
	}
	for {
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			l.d.trouble("waiting for events", err)
			if !l.d.pause() {
				return
			}
			continue
		}
		if fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents != 0 {
			l.take()
		}
	}
}

// take reads once.
func (l *loop) take() {
	n, err := l.d.group.read(l.buf[:])
	switch {
	case err == nil:
		l.dispatch(l.buf[:n])
	case errors.Is(err, unix.EAGAIN): // another loop was faster
	default:
		// The kernel could not give us the event, for want of a descriptor or of
		// memory, and has denied it.
		l.d.denied.Add(1)
		l.d.trouble("taking an event", err)
		l.d.pause()
	}
}

func (l *loop) dispatch(b []byte) {
	for len(b) > 0 {
		ev, rest, err := next(b)
		switch {
		case err != nil:
			l.d.deny(ev.fd, err)
		case ev.overflow():
			l.d.overflow()
		case ev.fd != noFD:
			l.event(&ev)
		}
		b = rest
	}
}

// event is the hot path: for a resident range no lock, no allocation, no log.
func (l *loop) event(ev *event) {
	d := l.d
	if err := unix.Fstat(int(ev.fd), &l.st); err != nil {
		d.deny(ev.fd, err)
		return
	}
	g := (*d.table.Load())[key{dev: l.st.Dev, ino: l.st.Ino}]
	if g == nil {
		d.deny(ev.fd, errUnknown)
		return
	}
	if !ev.ranged || ev.n == 0 {
		d.deny(ev.fd, errNoRange)
		return
	}
	off, n := clamp(ev.off, ev.n, l.st.Size)
	if g.layer != nil && !g.suspect.Load() && (n == 0 || g.layer.Resident(off, n)) {
		d.hits.Add(1)
		if err := d.group.answerIn(&l.out, ev.fd, 0); err != nil {
			d.trouble("allowing a read", err)
		}
		return
	}
	d.handOn(g, ev.fd, off, n)
}

// clamp cuts a range at the end of the file: the kernel asks for whole pages.
func clamp(off, n, size int64) (int64, int64) {
	if off >= size {
		return size, 0
	}
	return off, min(n, size-off)
}

// handOn lets a goroutine answer. At the limit the loop waits here, except in
// Shutdown, where what was taken must be finished.
func (d *Driver) handOn(g *guard, fd int32, off, n int64) {
	held := true
	select {
	case d.tokens <- struct{}{}:
	case <-d.stopping:
		held = false
	}
	d.fills.Go(func() {
		if held {
			defer func() { <-d.tokens }()
		}
		if err := d.fill(g, off, n); err != nil {
			log.G(d.ctx).WithError(err).WithField("layer", g.id).
				Warnf("denying a read of [%d, +%d)", off, n)
			d.deny(fd, err)
			return
		}
		d.misses.Add(1)
		if err := d.group.answer(fd, 0); err != nil {
			d.trouble("allowing a read", err)
		}
	})
}

// fill makes a range present, for a layer that may still have to be adopted.
func (d *Driver) fill(g *guard, off, n int64) error {
	for g.layer == nil {
		select {
		case <-g.adopted:
		case <-d.ctx.Done():
			return fmt.Errorf("waiting for adoption: %w", d.ctx.Err())
		}
		next := (*d.table.Load())[g.key]
		if next == nil || next == g {
			return errNotAdopt
		}
		g = next
	}
	if g.suspect.Load() {
		return errSuspect
	}
	if n == 0 {
		return nil
	}
	if err := g.layer.Ensure(d.ctx, off, n); err != nil {
		return err
	}
	if !g.layer.Resident(off, n) {
		return errHollow
	}
	return nil
}

// deny answers with an error; what was denied may be asked again.
func (d *Driver) deny(fd int32, why error) {
	d.denied.Add(1)
	if fd == noFD {
		d.trouble("reading an event", why)
		return
	}
	errno := driver.Errno(why)
	if errno == 0 {
		errno = syscall.EIO
	}
	if err := d.group.answer(fd, errno); err != nil {
		d.trouble("denying a read", err)
	}
}

// overflow is called when the kernel lost events, that is: let reads go on
// over holes. Whatever those read is in the page cache; what is asked from now
// on is denied until the layer is mounted afresh.
func (d *Driver) overflow() {
	d.mu.Lock()
	var ids []string
	for _, g := range *d.table.Load() {
		g.suspect.Store(true)
		ids = append(ids, g.id)
	}
	d.mu.Unlock()
	d.conf.Quarantine(ids, errSuspect)
	d.trouble("queueing events", errSuspect)
}

func (d *Driver) trouble(what string, err error) {
	log.G(d.ctx).WithError(err).Error("fanotify: " + what)
}

// pause keeps a loop that cannot read from spinning; false in Shutdown.
func (d *Driver) pause() bool {
	t := time.NewTimer(10 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-d.stopping:
		return false
	}
}

// stop is the way out of the loops, used once.
func (d *Driver) stop() {
	close(d.stopping)
	// An eventfd stays readable until it is read, so every loop sees it. Its
	// counter cannot overflow by one write.
	if _, err := unix.Write(d.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		d.trouble("stopping", err)
	}
}

// drain waits for the loops and the fills; when ctx ends first, the fills are
// cancelled and deny.
func (d *Driver) drain(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.loops.Wait()
		d.fills.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		d.cancel()
		<-done
		return fmt.Errorf("finishing the reads in progress: %w", ctx.Err())
	}
}
