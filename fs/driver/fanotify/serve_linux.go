package fanotify

import (
	"errors"

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
	// errStopped is no reason to deny: the event is left to the successor.
	errStopped = errors.New("the driver was shut down before the layer was adopted")
)

// loop takes events and answers those that need no fill. All that it touches
// for each event is here, allocated once.
type loop struct {
	d    *Driver
	slot *slot // its own, free between two events
	st   unix.Stat_t
	out  unix.FanotifyResponse
}

// run takes events until Shutdown, and answers or hands on all that it took.
func (l *loop) run() {
	fds := []unix.PollFd{
		{Fd: int32(l.d.group.fd), Events: unix.POLLIN},
		{Fd: int32(l.d.wake), Events: unix.POLLIN},
	}
	for l.arm() {
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			l.d.trouble("waiting for events", err)
			if !l.d.watchers.Pause() {
				return
			}
			continue
		}
		if fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents != 0 {
			l.drain()
		}
	}
}

// drain takes events until there is none. A reader that was just allowed often
// asks for its next range before this thread has gone to sleep, and then poll(2)
// is spared, as it is for every event of several readers but the first.
func (l *loop) drain() {
	for l.take() && !l.d.watchers.Stopped() && l.arm() {
	}
}

// arm gets a slot if the loop has none. When none is free the loop waits; false
// in Shutdown.
func (l *loop) arm() bool {
	if l.slot != nil {
		return true
	}
	select {
	case l.slot = <-l.d.journal.free:
		return true
	case <-l.d.watchers.Stopping():
		return false
	}
}

// take reads once and reports whether there was an event.
func (l *loop) take() bool {
	n, err := l.d.group.read(l.slot.event())
	switch {
	case err == nil:
		l.dispatch(n)
		return true
	case errors.Is(err, unix.EAGAIN): // another loop was faster
	default:
		// The kernel could not give us the event, for want of a descriptor or of
		// memory, and has denied it.
		l.slot.clear()
		l.d.denied.Add(1)
		l.d.trouble("taking an event", err)
		l.d.watchers.Pause()
	}
	return false
}

// dispatch acts on the n bytes in the slot: one event, since one that has a
// descriptor fills the slot, and a group queues one overflow only.
func (l *loop) dispatch(n int) {
	ev, _, err := next(l.slot.event()[:n])
	switch {
	case err != nil && ev.fd == noFD:
		l.slot.clear()
		l.d.denied.Add(1)
		l.d.trouble("reading an event", err)
	case err != nil:
		l.d.deny(l.slot, ev.fd, err)
	case ev.overflow():
		l.d.overflow(l.pass())
	case ev.fd != noFD:
		l.event(&ev)
	default:
		l.slot.clear()
	}
}

// pass gives the slot away.
func (l *loop) pass() *slot {
	s := l.slot
	l.slot = nil
	return s
}

// event is the hot path: for a resident range no lock, no allocation, no log.
func (l *loop) event(ev *event) {
	d := l.d
	if err := unix.Fstat(int(ev.fd), &l.st); err != nil {
		d.deny(l.slot, ev.fd, err)
		return
	}
	k := key{dev: l.st.Dev, ino: l.st.Ino}
	l.slot.identify(k)
	if r := d.owing.Load(); r != nil && r.claim(ev.fd, l.slot) {
		l.pass()
		return
	}
	if !ev.ranged || ev.n == 0 {
		d.deny(l.slot, ev.fd, errNoRange)
		return
	}
	g := (*d.table.Load())[k]
	if g != nil && g.layer != nil && !g.suspect.Load() {
		off, n := clamp(ev.off, ev.n, l.st.Size)
		if n == 0 || g.layer.Resident(off, n) {
			d.hits.Add(1)
			if err := d.group.settle(&l.out, l.slot, ev.fd, 0); err != nil {
				d.trouble("allowing a read", err)
			}
			return
		}
	}
	d.handOn(l.pass(), k, *ev)
}

// clamp cuts a range at the end of the file: the kernel asks for whole pages.
func clamp(off, n, size int64) (int64, int64) {
	if off >= size {
		return size, 0
	}
	return off, min(n, size-off)
}

// handOn lets a goroutine answer the event in s.
func (d *Driver) handOn(s *slot, k key, ev event) {
	d.fills.Go(func() {
		err := errUnknown
		g := d.expect(k)
		if g != nil {
			err = d.fill(g, ev.off, ev.n)
		}
		if d.leaves(err) {
			d.leave(ev.fd)
			return
		}
		d.finish(s, g, &ev, err)
		d.journal.release(s)
	})
}

// finish answers an event that needed a goroutine.
func (d *Driver) finish(s *slot, g *guard, ev *event, err error) {
	if err == nil {
		d.count(nil)
		var out unix.FanotifyResponse
		if err := d.group.settle(&out, s, ev.fd, 0); err != nil {
			d.trouble("allowing a read", err)
		}
		return
	}
	id := ""
	if g != nil {
		id = g.id
	}
	d.denials.Note(d.ctx, id, ev.off, ev.n, err)
	d.deny(s, ev.fd, err)
}

// leaves says that a fill that ended with err was ended by Shutdown, so that the
// event is to stay in the journal for the successor.
func (d *Driver) leaves(err error) bool {
	return err != nil && d.journal.kept.Load() && (d.ctx.Err() != nil || errors.Is(err, errStopped))
}

// leave closes the descriptor of an event that is not answered. Its number may
// come back only when nobody takes events any more.
func (d *Driver) leave(fd int32) {
	d.loops.Wait()
	if err := unix.Close(int(fd)); err != nil {
		d.trouble("leaving an event to the successor", err)
	}
}

// count counts the answer to an event that was not a hit.
func (d *Driver) count(err error) {
	if err != nil {
		d.denied.Add(1)
		return
	}
	d.misses.Add(1)
}

// deny answers the event in s with an error; what was denied may be asked again.
func (d *Driver) deny(s *slot, fd int32, why error) {
	d.count(why)
	var out unix.FanotifyResponse
	if err := d.group.settle(&out, s, fd, driver.Errno(why)); err != nil {
		d.trouble("denying a read", err)
	}
}

// overflow is called when the kernel lost events, that is: let reads go on
// over holes. Whatever those read is in the page cache; what is asked from now
// on is denied until the layer is mounted afresh. s holds the news; it stays in
// the journal until nothing can be adopted any more, because layers that are not
// adopted yet are reported when they are.
func (d *Driver) overflow(s *slot) {
	d.mu.Lock()
	var ids []string
	for _, g := range *d.table.Load() {
		g.suspect.Store(true)
		if g.layer != nil {
			ids = append(ids, g.id)
		}
	}
	settled := d.settled
	if !settled {
		d.lost = append(d.lost, s)
	}
	d.mu.Unlock()
	d.trouble("queueing events", errSuspect)
	if len(ids) > 0 {
		d.conf.Quarantine(ids, errSuspect)
	}
	if settled {
		s.clear()
		d.journal.release(s)
	}
}

func (d *Driver) trouble(what string, err error) {
	log.G(d.ctx).WithError(err).Error("fanotify: " + what)
}

// wakeLoops lets the loops see that they are to end, used once.
func (d *Driver) wakeLoops() {
	// An eventfd stays readable until it is read, so every loop sees it. Its
	// counter cannot overflow by one write.
	if _, err := unix.Write(d.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		d.trouble("stopping", err)
	}
}
