package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff"
	leases "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lazyerofs/lazyerofs/cmd/internal/config"
	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/fs"
	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/driver"
	drivers "github.com/lazyerofs/lazyerofs/fs/driver/all"
	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/fs/fdstore"
	formats "github.com/lazyerofs/lazyerofs/fs/format/all"
	"github.com/lazyerofs/lazyerofs/fs/layer"
	"github.com/lazyerofs/lazyerofs/fs/remote"
	"github.com/lazyerofs/lazyerofs/snapshot"
)

// inheritance is what a predecessor left, by name.
type inheritance driver.Inheritance

// daemon is everything that runs, with what ends it.
type daemon struct {
	c       config.Config
	notify  *fdstore.Store // nil without a keeper
	left    inheritance
	metrics *prometheus.Registry
	servers []driver.Server
	files   *fs.FS
	snaps   *snapshot.Snapshotter
	differ  *differ.Differ
	// What of the configuration's [verity] can be done here.
	throughDM, sealing bool

	ends []func(context.Context) error // run in reverse order
}

// onEnd registers what is to be done at the end, before everything that was
// registered earlier.
func (d *daemon) onEnd(f func(context.Context) error) { d.ends = append(d.ends, f) }

// end undoes wire. Mounts stay.
func (d *daemon) end(ctx context.Context) error {
	var errs []error
	for i := len(d.ends) - 1; i >= 0; i-- {
		errs = append(errs, d.ends[i](ctx))
	}
	return errors.Join(errs...)
}

// readAheadKB is the kernel's read-ahead on lazy mounts, twice its default: what
// it asks for in one event costs one round trip to the registry. A cold start of
// Python with numpy asks for an eighth more data in a tenth fewer round trips;
// beyond 256 KiB it asks for more and saves nothing.
const readAheadKB = 256

// wire puts the parts together. Nothing is fetched and nothing served yet.
func wire(ctx context.Context, c config.Config, notify *fdstore.Store, left inheritance) (_ *daemon, err error) {
	d := &daemon{c: c, notify: notify, left: left, metrics: prometheus.NewRegistry()}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.end(context.WithoutCancel(ctx)))
		}
	}()
	d.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := d.lockRoot(ctx); err != nil {
		return nil, err
	}
	store, err := cache.OpenStore(filepath.Join(c.Root, "cache"))
	if err != nil {
		return nil, fmt.Errorf("opening the cache: %w", err)
	}
	if err := d.wireFiles(ctx, store, left); err != nil {
		return nil, err
	}
	d.snaps, err = snapshot.New(c.Root, d.files, snapshot.Config{
		PrepareTimeout: time.Duration(c.Snapshotter.PrepareTimeout),
		Strict:         c.Snapshotter.Strict,
		Metrics:        d.metrics,
	})
	if err != nil {
		return nil, err
	}
	d.onEnd(func(context.Context) error { return d.snaps.Close() })
	return d, d.wireDiffer()
}

// wireFiles makes the lazy side: registry, cache, driver.
func (d *daemon) wireFiles(ctx context.Context, store *cache.Store, left inheritance) error {
	hosts := remote.NewHosts(remote.HostsConfig{CertsDir: d.c.Registry.CertsDir})
	d.onEnd(func(context.Context) error { hosts.Close(); return nil })
	resolver := remote.NewResolver(remote.Config{})
	d.onEnd(func(context.Context) error { return resolver.Close() })
	reads := remote.NewMetrics()
	if err := d.metrics.Register(reads); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	list, usable, none := d.wireDrivers(ctx, store.Root(), left)
	whole := d.wireVerity(ctx, store.Root())
	d.files = fs.New(ctx, fs.Config{
		Store:    store,
		Resolver: resolver,
		Sources:  remote.Sources(hosts.RegistryHosts),
		Remote: remote.Options{
			Retry:    remote.Policy{Budget: time.Duration(d.c.Registry.RetryBudget)},
			Limiter:  remote.NewLimiter(d.c.Registry.MaxRequests, d.c.Registry.MaxRequestsPerHost),
			Observer: reads,
		},
		Formats:  formats.All(),
		Drivers:  usable,
		NoDriver: none,
		Adopters: append(list, whole),
		Whole:    d.whole(whole),
		Seal:     d.sealing,
		MountFile: func(ctx context.Context, file, target string) error {
			return d.mountUnpacked(ctx, file, target)
		},
		Writer: left.writer,
		Slots:  layer.NewSlots(runtime.GOMAXPROCS(0)),
	})
	d.onEnd(d.files.Close)
	d.onEnd(whole.Shutdown)
	for _, s := range d.servers {
		// Before files: no event may reach a layer that is being closed.
		d.onEnd(s.Shutdown)
	}
	return nil
}

