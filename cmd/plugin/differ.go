package plugin

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"
	"github.com/containerd/typeurl/v2"

	"github.com/lazyerofs/lazyerofs/cmd/internal/config"
	"github.com/lazyerofs/lazyerofs/cmd/internal/wire"
	"github.com/lazyerofs/lazyerofs/differ"
)

// startDiffer makes the differ, for the snapshots of the snapshotter and over
// containerd's own content store. A caller's lease is in its context here, so
// that the differ needs none of its own.
func startDiffer(ic *plugin.InitContext) (*differ.Differ, error) {
	c, ok := ic.Config.(*config.Unpack)
	if !ok {
		return nil, skip(ic.Context, fmt.Errorf("the configuration of the differ is a %T", ic.Config))
	}
	if err := c.Check(); err != nil {
		return nil, skip(ic.Context, err)
	}
	i, err := ic.GetByID(plugins.SnapshotPlugin, ID)
	sn, ok := i.(*snapshotter)
	if err != nil || !ok {
		return nil, fmt.Errorf("the differ works for snapshots of %s only, which is not there: %w", ID, plugin.ErrSkipPlugin)
	}
	m, err := ic.GetSingle(plugins.MetadataPlugin)
	if err != nil {
		return nil, fmt.Errorf("looking for containerd's content store: %w", err)
	}
	db, ok := m.(*metadata.DB)
	if !ok {
		return nil, skip(ic.Context, fmt.Errorf("containerd's metadata is a %T", m))
	}
	d, err := wire.NewDiffer(sn.node.Config, *c, db.ContentStore(), nil, ofContainerd)
	if err != nil {
		return nil, skip(ic.Context, err)
	}
	ic.Meta.Platforms = append(ic.Meta.Platforms, ourPlatforms()...)
	return d, nil
}

// ofContainerd hands layers that the differ cannot apply to the stream processors
// of containerd's own configuration.
func ofContainerd(_ context.Context, mediaType string) (diff.StreamProcessorInit, bool) {
	if differ.Applies(mediaType) {
		return nil, false
	}
	return func(ctx context.Context, stream diff.StreamProcessor, payloads map[string]typeurl.Any) (diff.StreamProcessor, error) {
		next, err := diff.GetProcessor(ctx, stream, payloads)
		if errors.Is(err, diff.ErrNoProcessor) {
			return nil, noProcessor(mediaType)
		}
		if err != nil {
			return nil, err
		}
		// containerd's last handler takes any tar, also an encrypted one, and thinks
		// that it is compressed. It runs no program, which has an end.
		if _, program := next.(interface{ Wait(context.Context) error }); !program && strings.HasSuffix(mediaType, "+encrypted") {
			return nil, errors.Join(noProcessor(mediaType), next.Close())
		}
		return next, nil
	}, true
}

// noProcessor says what to do about a layer that nobody here can unpack.
func noProcessor(mediaType string) error {
	return fmt.Errorf("media type %q is not that of a tar or EROFS layer: name a program that makes one of it in [stream_processors] of containerd's configuration: %w",
		mediaType, errdefs.ErrNotImplemented)
}
