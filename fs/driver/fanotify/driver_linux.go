package fanotify

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// ErrShutdown reports a call after Shutdown.
var ErrShutdown = errors.New("the fanotify driver is shut down")

// ErrUnguarded is the reason for a quarantine: the mount had no group that
// watched it for a while, so that its page cache may hold zeros.
var ErrUnguarded = errors.New("the layer was mounted while nothing watched it")

// Driver is the fanotify driver of one process. It is safe for concurrent use.
type Driver struct {
	conf   Config
	ctx    context.Context // of the fills; carries the logger
	cancel context.CancelFunc

	group *group // nil until started
	wake  int    // eventfd that ends the loops
	table atomic.Pointer[map[key]*guard]

	journal  *journal                 // nil until started
	owing    atomic.Pointer[recovery] // nil when the predecessor's events are answered
	watchers *lifetime.Watchers       // of completion and of superblocks
	loops    sync.WaitGroup
	fills    sync.WaitGroup // also those of owing

	hits, misses, denied atomic.Uint64
	denials              *driver.Denials

	mu        sync.Mutex
	started   bool
	down      bool
	groupKept bool    // and the journal
	writers   int     // kept
	settled   bool    // nothing more can be adopted
	lost      []*slot // overflows that wait for Settle
}

// New returns the driver. When a predecessor left a group among the inherited
// descriptors it is served at once; otherwise nothing is asked of the kernel
// before the first Mount, so that New works on every kernel. ctx carries the
// logger; Shutdown, not ctx, ends the driver.
func New(ctx context.Context, conf Config) (*Driver, error) {
	conf.defaults()
	if conf.Keeper == nil {
		return nil, errors.New("fanotify: a keeper of descriptors is required, or the end of this process turns holes into zeros")
	}
	d := &Driver{
		conf:     conf,
		wake:     -1,
		watchers: lifetime.NewWatchers(),
		settled:  true,
		denials:  driver.NewDenials(),
	}
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	d.table.Store(&map[key]*guard{})
	if err := d.inherit(); err != nil {
		d.cancel()
		return nil, err
	}
	return d, nil
}

// Name returns "fanotify".
func (d *Driver) Name() string { return Name }

// Probe reports whether pre-content events and file-backed EROFS mounts work
// with data files in cacheDir.
func (d *Driver) Probe(cacheDir string) error {
	if err := kernel.HavePreContent(cacheDir); err != nil {
		return err
	}
	return kernel.HaveFileBackedEROFS(cacheDir)
}

// Mount mounts a layer whose metadata is resident. Layer.Data must have been
// opened before anything marked the file, which is so for a file that is not
// mounted. A complete layer is mounted without a mark.
func (d *Driver) Mount(ctx context.Context, target string, l driver.Layer) (driver.Mount, error) {
	m, _, err := d.prepare(target, l, false)
	if err != nil {
		return nil, fmt.Errorf("mounting layer %s at %s: %w", l.ID(), target, err)
	}
	if err := d.mount(ctx, m, l); err != nil {
		return nil, fmt.Errorf("mounting layer %s at %s: %w", l.ID(), target, errors.Join(err, m.undo()))
	}
	return m, nil
}

// Adopt takes over a predecessor's mount. Layer.Data must be on the descriptor
// that was inherited as WriterName, unless the layer is complete or the
// predecessor's group is lost; then the mount is guarded afresh and reported
// to Config.Quarantine.
func (d *Driver) Adopt(_ context.Context, target string, l driver.Layer) (driver.Mount, error) {
	super, err := erofs.SuperblockOf(target)
	if err != nil {
		return nil, fmt.Errorf("adopting layer %s at %s: %w", l.ID(), target, err)
	}
	m, fresh, err := d.prepare(target, l, true)
	if err != nil {
		return nil, fmt.Errorf("adopting layer %s at %s: %w", l.ID(), target, err)
	}
	m.super = super
	switch {
	case fresh:
		d.conf.Quarantine([]string{l.ID()}, ErrUnguarded)
	case m.guard != nil && m.guard.suspect.Load():
		d.conf.Quarantine([]string{l.ID()}, errSuspect)
	}
	return m, nil
}

