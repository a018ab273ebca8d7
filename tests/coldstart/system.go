package coldstart

import (
	"context"
	"runtime"
	"time"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// System is one way to bring an image to a node and to run it.
type System interface {
	// Name is short and stable; it goes into results.
	Name() string
	// Tag names the form of the image that the system pulls.
	Tag() string
	// Start brings up an empty node below dir.
	Start(ctx context.Context, dir string) (Node, error)
}

// Node is a started System. Stop ends all of it, once.
type Node interface {
	Pull(ctx context.Context, ref string) error
	// Run runs args in a container of ref and returns what it printed.
	Run(ctx context.Context, ref string, args []string) (string, error)
	// CPU is what the node's daemons have computed since their start.
	CPU() (time.Duration, error)
	Stop() error
}

// Tags of the two forms of each image.
const (
	TagTar  = "tar"  // gzip-compressed tar layers
	TagLazy = "lazy" // native EROFS layers with a chunk index
)

// Overlayfs is containerd's default: everything is downloaded and unpacked.
func Overlayfs() System { return ctr{name: "overlayfs", snapshotter: "overlayfs", tag: TagTar} }

// Lazyerofs is this repository's snapshotter on converted images, with the drivers
// that are not forbidden.
func Lazyerofs(forbid ...string) System {
	return ctr{name: "lazyerofs", snapshotter: "lazyerofs", tag: TagLazy, lazy: true, forbid: forbid}
}

// LazyerofsTar is this repository's snapshotter on an image that was never
// converted: layers are downloaded and become EROFS on the node.
func LazyerofsTar(forbid ...string) System {
	return ctr{name: "lazyerofs-tar", snapshotter: "lazyerofs", tag: TagTar, lazy: true, forbid: forbid}
}

// LazyerofsTarObserved is LazyerofsTar with the daemon's metrics and profiles at a
// unix socket.
func LazyerofsTarObserved(socket string) System {
	return ctr{
		name: "lazyerofs-tar", snapshotter: "lazyerofs", tag: TagTar, lazy: true,
		metrics: map[string]any{"address": "unix:" + socket, "pprof": true},
	}
}

// Erofs is containerd's own EROFS snapshotter and differ, which runs mkfs.erofs:
// PATH must lead to one that takes tars. Layers are downloaded whole.
func Erofs(mkfsOptions ...string) System {
	return ctr{name: "erofs", snapshotter: "erofs", tag: TagTar, config: erofsConfig(mkfsOptions)}
}

// erofsConfig is what containerd's documentation of its EROFS snapshotter says.
func erofsConfig(mkfsOptions []string) map[string]any {
	return map[string]any{"plugins": map[string]any{
		"io.containerd.service.v1.diff-service": map[string]any{"default": []string{"erofs", "walking"}},
		"io.containerd.differ.v1.erofs":         map[string]any{"mkfs_options": mkfsOptions},
		"io.containerd.transfer.v1.local": map[string]any{"unpack_config": []map[string]any{
			{"platform": "linux/" + runtime.GOARCH, "snapshotter": "erofs", "differ": "erofs"},
		}},
	}}
}

// ctr is a system that is reached through a snapshotter of containerd.
type ctr struct {
	name, snapshotter, tag string
	lazy                   bool
	forbid                 []string       // drivers
	config                 map[string]any // of containerd
	metrics                map[string]any // of the daemon
}

func (s ctr) Name() string { return s.name }
func (s ctr) Tag() string  { return s.tag }

func (s ctr) Start(ctx context.Context, dir string) (Node, error) {
	daemon := map[string]any{"driver": map[string]any{"forbid": s.forbid}}
	if s.metrics != nil {
		daemon["metrics"] = s.metrics
	}
	n, err := testenv.StartHost(ctx, dir, testenv.HostOptions{Lazy: s.lazy, Daemon: daemon, Containerd: s.config})
	if err != nil {
		return nil, err
	}
	return &ctrNode{Host: n, snapshotter: s.snapshotter}, nil
}

type ctrNode struct {
	*testenv.Host
	snapshotter string
}

func (n *ctrNode) Pull(ctx context.Context, ref string) error {
	_, err := n.Ctr(ctx, "images", "pull", "--snapshotter", n.snapshotter, ref)
	return err
}

func (n *ctrNode) Run(ctx context.Context, ref string, args []string) (string, error) {
	// The host's network and name need no plugin that a fresh machine lacks.
	return n.Host.Run(ctx, append([]string{"--snapshotter", n.snapshotter, ref, "workload"}, args...)...)
}
