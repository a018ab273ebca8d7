package fs

import (
	"context"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/dmverity"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
	formats "github.com/lazyerofs/lazyerofs/fs/format/all"
	"github.com/lazyerofs/lazyerofs/fs/format/formattest"
	"github.com/lazyerofs/lazyerofs/fs/remote"
	"github.com/lazyerofs/lazyerofs/fs/remote/remotetest"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

func TestMain(m *testing.M) { drivertest.Main(m) }

// rig is a node: a registry, a keeper of descriptors, a cache, and one process
// after another that serves it. Everything but the registry's content is real.
type rig struct {
	t      *testing.T
	reg    remotetest.Registry
	faults remotetest.Faults
	log    remotetest.Log
	host   string
	dir    string
	keeper drivertest.Keeper
	verity bool // mounts and files of complete layers are to be checked by the kernel
	*process
}

// process is what one process of the daemon has.
type process struct {
	*FS
	driver   *fanotify.Driver
	dm       *dmverity.Driver
	resolver *remote.Resolver
	hosts    *remote.HostSet
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "fs-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	testenv.VerifyNoLeaks(t, dir)
	r := &rig{t: t, dir: dir}
	server := httptest.NewServer(r.log.Wrap(r.faults.Wrap(&r.reg)))
	r.host = strings.TrimPrefix(server.URL, "http://")
	r.start()
	t.Cleanup(func() {
		r.stop()
		require.NoError(t, testenv.UnmountAll(dir))
		require.NoError(t, r.keeper.Close())
		server.Close()
	})
	return r
}

// start begins a process that inherits what the last one left.
func (r *rig) start() {
	r.t.Helper()
	left, err := r.keeper.Inherited()
	require.NoError(r.t, err)
	p := &process{hosts: remote.NewHosts(remote.HostsConfig{PlainHTTP: true, CertsDir: filepath.Join(r.dir, "certs.d")})}
	p.resolver = remote.NewResolver(remote.Config{})
	store, err := cache.OpenStore(filepath.Join(r.dir, "cache"))
	require.NoError(r.t, err)
	p.driver, err = fanotify.New(r.t.Context(), fanotify.Config{
		Keeper: &r.keeper, Inherited: left,
		Quarantine: func(ids []string, why error) { p.Quarantine(ids, why) },
	})
	require.NoError(r.t, err)
	p.dm = dmverity.New(0)
	conf := Config{
		Store: store, Resolver: p.resolver, Sources: remote.Sources(p.hosts.RegistryHosts),
		Remote:  remote.Options{Retry: remote.Policy{Budget: time.Minute, First: time.Hour}},
		Formats: formats.All(), Drivers: []driver.Driver{p.driver},
		MountFile: func(ctx context.Context, file, target string) error {
			_, err := erofs.Mount(ctx, erofs.MountConfig{Source: file, Target: target})
			return err
		},
		Writer: func(id string) *os.File {
			name := fanotify.WriterName(id)
			if len(left[name]) == 0 {
				return nil
			}
			f := left[name][0]
			delete(left, name)
			return f
		},
		Adopters: []driver.Driver{p.driver, p.dm},
	}
	if r.verity {
		conf.Whole, conf.Seal = p.dm, true
	}
	p.FS = New(r.t.Context(), conf)
	r.process = p
}

// stop ends the process as the daemon does: mounts stay.
func (r *rig) stop() {
	r.t.Helper()
	if r.process == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.t.Context()), 20*time.Second)
	defer cancel()
	require.NoError(r.t, r.Prune(ctx))
	require.NoError(r.t, r.driver.Shutdown(ctx))
	require.NoError(r.t, r.dm.Shutdown(ctx))
	require.NoError(r.t, r.Close(ctx))
	require.NoError(r.t, r.resolver.Close())
	r.hosts.Close()
	r.process = nil
}

// offline makes the registry refuse everything until the returned call.
func (r *rig) offline() (online func()) {
	r.faults.Add("", "", remotetest.Always, remotetest.Status(http.StatusServiceUnavailable))
	r.log.Reset()
	return r.faults.Clear
}

// image is a layer in the registry.
type image struct {
	*drivertest.Image
	blob   []byte
	desc   ocispec.Descriptor
	labels map[string]string
}

// publish encodes img and puts it into the registry. change, if any, is what the
// author of the manifest did to the descriptor.
func (r *rig) publish(img *drivertest.Image, raw bool, change func(*ocispec.Descriptor)) image {
	r.t.Helper()
	build := formattest.BuildZstd
	if raw {
		build = formattest.BuildRaw
	}
	blob, desc, err := build(img.Data, 64<<10)
	require.NoError(r.t, err)
	diffID := digest.FromBytes(img.Data)
	if raw {
		diffID = desc.Digest
	}
	r.reg.AddBlob(blob)
	if change != nil {
		change(&desc)
	}
	return image{img, blob, desc, r.labels(desc, diffID.String())}
}

// labels are what containerd says of a layer.
func (r *rig) labels(desc ocispec.Descriptor, diffID string) map[string]string {
	return map[string]string{
		"containerd.io/snapshot/cri.image-ref":       r.host + "/img:1",
		"containerd.io/snapshot/cri.layer-digest":    desc.Digest.String(),
		"containerd.io/snapshot/cri.manifest-digest": r.reg.AddManifest(desc).String(),
		labelDiffID: diffID,
	}
}

func with(labels map[string]string, key, value string) map[string]string {
	out := maps.Clone(labels)
	if out[key] = value; value == "" {
		delete(out, key)
	}
	return out
}

func (r *rig) newTarget(name string) string {
	r.t.Helper()
	at := filepath.Join(r.dir, "l", name)
	require.NoError(r.t, os.MkdirAll(at, 0o755))
	return at
}

// mount mounts img at a new target.
func (r *rig) mount(name string, img image) string {
	r.t.Helper()
	at := r.newTarget(name)
	require.NoError(r.t, r.Mount(r.t.Context(), at, img.labels))
	return at
}

// requireTree fails unless every file below at has the image's content.
func (r *rig) requireTree(at string, img image) {
	r.t.Helper()
	n := 0
	require.NoError(r.t, filepath.WalkDir(at, func(path string, d fs.DirEntry, err error) error {
		require.NoError(r.t, err)
		if !d.Type().IsRegular() {
			return nil
		}
		name, err := filepath.Rel(at, path)
		require.NoError(r.t, err)
		b, err := os.ReadFile(path)
		require.NoError(r.t, err, name)
		require.True(r.t, string(img.Files[name]) == string(b), "%s has other bytes", name)
		n++
		return nil
	}))
	require.Equal(r.t, len(img.Files), n)
}

// requests returns how many requests there were for a blob.
func (r *rig) requests(img image) int { return len(r.log.Matching("GET", img.desc.Digest.String())) }
