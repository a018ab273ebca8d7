package fanotify

import (
	"errors"
	"os"
	"sync"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// recovery is what a predecessor owes the kernel, by descriptor number. The
// kernel gives an answer to the oldest event of its number, so all events of one
// number are filled before the first of them is answered.
type recovery struct {
	mu    sync.Mutex
	debts map[int32]*debt
}

// debt is what was taken under one descriptor number and not answered.
type debt struct {
	fd    int32
	slots []*slot
	old   int      // how many of them are the predecessor's
	hold  *os.File // occupies the number; nil when something else does
	live  bool     // an event of this process has the number
}

// recoverFrom takes over the events in the journal. It is called before the
// first read of the group.
func (d *Driver) recoverFrom(j *journal) {
	list := unanswered(j.slots)
	if len(list) == 0 {
		return
	}
	log.G(d.ctx).WithField("events", len(list)).
		Info("fanotify: answering reads that the predecessor had taken")
	r := &recovery{debts: map[int32]*debt{}}
	for _, o := range list {
		if o.fd == noFD {
			if o.overflow() {
				d.overflow(o.slot)
			} else {
				o.slot.clear()
			}
			continue
		}
		due := r.debts[o.fd]
		if due == nil {
			due = &debt{fd: o.fd}
			r.debts[o.fd] = due
		}
		due.slots, due.old = append(due.slots, o.slot), due.old+1
	}
	for _, f := range d.conf.Inherited[reservedName] {
		if fd, err := number(f); err == nil && r.debts[int32(fd)] != nil {
			r.debts[int32(fd)].hold = f
		}
	}
	if len(r.debts) == 0 {
		return
	}
	d.owing.Store(r)
	for _, due := range r.debts {
		d.fills.Go(func() { d.repay(r, due) })
	}
}

// claim makes an event that came under a number that is owed part of the debt,
// so that it is filled before the debt is answered. Reserve leaves this nothing
// to do unless a descriptor that it could not move was closed.
func (r *recovery) claim(fd int32, s *slot) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	due := r.debts[fd]
	if due == nil {
		return false
	}
	due.slots, due.live = append(due.slots, s), true
	return true
}

// repay fills the ranges of one number and answers. When the driver shuts down
// first, the events stay in the journal.
func (d *Driver) repay(r *recovery, due *debt) {
	var err error
	for filled := 0; ; {
		r.mu.Lock()
		todo := due.slots[filled:]
		if len(todo) == 0 {
			d.discharge(r, due, err)
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		for _, s := range todo {
			err = errors.Join(err, d.refill(s))
		}
		if d.leaves(err) {
			return
		}
		filled += len(todo)
	}
}

// discharge answers as often as there are events. That there is no such event
// any more is normal: the predecessor died after its answer. The caller holds
// r.mu.
func (d *Driver) discharge(r *recovery, due *debt, why error) {
	errno := driver.Errno(why)
	var out unix.FanotifyResponse
	if why != nil {
		ev, _, err := next(due.slots[0].event())
		d.denials.Note(d.ctx, "", ev.off, ev.n, errors.Join(why, err))
	}
	for _, s := range due.slots {
		d.count(why)
		if err := d.group.answer(&out, due.fd, errno); err != nil {
			d.trouble("answering for the predecessor", err)
		}
		s.clear()
	}
	// Only now may the number come back.
	var err error
	switch {
	case due.hold != nil:
		err = due.hold.Close()
	case due.live:
		err = unix.Close(int(due.fd))
	}
	if err != nil {
		d.trouble("giving a descriptor number free", err)
	}
	for _, s := range due.slots[due.old:] {
		d.journal.release(s)
	}
	delete(r.debts, due.fd)
	if len(r.debts) == 0 {
		d.owing.Store(nil)
	}
}

// giveUp closes what still occupies numbers when the driver is shut down, for a
// process that goes on.
func (r *recovery) giveUp() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, due := range r.debts {
		if due.hold != nil {
			errs = append(errs, due.hold.Close())
		}
		if due.live {
			errs = append(errs, unix.Close(int(due.fd)))
		}
	}
	return errors.Join(errs...)
}

// refill makes the range of an event present whose descriptor is gone.
func (d *Driver) refill(s *slot) error {
	ev, _, err := next(s.event())
	if err != nil {
		return err
	}
	if !ev.ranged || ev.n == 0 {
		return errNoRange
	}
	k, known := s.key()
	if !known {
		return d.refillAll(ev.off, ev.n)
	}
	g := d.expect(k)
	if g == nil {
		return errUnknown
	}
	return d.fill(g, ev.off, ev.n)
}

// refillAll makes a range present in every layer: the predecessor died before it
// could say which one the event is of.
func (d *Driver) refillAll(off, n int64) error {
	var errs []error
	for _, g := range *d.table.Load() {
		err := d.fill(g, off, n)
		if errors.Is(err, errNotAdopt) && g.writer != nil {
			// A layer that was never mounted has no readers.
			if unused, aloneErr := alone(g.writer); aloneErr == nil && unused {
				err = nil
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// expect returns the guard of a file, one that waits for an adoption if the file
// may still turn out to be an inherited layer's: the predecessor lets go of the
// writer of a complete layer while events of it are queued.
func (d *Driver) expect(k key) *guard {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := (*d.table.Load())[k]
	if g != nil || d.settled {
		return g
	}
	g = &guard{key: k, adopted: make(chan struct{})}
	d.update(func(t map[key]*guard) { t[k] = g })
	return g
}

// fill makes a range of the file present, for a layer that may still have to be
// adopted.
func (d *Driver) fill(g *guard, off, n int64) error {
	for g.layer == nil {
		select {
		case <-g.adopted:
		case <-d.watchers.Stopping():
			return errStopped
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
	st, err := stat(g.layer.Data())
	if err != nil {
		return err
	}
	off, n = clamp(off, n, st.Size)
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
