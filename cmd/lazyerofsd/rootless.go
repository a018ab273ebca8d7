package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"runtime"
	"time"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/lazyerofs/lazyerofs/cmd/internal/config"
	"github.com/lazyerofs/lazyerofs/cmd/internal/rootless"
	"github.com/lazyerofs/lazyerofs/cmd/internal/wire"
	"github.com/lazyerofs/lazyerofs/fs"
	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/fusetree"
	"github.com/lazyerofs/lazyerofs/fs/fdstore"
	formats "github.com/lazyerofs/lazyerofs/fs/format/all"
	"github.com/lazyerofs/lazyerofs/fs/layer"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// userDaemon serves the images that an ordinary user mounts: the lazy side of
// daemon, and one FUSE mount for each image in place of the snapshotter.
type userDaemon struct {
	daemon
	files  *fs.FS
	tree   *fusetree.Driver
	images *rootless.Images
	ends   wire.Ends
}

// serveRootless runs the daemon of an ordinary user until ctx ends.
func serveRootless(ctx context.Context, c config.Config, notify *fdstore.Store, left wire.Inheritance) error {
	if notify == nil {
		return errors.New("nobody keeps descriptors for this process: start it with --supervise")
	}
	d := &userDaemon{daemon: daemon{c: c, notify: notify, left: left, metrics: prometheus.NewRegistry()}}
	err := d.wire(ctx, left)
	if err == nil {
		log.G(ctx).WithField("version", buildVersion()).WithField("address", c.Address).WithField("root", c.Root).Info("lazyerofsd serves an ordinary user")
		err = d.serve(ctx)
		err = errors.Join(err, notify.Stopping())
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return errors.Join(err, d.ends.Run(ending))
}

// wire puts the parts together. Nothing is fetched and nothing served yet.
func (d *userDaemon) wire(ctx context.Context, left wire.Inheritance) error {
	unlock, err := wire.Lock(ctx, d.c.Root)
	if err != nil {
		return err
	}
	d.ends.Add(unlock)
	store, err := cache.OpenStore(filepath.Join(d.c.Root, "cache"))
	if err != nil {
		return fmt.Errorf("opening the cache: %w", err)
	}
	// One user's mounts are that user's: others could see what they may not, and
	// fusermount3 would not let them in anyway.
	d.tree, err = fusetree.New(ctx, fusetree.Config{Keeper: d.notify, Inherited: driver.Inheritance(left), Private: true})
	if err != nil {
		return err
	}
	hosts := remote.NewHosts(remote.HostsConfig{CertsDir: d.c.Registry.CertsDir})
	d.ends.Add(func(context.Context) error { hosts.Close(); return nil })
	resolver := remote.NewResolver(remote.Config{})
	d.ends.Add(func(context.Context) error { return resolver.Close() })
	d.files = fs.New(ctx, fs.Config{
		Store:    store,
		Resolver: resolver,
		Sources:  remote.Sources(hosts.RegistryHosts),
		Remote: remote.Options{
			Retry:   remote.Policy{Budget: time.Duration(d.c.Registry.RetryBudget)},
			Limiter: remote.NewLimiter(d.c.Registry.MaxRequests, d.c.Registry.MaxRequestsPerHost),
		},
		Formats: formats.All(),
		Drivers: []driver.Driver{d.tree},
		Slots:   layer.NewSlots(runtime.GOMAXPROCS(0)),
	})
	d.ends.Add(d.files.Close)
	d.ends.Add(d.tree.Shutdown) // before files: no read may reach a layer that is being closed
	d.images, err = rootless.New(ctx, d.files, d.tree, filepath.Join(d.c.Root, "mounts"))
	if err != nil {
		return err
	}
	d.ends.Add(func(context.Context) error { d.images.Close(); return nil })
	return nil
}

// serve takes over what is mounted, then answers the command line.
func (d *userDaemon) serve(ctx context.Context) error {
	listener, err := d.listen(ctx)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: rootless.Handler(d.images), ReadHeaderTimeout: 10 * time.Second}
	err = d.takeOver(ctx)
	if err != nil || ctx.Err() != nil {
		return errors.Join(err, listener.Close())
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serving %s: %w", d.c.Address, err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if err := server.Shutdown(ending); err != nil {
			return errors.Join(fmt.Errorf("finishing requests: %w", err), server.Close())
		}
		return nil
	})
	return g.Wait()
}

// takeOver adopts what a predecessor had mounted and lets go of the rest. Local
// state only.
func (d *userDaemon) takeOver(ctx context.Context) error {
	if err := d.notify.Ready("serving " + d.c.Address); err != nil {
		return fmt.Errorf("telling the supervisor: %w", err)
	}
	if err := d.images.Restore(ctx); err != nil {
		log.G(ctx).WithError(err).Error("mounts were not taken over")
	}
	if ctx.Err() != nil {
		return nil //nolint:nilerr // told to stop: the successor comes to what we did not
	}
	if _, err := d.tree.Settle(); err != nil {
		return fmt.Errorf("letting go of mounts that nobody knows: %w", err)
	}
	return nil
}
