package wire

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/containerd/log"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	drivers "github.com/lazyerofs/lazyerofs/fs/driver/all"
	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
)

// readAheadKB is the kernel's read-ahead on lazy mounts, twice its default: what
// it asks for in one event costs one round trip to the registry. A cold start of
// Python with numpy asks for an eighth more data in a tenth fewer round trips;
// beyond 256 KiB it asks for more and saves nothing.
const readAheadKB = 256

// wireDrivers makes the drivers and says which of them may serve new mounts; the
// error says why none may. What is mounted is taken over by the driver that
// mounted it, whatever a probe would say today.
func (n *Node) wireDrivers(ctx context.Context, cacheDir string) (list, usable []driver.Driver, err error) {
	if err := n.kept(); err != nil {
		log.G(ctx).WithError(err).Warn("layers are not loaded lazily")
		return nil, nil, err
	}
	if err := driver.RemoveLeftovers(ctx, cacheDir); err != nil {
		log.G(ctx).WithError(err).Warn("what a probe of a killed process left stays")
	}
	before := maps.Clone(n.o.Inherited) // drivers take what is theirs
	if n.servers, err = n.newDrivers(ctx); err != nil {
		log.G(ctx).WithError(err).Error("layers are not loaded lazily")
		return nil, nil, err
	}
	for _, s := range n.servers {
		list = append(list, s)
		if err := registerDriver(n.o.Metrics, s); err != nil {
			return nil, nil, fmt.Errorf("registering metrics of driver %s: %w", s.Name(), err)
		}
	}
	force := n.Config.Driver.Name
	if i := slices.IndexFunc(list, func(each driver.Driver) bool {
		return before.has(each.Name()) && (force == "" || force == each.Name())
	}); i >= 0 {
		// It served before, so it works. Its mounts must not wait for probes.
		log.G(ctx).WithField("driver", list[i].Name()).Info("going on with the predecessor's driver")
		return list, slices.DeleteFunc(slices.Clone(list[i:]), func(each driver.Driver) bool {
			return slices.Contains(n.Config.Driver.Forbid, each.Name())
		}), nil
	}
	usable, probes, err := driver.Select(ctx, list, cacheDir, n.Config.Driver.Name, n.Config.Driver.Forbid)
	for _, p := range probes {
		log.G(ctx).Info("driver " + p.String())
	}
	if err != nil && n.o.InProcess {
		err = fmt.Errorf("inside of containerd only fanotify serves, run lazyerofsd beside it for other drivers: %w", err)
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("layers are not loaded lazily")
	}
	return list, usable, err
}

// kept says why nobody keeps descriptors over the end of this process.
func (n *Node) kept() error {
	why := driver.ErrNoDriver
	if n.o.Keeper != nil {
		if why = n.o.Keeper.Keeps(); why == nil {
			return nil
		}
	}
	if n.o.InProcess {
		return fmt.Errorf("nobody keeps descriptors for containerd, give containerd.service a descriptor store or start it with lazyerofsd --supervise -- containerd: %w", why)
	}
	return fmt.Errorf("nobody keeps descriptors for this process, start it with --supervise or under systemd: %w", why)
}

// newDrivers makes the drivers that may serve in this process.
func (n *Node) newDrivers(ctx context.Context) ([]driver.Server, error) {
	inherited := driver.Inheritance(n.o.Inherited)
	quarantine := func(ids []string, why error) { n.Files.Quarantine(ids, why) }
	if n.o.InProcess {
		d, err := fanotify.New(ctx, fanotify.Config{
			Keeper: n.o.Keeper, Inherited: inherited, ReadAheadKB: readAheadKB, Quarantine: quarantine,
		})
		if err != nil {
			return nil, err
		}
		return []driver.Server{d}, nil
	}
	return drivers.New(ctx, drivers.Config{
		Keeper: n.o.Keeper, Inherited: inherited, ReadAheadKB: readAheadKB, Quarantine: quarantine,
		CachefilesDir: filepath.Join(n.Config.Root, "cachefiles"),
	})
}
