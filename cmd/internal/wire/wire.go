package wire

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lazyerofs/lazyerofs/cmd/internal/config"
	"github.com/lazyerofs/lazyerofs/fs"
	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/fs/fdstore"
	formats "github.com/lazyerofs/lazyerofs/fs/format/all"
	"github.com/lazyerofs/lazyerofs/fs/layer"
	"github.com/lazyerofs/lazyerofs/fs/remote"
	"github.com/lazyerofs/lazyerofs/snapshot"
)

// Options say what is around the parts.
type Options struct {
	// Keeper keeps descriptors for a successor, and Inherited is what a predecessor
	// left, both from Inherit. Without a keeper no layer is loaded lazily.
	Keeper    *fdstore.Store
	Inherited Inheritance
	// Metrics is where metrics are registered. Required.
	Metrics prometheus.Registerer
	// InProcess says that this process reads from mounts that it serves, as
	// containerd does. Then only fanotify serves. A reader that waits in another
	// driver cannot be killed while nobody answers, so a process that was killed in
	// such a read of its own would not end, and no successor would be started.
	// Readers in fanotify can be.
	InProcess bool
}

// Node is everything that is put together, with what ends it.
type Node struct {
	Files     *fs.FS
	Snapshots *snapshot.Snapshotter
	// Config is what it was made of.
	Config config.Node

	o       Options
	servers []driver.Server
	// What of the configuration's [verity] can be done here.
	throughDM, sealing bool

	ends Ends
}

// Ends is what is to be done at the end, in the order in which it was begun.
type Ends []func(context.Context) error

// Add registers what is to be done at the end, before everything that was
// registered earlier.
func (e *Ends) Add(f func(context.Context) error) { *e = append(*e, f) }

// Run does all of it, whatever fails.
func (e Ends) Run(ctx context.Context) error {
	var errs []error
	for _, f := range slices.Backward(e) {
		errs = append(errs, f(ctx))
	}
	return errors.Join(errs...)
}

// New puts the parts together. Nothing is fetched yet; reads of what a predecessor
// mounted are served from now on, and wait for Restore.
func New(ctx context.Context, c config.Node, o Options) (_ *Node, err error) {
	n := &Node{Config: c, o: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.ends.Run(context.WithoutCancel(ctx)))
		}
	}()
	unlock, err := Lock(ctx, c.Root)
	if err != nil {
		return nil, err
	}
	n.ends.Add(unlock)
	store, err := cache.OpenStore(filepath.Join(c.Root, "cache"))
	if err != nil {
		return nil, fmt.Errorf("opening the cache: %w", err)
	}
	if err := n.wireFiles(ctx, store); err != nil {
		return nil, err
	}
	n.Snapshots, err = snapshot.New(c.Root, n.Files, snapshot.Config{
		PrepareTimeout: time.Duration(c.Snapshotter.PrepareTimeout),
		Strict:         c.Snapshotter.Strict,
		Metrics:        o.Metrics,
	})
	if err != nil {
		return nil, err
	}
	n.ends.Add(func(context.Context) error { return n.Snapshots.Close() })
	return n, nil
}

// Restore adopts what is mounted: local state only, but a broken disk may hold it
// up. When ctx ends, the rest is left to a successor.
func (n *Node) Restore(ctx context.Context) {
	err := n.Snapshots.Restore(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		log.G(ctx).WithError(err).Error("mounted layers were not taken over")
	}
	for _, s := range n.servers {
		orphans, err := s.Settle()
		if len(orphans) > 0 {
			log.G(ctx).WithField("layers", orphans).Warn("layers have readers but no mount of ours: reads of missing data fail")
		}
		if err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).Error("layers without a mount were not let go")
		}
	}
}

// PruneTimeout bounds how long the end of superblocks is waited for that nobody
// can reach through a mount of ours any more; containers may hold them. EndTimeout
// bounds how long the parts may take to end.
const (
	PruneTimeout = 10 * time.Second
	EndTimeout   = 20 * time.Second
)

// End finishes reads that were taken and ends everything but the mounts, within
// PruneTimeout and EndTimeout. It does not look at the end of ctx.
func (n *Node) End(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	pruning, cancel := context.WithTimeout(ctx, PruneTimeout)
	defer cancel()
	err := n.Files.Prune(pruning)
	ending, cancel := context.WithTimeout(ctx, EndTimeout)
	defer cancel()
	return errors.Join(err, n.ends.Run(ending))
}

// wireFiles makes the lazy side: registry, cache, driver.
func (n *Node) wireFiles(ctx context.Context, store *cache.Store) error {
	hosts := remote.NewHosts(remote.HostsConfig{CertsDir: n.Config.Registry.CertsDir})
	n.ends.Add(func(context.Context) error { hosts.Close(); return nil })
	resolver := remote.NewResolver(remote.Config{})
	n.ends.Add(func(context.Context) error { return resolver.Close() })
	reads := remote.NewMetrics()
	if err := n.o.Metrics.Register(reads); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	list, usable, none := n.wireDrivers(ctx, store.Root())
	whole := n.wireVerity(ctx, store.Root())
	n.Files = fs.New(ctx, fs.Config{
		Store:    store,
		Resolver: resolver,
		Sources:  remote.Sources(hosts.RegistryHosts),
		Remote: remote.Options{
			Retry:    remote.Policy{Budget: time.Duration(n.Config.Registry.RetryBudget)},
			Limiter:  remote.NewLimiter(n.Config.Registry.MaxRequests, n.Config.Registry.MaxRequestsPerHost),
			Observer: reads,
		},
		Formats:  formats.All(),
		Drivers:  usable,
		NoDriver: none,
		Adopters: append(list, whole),
		Whole:    n.whole(whole),
		Seal:     n.sealing,
		MountFile: func(ctx context.Context, file, target string) error {
			return n.mountUnpacked(ctx, file, target)
		},
		Writer: n.o.Inherited.writer,
		Slots:  layer.NewSlots(runtime.GOMAXPROCS(0)),
	})
	n.ends.Add(n.Files.Close)
	n.ends.Add(whole.Shutdown)
	for _, s := range n.servers {
		// Before files: no event may reach a layer that is being closed.
		n.ends.Add(s.Shutdown)
	}
	return nil
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
