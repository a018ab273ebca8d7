package main

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/inspect"
	"github.com/lazyerofs/lazyerofs/differ/converter"
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
metadata are fetched, and both are checked as for a mount. IMAGE is written as for
convert.

With --diff show what two images share: which chunks have the same digest, and so
what a node that has A must still fetch and keep for all of B. Only indexes are fetched.`,
		Example: `  lazyerofs inspect registry.example.com/app:lazy
  lazyerofs inspect --json localhost:5000/python:lazy | jq .metaSize
  lazyerofs inspect oci:layout:lazy
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
	img, err := openSubject(ctx, pull, ref)
	if err != nil {
		return err
	}
	defer closeInto(&err, img)
	report, err := inspect.Run(ctx, &img.Subject, all.All())
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(out, report)
	}
	return report.Print(out)
}

func diffImages(ctx context.Context, pull *registryFlags, refA, refB string, asJSON bool, out io.Writer) (err error) {
	a, err := openSubject(ctx, pull, refA)
	if err != nil {
		return err
	}
	defer closeInto(&err, a)
	b, err := openSubject(ctx, pull, refB)
	if err != nil {
		return err
	}
	defer closeInto(&err, b)
	diff, err := inspect.Compare(ctx, &a.Subject, &b.Subject, all.All())
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(out, diff)
	}
	return diff.Print(out)
}

// subject is an image to inspect and where it is.
type subject struct {
	inspect.Subject
	*openedSource
}

// openSubject finds an image. Nothing that it holds needs a work directory: only
// indexes and metadata are read.
func openSubject(ctx context.Context, pull *registryFlags, ref string) (_ *subject, err error) {
	platform, err := pull.wanted()
	if err != nil {
		return nil, err
	}
	src, err := openSource(ref, remote.HostsConfig{CertsDir: pull.certsDir}, "")
	if err != nil {
		return nil, err
	}
	img, err := converter.Pick(ctx, src.Source, platform)
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	return &subject{inspect.Subject{Ref: src.String(), Picked: *img, Open: src.layers.Blob}, src}, nil
}
