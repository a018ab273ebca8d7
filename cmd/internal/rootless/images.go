package rootless

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// Layers opens layers; fs.FS does.
type Layers interface {
	// Hold opens a layer until release is called; mounted says that a predecessor's
	// mount of it stands.
	Hold(ctx context.Context, labels map[string]string, mounted bool) (l driver.Layer, release func(), err error)
}

// Driver shows several layers at one mount point; fusetree.Driver does.
type Driver interface {
	MountImage(ctx context.Context, target string, layers []driver.Layer) (driver.Mount, error)
	AdoptImage(ctx context.Context, target string, layers []driver.Layer) (driver.Mount, error)
}

// Images is what a daemon has mounted. It implements Service and is safe for
// concurrent use.
type Images struct {
	layers Layers
	driver Driver
	dir    string // of the records

	ctx   context.Context // ends with Close
	stop  context.CancelFunc
	tasks sync.WaitGroup

	mu     sync.Mutex
	mounts map[string]*image // by target
	gone   map[string]bool   // dead mounts that Restore has taken away, by target
}

var _ Service = (*Images)(nil)

// image is one mount; mount is nil while it is being made.
type image struct {
	Mount
	mount    driver.Mount
	open     []driver.Layer
	releases []func()
}

// opening is how many layers of an image are opened at once.
const opening = 8

// New returns Images with their records in dir, which it creates.
func New(ctx context.Context, layers Layers, d Driver, dir string) (*Images, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating the directory of mounts: %w", err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	return &Images{layers: layers, driver: d, dir: dir, ctx: ctx, stop: stop, mounts: map[string]*image{}, gone: map[string]bool{}}, nil
}

// Mount opens the layers of an image and mounts them at its target.
func (s *Images) Mount(ctx context.Context, m Mount) error {
	if err := check(m); err != nil {
		return err
	}
	i := &image{Mount: m}
	s.mu.Lock()
	if s.mounts[m.Target] != nil {
		s.mu.Unlock()
		return &Failure{Message: fmt.Sprintf("an image is mounted at %s already", m.Target)}
	}
	s.mounts[m.Target] = i
	s.mu.Unlock()
	err := s.open(ctx, i, false)
	if err == nil {
		// Before the mount: one without a record would be nobody's.
		if err = save(s.dir, m); err == nil {
			var mount driver.Mount
			if mount, err = s.driver.MountImage(ctx, m.Target, i.open); err == nil {
				s.keep(i, mount)
				return nil
			}
		}
	}
	return errors.Join(err, s.drop(i))
}

// keep remembers a mount until nothing uses it any more, whoever unmounted it.
func (s *Images) keep(i *image, m driver.Mount) {
	s.mu.Lock()
	i.mount = m
	s.mounts[i.Target] = i
	s.mu.Unlock()
	s.tasks.Go(func() { // ends with the mount or with Close
		select {
		case <-m.Done():
			if err := s.drop(i); err != nil {
				log.G(s.ctx).WithError(err).Error("an image that was unmounted is still on record")
			}
		case <-s.ctx.Done():
		}
	})
}

func check(m Mount) error {
	if !filepath.IsAbs(m.Target) || filepath.Clean(m.Target) != m.Target || m.Target == "/" {
		return &Failure{Message: fmt.Sprintf("the mount point %q is no absolute, clean path of a directory", m.Target)}
	}
	if len(m.Layers) == 0 {
		return &Failure{Message: fmt.Sprintf("the image %s has no layers", m.Image)}
	}
	return nil
}

// held is an open layer.
type held struct {
	layer   driver.Layer
	release func()
}

// open opens the layers, several at once.
func (s *Images) open(ctx context.Context, i *image, mounted bool) error {
	all := make([]held, len(i.Layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(opening)
	for k, labels := range i.Layers {
		g.Go(func() (err error) {
			all[k].layer, all[k].release, err = s.layers.Hold(ctx, labels, mounted)
			var miss interface{ MissReason() string }
			if errors.As(err, &miss) && ctx.Err() == nil {
				return &Failure{Message: err.Error(), Reason: miss.MissReason(), Layer: k}
			}
			return err
		})
	}
	err := g.Wait()
	for _, h := range all {
		if h.release != nil {
			i.releases = append(i.releases, h.release)
			i.open = append(i.open, h.layer)
		}
	}
	return err
}
