package main

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sys/unix"

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
	client := rootless.Client{Address: inst.Address}
	want := rootless.Mount{Target: target, Image: img.Ref, Layers: mounts.Labels(img)}
	err = ask(ctx, inst, func() error { return client.Mount(ctx, want) })
	var f *rootless.Failure
	if errors.As(err, &f) && f.Reason == fs.ReasonFormat && f.Layer < len(img.Manifest.Layers) {
		err = &mounts.NotLazyError{Image: img.Ref, Layer: img.Manifest.Layers[f.Layer].Digest.String(), Err: err}
	}
	if err != nil {
		return errors.Join(err, endIfIdle(context.WithoutCancel(ctx), inst, client))
	}
	return nil
}

// ask starts the daemon and asks it. One that was just told to end, by whoever took
// the last mount away, is waited for, and its successor asked.
func ask(ctx context.Context, inst standalone.Instance, question func() error) error {
	if err := inst.Start(ctx); err != nil {
		return err
	}
	err := question()
	for _, ending := range []error{io.EOF, unix.ECONNRESET, unix.EPIPE, unix.ECONNREFUSED} {
		if errors.Is(err, ending) {
			if err := errors.Join(inst.AwaitEnd(ctx), inst.Start(ctx)); err != nil {
				return err
			}
			return question()
		}
	}
	return err
}

// umountRootless unmounts what mountRootless has mounted. A daemon that died with
// its supervisor left the mount: one is started to take it away in order.
func umountRootless(ctx context.Context, inst standalone.Instance, dir string) error {
	client := rootless.Client{Address: inst.Address}
	err := ask(ctx, inst, func() error {
		// Not before: a dead mount has no path.
		target, err := mounts.Resolve(dir)
		if err != nil {
			return err
		}
		return client.Unmount(ctx, target)
	})
	return errors.Join(err, endIfIdle(context.WithoutCancel(ctx), inst, client))
}

// endIfIdle is stopIfIdle for the daemon of an ordinary user. It waits for the end,
// so that the next command meets no daemon that is about to go.
func endIfIdle(ctx context.Context, inst standalone.Instance, client rootless.Client) error {
	left, err := client.List(ctx)
	if err != nil || len(left) > 0 {
		return err
	}
	if err := inst.Stop(); err != nil {
		return err
	}
	return inst.AwaitEnd(ctx)
}
