package wire

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"

	"github.com/lazyerofs/lazyerofs/cmd/internal/config"
	"github.com/lazyerofs/lazyerofs/differ"
)

// NewDiffer makes the differ for the snapshotter of n. It reads layers from store,
// and writes them there. keep guards what a comparison wrote for an hour; nil where
// the lease of the caller comes along with a call. Of stream processors those of the
// configuration come first, then more.
func NewDiffer(n config.Node, u config.Unpack, store content.Store, keep leases.Manager, more ...diff.Handler) (*differ.Differ, error) {
	spool := filepath.Join(n.Root, "spool")
	if err := os.MkdirAll(spool, 0o700); err != nil {
		return nil, fmt.Errorf("creating the directory of layers that are being written: %w", err)
	}
	return differ.New(store, differ.ServiceConfig{
		Snapshots:  filepath.Join(n.Root, "snapshots"),
		Leases:     keep,
		MediaType:  u.Differ.MediaType,
		Processors: append(processors(u.StreamProcessors), more...),
		Layer:      differ.Config{SpoolDir: spool, Verity: n.Verity.DM},
	}), nil
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
