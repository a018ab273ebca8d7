package main

import (
	"context"
	"encoding/json"
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
	)
	cmd := &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "show how an image's layers are cut and what a kernel needs for them",
		Long: `Show for each layer of an image whether it loads lazily, its chunks, how much of
it is metadata, and the first Linux release that mounts it. Only indexes and
metadata are fetched, and both are checked as for a mount.`,
		Example: `  lazyerofs inspect registry.example.com/app:lazy
  lazyerofs inspect --json localhost:5000/python:lazy | jq .metaSize`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inspectImage(cmd.Context(), &pull, args[0], asJSON, cmd.OutOrStdout())
		},
	}
	pull.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func inspectImage(ctx context.Context, pull *registryFlags, ref string, asJSON bool, out io.Writer) (err error) {
	hosts, platform, err := pull.open()
	if err != nil {
		return err
	}
	defer hosts.Close()
	img, err := image.Resolve(ctx, ref, dockerHosts(hosts), platform)
	if err != nil {
		return err
	}
	spec, err := reference.Parse(img.Ref)
	if err != nil {
		return fmt.Errorf("image reference %q is not valid: %w", img.Ref, err)
	}
	resolver := remote.NewResolver(remote.Config{})
	defer closeInto(&err, resolver)
	open := func(ctx context.Context, desc ocispec.Descriptor) (remote.Blob, error) {
		src := source.Source{Hosts: hosts.RegistryHosts, Name: spec, Target: desc, Manifest: img.Manifest}
		return remote.Open(ctx, resolver, []source.Source{src}, desc, remote.Options{})
	}
	report, err := inspect.Run(ctx, img, open, all.All())
	if err != nil {
		return err
	}
	if !asJSON {
		return report.Print(out)
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	if err := enc.Encode(report); err != nil {
		return fmt.Errorf("printing JSON: %w", err)
	}
	return nil
}
