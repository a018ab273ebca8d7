package main

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/imagedata"
	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/inspect"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/format/all"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// inspectFlags are the options of inspect.
type inspectFlags struct {
	hosts    remote.HostsConfig
	platform string
	diff     bool
	asJSON   bool
}

func newInspectCmd() *cobra.Command {
	var o inspectFlags
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
			if o.diff {
				return cobra.ExactArgs(2)(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.diff {
				return diffImages(cmd.Context(), &o, args[0], args[1], cmd.OutOrStdout())
			}
			return inspectImage(cmd.Context(), &o, args[0], cmd.OutOrStdout())
		},
	}
	addHosts(cmd, &o.hosts)
	platformFlag(cmd, &o.platform)
	cmd.Flags().BoolVar(&o.asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&o.diff, "diff", false, "compare the chunks of two images")
	return cmd
}

func inspectImage(ctx context.Context, o *inspectFlags, ref string, out io.Writer) (err error) {
	img, src, err := openSubject(ctx, o, ref)
	if err != nil {
		return err
	}
	defer closeInto(&err, src)
	report, err := inspect.Run(ctx, img, imagedata.Formats(all.All()))
	if err != nil {
		return err
	}
	if o.asJSON {
		return printJSON(out, report)
	}
	return report.Print(out)
}

func diffImages(ctx context.Context, o *inspectFlags, refA, refB string, out io.Writer) (err error) {
	a, srcA, err := openSubject(ctx, o, refA)
	if err != nil {
		return err
	}
	defer closeInto(&err, srcA)
	b, srcB, err := openSubject(ctx, o, refB)
	if err != nil {
		return err
	}
	defer closeInto(&err, srcB)
	diff, err := inspect.Compare(ctx, a, b, imagedata.Formats(all.All()))
	if err != nil {
		return err
	}
	if o.asJSON {
		return printJSON(out, diff)
	}
	return diff.Print(out)
}

// openSubject finds an image. Its blobs can be opened until src is closed. It needs no
// work directory: only indexes and metadata are read.
func openSubject(ctx context.Context, o *inspectFlags, ref string) (img *inspect.Subject, src *openedSource, err error) {
	platform, err := onePlatform(o.platform)
	if err != nil {
		return nil, nil, err
	}
	if src, err = openSource(ref, o.hosts, ""); err != nil {
		return nil, nil, err
	}
	picked, err := converter.Pick(ctx, src.Source, platform)
	if err != nil {
		return nil, nil, errors.Join(err, src.Close())
	}
	return &inspect.Subject{Ref: src.String(), Picked: *picked, Open: src.layers.Blob}, src, nil
}
