package fuseblock

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/fusesession"
	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// ErrShutdown reports a call after Shutdown.
var ErrShutdown = errors.New("the fuseblock driver is shut down")

// Driver is the fuseblock driver of one process. It is safe for concurrent use.
type Driver struct {
	conf   Config
	ctx    context.Context // carries the logger
	cancel context.CancelFunc

	watchers *lifetime.Watchers // of superblocks of complete layers, and of sessions

	hits, misses, denied atomic.Uint64
	denials              *driver.Denials
	// loopDevices is Config's, or what Probe found to be needed.
	loopDevices atomic.Bool

	mu       sync.Mutex
	down     bool
	waiting  map[string]bool    // inherited connections that nobody adopted, by kept name
	orphans  map[string]*file   // those, served with errors after Settle
	sessions map[*file]struct{} // served
}

// New returns the driver. It asks nothing of the kernel before the first Mount,
// so that it works on every kernel; connections that it inherited wait for
// Adopt, and their readers with them. ctx carries the logger; Shutdown, not
// ctx, ends the driver.
func New(ctx context.Context, conf Config) (*Driver, error) {
	if conf.Keeper == nil {
		return nil, errors.New("fuseblock: a keeper of descriptors is required, or the end of this process ends its mounts")
	}
	d := &Driver{
		conf:     conf,
		watchers: lifetime.NewWatchers(),
		denials:  driver.NewDenials(),
		waiting:  map[string]bool{},
		orphans:  map[string]*file{},
		sessions: map[*file]struct{}{},
	}
	d.conf.Inherited = maps.Clone(conf.Inherited)
	if d.conf.Inherited == nil {
		d.conf.Inherited = driver.Inheritance{}
	}
	for name := range d.conf.Inherited {
		if _, ok := layerOf(name); ok {
			d.waiting[name] = true
		}
	}
	d.loopDevices.Store(conf.LoopDevices)
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return d, nil
}

// Name returns "fuseblock".
func (d *Driver) Name() string { return Name }

// sessionConfig is how f is served.
func (d *Driver) sessionConfig(name string, f *file) fusesession.Config {
	return fusesession.Config{
		Name: name, Keeper: d.conf.Keeper, FS: f,
		Options: fuse.MountOptions{
			DisableXAttrs: true,
			// Attributes never change, so nobody need ask before a read, and direct
			// reads of the kernel need not wait for each other.
			ExplicitDataCacheControl: true,
			ExtraCapabilities:        fuse.CAP_ASYNC_DIO,
			DisabledCapabilities:     fuse.CAP_AUTO_INVAL_DATA,
			MaxBackground:            256,
		},
		Loops:         d.conf.Loops,
		MaxInFlight:   d.conf.MaxInFlight,
		ReplayJournal: d.conf.ReplayJournal,
	}
}

// serveNew makes a connection that shows the layer.
func (d *Driver) serveNew(ctx context.Context, name string, l driver.Layer) (*file, error) {
	f := newFile(d, l.ID())
	if err := f.show(l); err != nil {
		return nil, err
	}
	s, err := fusesession.Mount(ctx, fusesession.MountConfig{Source: "lazyerofs", Subtype: Name}, d.sessionConfig(name, f))
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return nil, errors.Join(ErrShutdown, s.Detach(), s.Shutdown(ctx), fusesession.Discard(d.sessionConfig(name, f), nil))
	}
	d.sessions[f] = struct{}{}
	return f, nil
}

// forget drops a connection that ended.
func (d *Driver) forget(f *file) {
	d.mu.Lock()
	defer d.mu.Unlock()
	resident, _ := f.session.Counts()
	d.hits.Add(resident)
	delete(d.sessions, f)
}

