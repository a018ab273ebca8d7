package cachefiles

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
	"github.com/lazyerofs/lazyerofs/fs/driver/mountproc"
	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// ErrShutdown reports a call after Shutdown.
var ErrShutdown = errors.New("the cachefiles driver is shut down")

// ErrCacheLost reports a mount whose cache ended with the processes that held it:
// every read of it fails until it is unmounted and mounted again.
var ErrCacheLost = errors.New("the cache behind the mount is gone, unmount it and mount it again")

// Driver is the cachefiles driver of one process. It is safe for concurrent use.
type Driver struct {
	conf   Config
	ctx    context.Context // of the fills; carries the logger
	cancel context.CancelFunc

	dev *device // nil until started
	// complete answers READ; a field for tests, whose objects are plain files.
	complete func(object *os.File, msg uint32) error
	wake     int // eventfd that ends the loop
	buffers  sync.Pool

	tokens   chan struct{}
	watchers *lifetime.Watchers // of superblocks
	loop     sync.WaitGroup
	tasks    sync.WaitGroup // requests in progress

	hits, misses, denied atomic.Uint64
	denials              *driver.Denials

	mu      sync.Mutex
	down    bool
	kept    bool               // the device is with the Keeper
	expects bool               // adoptions: cookies that are not known yet may be adopted
	guards  map[string]*guard  // by cookie key
	objects map[uint32]*object // by the kernel's number
	mounts  map[*mount]struct{}
}

// New returns the driver. When a predecessor left the device among the inherited
// descriptors it is served at once; otherwise nothing is asked of the kernel
// before the first Mount. ctx carries the logger; Shutdown, not ctx, ends the
// driver.
func New(ctx context.Context, conf Config) (*Driver, error) {
	conf.defaults()
	if conf.Keeper == nil {
		return nil, errors.New("cachefiles: a keeper of descriptors is required, or the end of this process ends every mount")
	}
	d := &Driver{
		conf:     conf,
		wake:     -1,
		complete: complete,
		denials:  driver.NewDenials(),
		tokens:   make(chan struct{}, conf.MaxInFlight),
		watchers: lifetime.NewWatchers(),
		guards:   map[string]*guard{},
		objects:  map[uint32]*object{},
		mounts:   map[*mount]struct{}{},
	}
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := d.inherit(); err != nil {
		d.cancel()
		return nil, err
	}
	return d, nil
}

// inherit takes a predecessor's device and objects over.
func (d *Driver) inherit() error {
	devices := d.conf.Inherited[DeviceName]
	var errs []error
	for name, files := range d.conf.Inherited {
		k, ok := parseKept(name)
		switch {
		case !ok: // not ours
		case len(devices) == 0: // without their device nothing can be asked
			errs = append(errs, d.conf.Keeper.Remove(name))
		default:
			g := d.guards[k.key]
			if g == nil {
				g = newGuard(k.key, nil)
				d.guards[k.key] = g
			}
			d.add(&object{kept: k, guard: g, file: files[0]})
			continue
		}
		if ok {
			for _, f := range files {
				errs = append(errs, f.Close())
			}
		}
	}
	if len(devices) == 0 {
		return errors.Join(errs...)
	}
	dev, err := adoptDevice(devices[0])
	for _, f := range devices {
		errs = append(errs, f.Close())
	}
	if err = errors.Join(append(errs, err)...); err != nil {
		return err
	}
	d.kept, d.expects = true, true
	if err := d.resume(dev); err != nil {
		return errors.Join(err, dev.close())
	}
	return d.start(dev)
}

// resume has everything asked again that a predecessor took and did not answer. An
// OPEN whose object was kept already is answered first: asked again, the kernel
// would refuse to make a second descriptor and never open the object. One that
// was answered, or whose asker is dead, gives EINVAL.
func (d *Driver) resume(dev *device) error {
	for _, o := range d.objects {
		if err := dev.copen(o.msg, o.size); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	return dev.command("restore")
}

// start serves a device. The caller holds d.mu or is New.
func (d *Driver) start(dev *device) error {
	var err error
	d.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return errors.Join(fmt.Errorf("making an eventfd: %w", err), dev.close())
	}
	d.dev = dev
	d.loop.Go(d.run)
	return nil
}

// Name returns "cachefiles".
func (d *Driver) Name() string { return Name }

// Probe reports whether the on-demand protocol and EROFS over it work with a cache
// in cacheDir. While this driver serves, it is the answer itself: the device
// cannot be opened twice.
func (d *Driver) Probe(cacheDir string) error {
	d.mu.Lock()
	started := d.dev != nil
	d.mu.Unlock()
	if started {
		return nil
	}
	return kernel.HaveCachefilesOnDemandBy(cacheDir, func(fsid string) error {
		made, err := mountproc.Run(d.ctx, mountproc.Order{Context: &mountproc.Context{
			FSType: "erofs", Options: [][2]string{{"fsid", fsid}},
		}})
		if err != nil {
			return err
		}
		return made.Mount.Close()
	})
}

// Settle says that no more adoptions come: requests of inherited layers that
// nobody adopted fail from now on. It returns the IDs of those layers. Their
// objects go when the kernel closes them.
func (d *Driver) Settle() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return nil, ErrShutdown
	}
	d.expects = false
	orphans := map[string]struct{}{}
	for key, g := range d.guards {
		select {
		case <-g.ready:
			continue
		default:
		}
		g.settle(nil)
		orphans[g.layerID] = struct{}{}
		if g.objects == 0 {
			delete(d.guards, key)
		}
	}
	var ids []string
	for id := range orphans {
		ids = append(ids, id)
	}
	return ids, d.dropDevice()
}

// Stats returns the counters. Hits are requests for what needed no fill; reads of
// what is in the kernel's cache already do not reach this process.
func (d *Driver) Stats() driver.Stats {
	s := driver.Stats{Hits: d.hits.Load(), Misses: d.misses.Load(), Denied: d.denied.Load()}
	d.mu.Lock()
	defer d.mu.Unlock()
	served := map[string]struct{}{}
	for _, g := range d.guards {
		served[g.layerID] = struct{}{}
	}
	s.Served = len(served)
	return s
}

// Shutdown stops taking requests, finishes those that were taken, and leaves
// mounts, the device and its objects to a successor. When ctx ends first, the
// reads in progress fail. Everything of this driver is then stopped, and only its
// Stats may be called.
func (d *Driver) Shutdown(ctx context.Context) error {
	d.mu.Lock()
	if d.down {
		d.mu.Unlock()
		return ErrShutdown
	}
	d.down = true
	started := d.dev != nil
	d.mu.Unlock()

	d.watchers.Stop()
	if started {
		d.wakeLoop()
	}
	err := lifetime.Finish(ctx, d.cancel, &d.loop, &d.tasks)
	d.cancel()
	d.watchers.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	for m := range d.mounts {
		if m.plan != nil {
			err = errors.Join(err, m.plan.close())
		}
	}
	// Objects before the device: the last of them all ends the cache.
	for _, o := range d.objects {
		err = errors.Join(err, o.file.Close())
	}
	if started {
		err = errors.Join(err, d.dev.close(), unix.Close(d.wake))
	}
	return err
}
