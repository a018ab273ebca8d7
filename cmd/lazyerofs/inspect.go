package main

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/stargz-snapshotter/fs/source"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/image"
	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/inspect"
	"github.com/lazyerofs/lazyerofs/fs/format/all"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

func newInspectCmd() *cobra.Command {
	var (
		pull   registryFlags
		asJSON bool
		diff   bool
	)
	cmd := &cobra.Command{
		Use:   "inspect IMAGE | inspect --diff A B",
		Short: "show how an image's layers are cut and what a kernel needs for them",
		Long: `Show for each layer of an image whether it loads lazily, its chunks, how much of
it is metadata, and the first Linux release that mounts it. Only indexes and
metadata are fetched, and both are checked as for a mount.

With --diff show what two images share: which chunks have the same digest, and so
what a node that has A must still fetch and keep for all of B. Only indexes are fetched.`,
		Example: `  lazyerofs inspect registry.example.com/app:lazy
  lazyerofs inspect --json localhost:5000/python:lazy | jq .metaSize
  lazyerofs inspect --diff registry.example.com/app:1-lazy registry.example.com/app:2-lazy`,
		Args: func(cmd *cobra.Command, args []string) error {
			if diff {
				return cobra.ExactArgs(2)(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if diff {
				return diffImages(cmd.Context(), &pull, args[0], args[1], asJSON, cmd.OutOrStdout())
			}
			return inspectImage(cmd.Context(), &pull, args[0], asJSON, cmd.OutOrStdout())
		},
	}
	pull.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&diff, "diff", false, "compare the chunks of two images")
	return cmd
}

func inspectImage(ctx context.Context, pull *registryFlags, ref string, asJSON bool, out io.Writer) (err error) {
	v, err := newViewer(pull)
	if err != nil {
		return err
	}
	defer closeInto(&err, v)
	img, open, err := v.image(ctx, ref)
	if err != nil {
		return err
	}
	report, err := inspect.Run(ctx, img, open, all.All())
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(out, report)
	}
	return report.Print(out)
}

func diffImages(ctx context.Context, pull *registryFlags, refA, refB string, asJSON bool, out io.Writer) (err error) {
	v, err := newViewer(pull)
	if err != nil {
		return err
	}
	defer closeInto(&err, v)
	a, openA, err := v.image(ctx, refA)
	if err != nil {
		return err
	}
	b, openB, err := v.image(ctx, refB)
	if err != nil {
		return err
	}
	diff, err := inspect.Compare(ctx, a, b, openA, openB, all.All())
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(out, diff)
	}
	return diff.Print(out)
}

// viewer looks at images in registries.
type viewer struct {
	hosts    *remote.HostSet
	platform ocispec.Platform
	resolver *remote.Resolver
}

func newViewer(pull *registryFlags) (*viewer, error) {
	hosts, platform, err := pull.open()
	if err != nil {
		return nil, err
	}
	return &viewer{hosts, platform, remote.NewResolver(remote.Config{})}, nil
}

// Close ends the connections.
func (v *viewer) Close() error {
	v.hosts.Close()
	return v.resolver.Close()
}

// image finds an image and returns what opens its layers.
func (v *viewer) image(ctx context.Context, ref string) (*image.Image, inspect.Opener, error) {
	img, err := image.Resolve(ctx, ref, dockerHosts(v.hosts), v.platform)
	if err != nil {
		return nil, nil, err
	}
	spec, err := reference.Parse(img.Ref)
	if err != nil {
		return nil, nil, fmt.Errorf("image reference %q is not valid: %w", img.Ref, err)
	}
	return img, func(ctx context.Context, desc ocispec.Descriptor) (remote.Blob, error) {
		src := source.Source{Hosts: v.hosts.RegistryHosts, Name: spec, Target: desc, Manifest: img.Manifest}
		return remote.Open(ctx, v.resolver, []source.Source{src}, desc, remote.Options{})
	}, nil
}