// take adopts an inherited connection, for a layer or, with nil, to answer its
// readers with errors. The caller holds d.mu.
func (d *Driver) take(name, id string, l driver.Layer) (*file, error) {
	delete(d.waiting, name)
	f := newFile(d, id)
	if l != nil {
		if err := f.show(l); err != nil {
			return nil, err
		}
	}
	conf := d.sessionConfig(name, f)
	_, err := fusesession.Adopt(d.ctx, "", conf, d.conf.Inherited)
	if errors.Is(err, fusesession.ErrUnborn) {
		return nil, errors.Join(err, fusesession.Discard(conf, d.conf.Inherited))
	}
	if err != nil {
		return nil, err
	}
	d.sessions[f] = struct{}{}
	return f, nil
}

// Settle says that no more adoptions come: reads of inherited mounts that
// nobody adopted fail from now on. It returns the IDs of their layers. Their
// connections are let go of when nobody has them any more.
func (d *Driver) Settle() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return nil, ErrShutdown
	}
	var ids []string
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(d.waiting)) {
		id, _ := layerOf(name)
		_, err := d.orphan(name, id)
		if errors.Is(err, fusesession.ErrUnborn) {
			continue // it was never mounted
		}
		ids = append(ids, id)
		errs = append(errs, err)
	}
	slices.Sort(ids)
	return slices.Compact(ids), errors.Join(errs...)
}

// orphan serves an inherited connection with errors. The caller holds d.mu.
func (d *Driver) orphan(name, id string) (*file, error) {
	f, err := d.take(name, id, nil)
	if err != nil {
		return nil, err
	}
	d.orphans[name] = f
	d.watchers.Go(func() { d.bury(name, f) })
	return f, nil
}

// inherited is the newest of the connections at place that nobody adopted, "" for
// none. The caller holds d.mu.
func (d *Driver) inherited(place string) string {
	names := slices.AppendSeq(slices.Collect(maps.Keys(d.waiting)), maps.Keys(d.orphans))
	return fusesession.Newest(place, names)
}

// bury forgets a connection that no mount owned when it ends.
func (d *Driver) bury(name string, f *file) {
	select {
	case <-f.session.Done():
	case <-d.watchers.Stopping():
		return
	}
	d.mu.Lock()
	owned := d.orphans[name] != f // adopted after all
	delete(d.orphans, name)
	d.mu.Unlock()
	if !owned {
		d.forget(f)
	}
}

// Stats returns the counters.
func (d *Driver) Stats() driver.Stats {
	s := driver.Stats{Hits: d.hits.Load(), Misses: d.misses.Load(), Denied: d.denied.Load()}
	d.mu.Lock()
	defer d.mu.Unlock()
	for f := range d.sessions {
		resident, _ := f.session.Counts()
		s.Hits += resident
	}
	if !d.down {
		s.Served = len(d.sessions) + len(d.waiting)
	}
	return s
}

// Shutdown stops taking reads, finishes those that were taken, and leaves the
// mounts and their connections to a successor: readers wait for it. When ctx
// ends first, the fills in progress are cancelled, their readers get EIO, and
// the error says so. Everything of this driver is then stopped, and only its
// Stats may be called.
func (d *Driver) Shutdown(ctx context.Context) error {
	d.mu.Lock()
	if d.down {
		d.mu.Unlock()
		return ErrShutdown
	}
	d.down = true
	sessions := slices.Collect(maps.Keys(d.sessions))
	var inherited []*os.File
	for name := range d.waiting {
		inherited = append(inherited, d.conf.Inherited[name]...)
		inherited = append(inherited, d.conf.Inherited[fusesession.StateName(name)]...)
	}
	d.mu.Unlock()
	ends := make([]error, len(sessions))
	var all sync.WaitGroup
	for i, f := range sessions {
		all.Go(func() { ends[i] = f.session.Shutdown(ctx) })
	}
	all.Wait()
	d.watchers.Stop()
	d.cancel()
	d.watchers.Wait()
	err := errors.Join(ends...)
	for _, f := range inherited {
		err = errors.Join(err, f.Close())
	}
	return err
}

// loop is how the images are mounted.
func (d *Driver) loop() erofs.Loop {
	if d.loopDevices.Load() {
		return erofs.LoopAlways
	}
	return erofs.LoopFallback
}
