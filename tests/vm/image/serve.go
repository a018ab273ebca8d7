package image

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// Serve starts a registry with its data below dir that holds the image converted,
// as img:lazy. The caller closes it, after an error too if it is not nil.
func (i *Image) Serve(ctx context.Context, dir string) (*testenv.Registry, error) {
	reg, err := testenv.StartRegistry(filepath.Join(dir, "registry"))
	if err != nil {
		return nil, err
	}
	tars := reg.Addr() + "/img:tar"
	if err := i.Push(ctx, tars); err != nil {
		return reg, err
	}
	return reg, convert(ctx, dir, tars, reg.Addr()+"/img:lazy")
}

func convert(ctx context.Context, dir, from, to string) (err error) {
	hosts := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))
	src, err := converter.ParseSource(from, hosts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst, err := converter.ParseTarget(to, hosts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	_, err = converter.Image(ctx, src, dst, converter.Options{WorkDir: dir})
	return err
}