// prepare makes the guard of one mount, if it needs one; fresh says that the
// data file needs one and had none.
func (d *Driver) prepare(target string, l driver.Layer, adopting bool) (m *mount, fresh bool, err error) {
	k, err := keyOf(l.Data())
	if err != nil {
		return nil, false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return nil, false, ErrShutdown
	}
	m = d.newMount(target)
	old := (*d.table.Load())[k]
	if stray := old != nil && old.layer == nil && old.writer == nil; lifetime.Closed(l.Complete()) && (old == nil || stray) {
		if stray || adopting && !d.settled {
			// Events from before it was complete may still come.
			m.guard = d.vouch(l, k)
		}
		return m, false, nil
	} else if stray {
		old = nil
	}
	if !d.started {
		if err := d.start(nil, nil); err != nil {
			return nil, false, err
		}
	}
	if old != nil && old.writer != nil {
		same, err := sameOpenFile(old.writer, l.Data())
		if err != nil {
			return nil, false, err
		}
		if !same {
			return nil, false, fmt.Errorf("its data file was opened anew, but it is marked: open it on the inherited %s",
				WriterName(l.ID()))
		}
	}
	if m.guard, err = d.protect(l, k); err != nil {
		return nil, false, err
	}
	return m, old == nil, nil
}

// Settle says that no more adoptions come: events of inherited layers that
// nobody adopted are denied from now on. It returns the IDs of those layers.
// Their marks go when no superblock holds their data files any more.
func (d *Driver) Settle() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return nil, ErrShutdown
	}
	var ids []string
	d.settled = true
	for _, g := range *d.table.Load() {
		switch {
		case g.layer != nil:
		case g.writer == nil: // nobody's
			d.update(func(t map[key]*guard) { delete(t, g.key) })
			g.letGo()
		default:
			g.letGo()
			ids = append(ids, g.id)
			d.watchers.Go(func() { d.bury(g) })
		}
	}
	for _, s := range d.lost {
		s.clear()
		d.journal.release(s)
	}
	d.lost = nil
	return ids, nil
}

// bury drops a guard that no mount owns, and whose superblock is not known, once
// nobody has the file open.
func (d *Driver) bury(g *guard) {
	gone := d.watchers.Await(func() bool {
		yes, err := alone(g.writer)
		if err != nil {
			d.trouble("layer "+g.id+", which nobody adopted, stays guarded", err)
		}
		return yes
	})
	if !gone {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if (*d.table.Load())[g.key] != g { // adopted after all
		return
	}
	d.update(func(t map[key]*guard) { delete(t, g.key) })
	err := d.group.unmark(g.writer)
	if err = errors.Join(err, d.unkeep(g, false)); err != nil {
		d.trouble("dropping layer "+g.id+", which nobody adopted", err)
	}
}

// Stats returns the counters.
func (d *Driver) Stats() driver.Stats {
	s := driver.Stats{Hits: d.hits.Load(), Misses: d.misses.Load(), Denied: d.denied.Load()}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, g := range *d.table.Load() {
		if g.marked || g.layer == nil && g.writer != nil {
			s.Served++
		}
	}
	return s
}

// Shutdown stops taking events, finishes those that were taken, and leaves
// marks, mounts and kept descriptors to a successor: readers of missing ranges
// wait for it. When ctx ends first, the fills in progress are cancelled, their
// events stay in the journal for the successor, and the error says so.
// Everything of this driver is then stopped, and only its Stats may be called.
func (d *Driver) Shutdown(ctx context.Context) error {
	d.mu.Lock()
	if d.down {
		d.mu.Unlock()
		return ErrShutdown
	}
	d.down = true
	started := d.started
	d.mu.Unlock()

	d.watchers.Stop()
	if started {
		d.wakeLoops()
	}
	err := lifetime.Finish(ctx, d.cancel, &d.loops, &d.fills)
	d.cancel()
	d.watchers.Wait()
	if started {
		err = errors.Join(err, d.group.close(), unix.Close(d.wake))
		if r := d.owing.Load(); r != nil {
			err = errors.Join(err, r.giveUp())
		}
		err = errors.Join(err, d.journal.close())
	}
	return err
}