// wireDrivers makes the drivers and says which of them may serve new mounts; the
// error says why none may. What is mounted is taken over by the driver that
// mounted it, whatever a probe would say today.
func (d *daemon) wireDrivers(ctx context.Context, cacheDir string, left inheritance) (list, usable []driver.Driver, err error) {
	if d.notify == nil {
		err := fmt.Errorf("nobody keeps descriptors for this process, start it with --supervise or under systemd: %w", driver.ErrNoDriver)
		log.G(ctx).WithError(err).Warn("layers are not loaded lazily")
		return nil, nil, err
	}
	if err := driver.RemoveLeftovers(ctx, cacheDir); err != nil {
		log.G(ctx).WithError(err).Warn("what a probe of a killed process left stays")
	}
	before := maps.Clone(left) // drivers take what is theirs
	d.servers, err = drivers.New(ctx, drivers.Config{
		Keeper:      d.notify,
		Inherited:   driver.Inheritance(left),
		ReadAheadKB: readAheadKB,
		Quarantine:  func(ids []string, why error) { d.files.Quarantine(ids, why) },

		CachefilesDir: filepath.Join(d.c.Root, "cachefiles"),
	})
	if err != nil {
		log.G(ctx).WithError(err).Error("layers are not loaded lazily")
		return nil, nil, err
	}
	for _, s := range d.servers {
		list = append(list, s)
		if err := registerDriver(d.metrics, s); err != nil {
			return nil, nil, fmt.Errorf("registering metrics of driver %s: %w", s.Name(), err)
		}
	}
	force := d.c.Driver.Name
	if i := slices.IndexFunc(list, func(each driver.Driver) bool {
		return before.has(each.Name()) && (force == "" || force == each.Name())
	}); i >= 0 {
		// It served before, so it works. Its mounts must not wait for probes.
		log.G(ctx).WithField("driver", list[i].Name()).Info("going on with the predecessor's driver")
		return list, slices.DeleteFunc(slices.Clone(list[i:]), func(each driver.Driver) bool {
			return slices.Contains(d.c.Driver.Forbid, each.Name())
		}), nil
	}
	usable, probes, err := driver.Select(ctx, list, cacheDir, d.c.Driver.Name, d.c.Driver.Forbid)
	for _, p := range probes {
		log.G(ctx).Info("driver " + p.String())
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("layers are not loaded lazily")
	}
	return list, usable, err
}

// mountErofs mounts for both sides. Set-id bits and devices count where a single
// layer is bound as it is; the mount points lie below a directory that only root
// can enter.
func mountErofs(ctx context.Context, source, device, target string) error {
	// All of it is local, so a loop device may stand for a file that the kernel does
	// not mount: it would raise no events.
	c := erofs.MountConfig{Source: source, Target: target, Suid: true, Dev: true, Loop: erofs.LoopFallback}
	if device != "" {
		c.Devices = []string{device}
	}
	_, err := erofs.Mount(ctx, c)
	return err
}

// has reports whether a driver left anything: what it keeps begins with its name.
func (in inheritance) has(driverName string) bool {
	for name := range in {
		if strings.HasPrefix(name, driverName+"-") {
			return true
		}
	}
	return false
}

// writers guards handing out inherited descriptors.
var writers sync.Mutex

// writer hands out, once, the descriptor of a layer's data file.
func (in inheritance) writer(layerID string) *os.File {
	writers.Lock()
	defer writers.Unlock()
	name := fanotify.WriterName(layerID)
	files := in[name]
	if len(files) == 0 {
		return nil
	}
	in[name] = files[1:]
	return files[0]
}

// wireDiffer makes the differ, which reads layers from containerd's own content
// store, and writes them there, in the namespace of the caller.
func (d *daemon) wireDiffer() error {
	conn, err := grpc.NewClient("unix://"+d.c.Containerd.Address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)))
	if err != nil {
		return fmt.Errorf("reaching containerd at %s: %w", d.c.Containerd.Address, err)
	}
	d.onEnd(func(context.Context) error { return conn.Close() })
	spool := filepath.Join(d.c.Root, "spool")
	if err := os.MkdirAll(spool, 0o700); err != nil {
		return fmt.Errorf("creating the directory of layers that are being written: %w", err)
	}
	d.differ = differ.New(proxy.NewContentStore(conn), differ.ServiceConfig{
		Snapshots:  filepath.Join(d.c.Root, "snapshots"),
		Leases:     leases.NewLeaseManager(leasesapi.NewLeasesClient(conn)),
		MediaType:  d.c.Differ.MediaType,
		Processors: processors(d.c.StreamProcessors),
		Layer:      differ.Config{SpoolDir: spool, Verity: d.c.Verity.DM},
	})
	return nil
}

// processors makes the stream processors of the configuration, which run as
// programs of this process as they do under containerd.
func processors(byID map[string]config.StreamProcessor) []diff.Handler {
	var all []diff.Handler
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		p := byID[id]
		all = append(all, diff.BinaryHandler(id, p.Returns, p.Accepts, p.Path, p.Args, p.Env))
	}
	return all
}
