package main

import (
	"context"
	"errors"

	"github.com/lazyerofs/lazyerofs/cmd/internal/rootless"
	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/image"
	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/mounts"
	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/standalone"
	"github.com/lazyerofs/lazyerofs/fs"
)

// mountRootless is mountImage without privileges.
func mountRootless(ctx context.Context, inst standalone.Instance, pull *registryFlags, ref, dir string, writable bool) error {
	if writable {
		return errors.New("--writable needs an overlay, which an ordinary user cannot mount over FUSE: run it as root, or leave it out")
	}
	target, err := mounts.Point(dir)
	if err != nil {
		return err
	}
	hosts, platform, err := pull.open()
	if err != nil {
		return err
	}
	defer hosts.Close()
	img, err := image.Resolve(ctx, ref, dockerHosts(hosts), platform)
	if err != nil {
		return err
	}
	if err := inst.Start(ctx); err != nil {
		return err
	}
	client := rootless.Client{Address: inst.Address}
	err = client.Mount(ctx, rootless.Mount{Target: target, Image: img.Ref, Layers: mounts.Labels(img)})
	var f *rootless.Failure
	if errors.As(err, &f) && f.Reason == fs.ReasonFormat && f.Layer < len(img.Manifest.Layers) {
		err = &mounts.NotLazyError{Image: img.Ref, Layer: img.Manifest.Layers[f.Layer].Digest.String(), Err: err}
	}
	if err != nil {
		return errors.Join(err, endIfIdle(context.WithoutCancel(ctx), inst, client))
	}
	return nil
}

// umountRootless unmounts what mountRootless has mounted. A daemon that died with
// its supervisor left the mount: one is started to take it away in order.
func umountRootless(ctx context.Context, inst standalone.Instance, dir string) error {
	if err := inst.Start(ctx); err != nil {
		return err
	}
	client := rootless.Client{Address: inst.Address}
	target, err := mounts.Resolve(dir)
	if err == nil {
		err = client.Unmount(ctx, target)
	}
	return errors.Join(err, endIfIdle(context.WithoutCancel(ctx), inst, client))
}

// endIfIdle is stopIfIdle for the daemon of an ordinary user.
func endIfIdle(ctx context.Context, inst standalone.Instance, client rootless.Client) error {
	left, err := client.List(ctx)
	if err != nil || len(left) > 0 {
		return err
	}
	return inst.Stop()
}
