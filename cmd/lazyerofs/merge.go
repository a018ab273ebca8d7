package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/merge"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// mergeFlags are the options of merge.
type mergeFlags struct {
	hosts    remote.HostsConfig
	platform string
	output   string
	data     string
	workDir  string
	asJSON   bool
}

func newMergeCmd() *cobra.Command {
	var o mergeFlags
	cmd := &cobra.Command{
		Use:   "merge IMAGE -o FILE",
		Short: "make one EROFS image of metadata for all layers of an image",
		Long: `Write to FILE the metadata of the file system that overlayfs would show of
IMAGE's native EROFS layers: whiteouts are applied, hard links kept. File data
stays where it is: FILE is mounted with the layers' image data as devices, in
the order that is printed. Only metadata is fetched, and each layer is checked as
for a mount. IMAGE is written as for convert. The same image gives the same bytes.
A regular file FILE is replaced, through symbolic links; anything else is refused.

The image data of a raw layer is its blob; that of a +zstd layer is what zstd -d
makes of the blob. --data fetches both and checks every chunk. A mount(8) that
makes a loop device of FILE by itself (that of util-linux 2.38 does) wants loop
devices for the others too: losetup --read-only --find --show DEVICE1.`,
		Example: `  lazyerofs merge registry.example.com/app:lazy -o app.erofs
  lazyerofs merge --json --data layers oci:layout:lazy -o app.erofs | jq -r '.devices[].file'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return mergeImage(cmd.Context(), &o, args[0], cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	addHosts(cmd, &o.hosts)
	f.StringVarP(&o.output, "output", "o", "", "`file` to write")
	f.StringVar(&o.data, "data", "", "also write the layers' image data into this `directory`")
	platformFlag(cmd, &o.platform)
	f.StringVar(&o.workDir, "work-dir", "", "`directory` for temporary data (default $XDG_CACHE_HOME/lazyerofs/convert)")
	f.BoolVar(&o.asJSON, "json", false, "print the result as JSON")
	return cmd
}

func mergeImage(ctx context.Context, o *mergeFlags, from string, stdout io.Writer) (err error) {
	if o.output == "" {
		return badUsage("--output FILE is missing")
	}
	c := merge.Config{Output: o.output, DataDir: o.data}
	if c.Platform, err = onePlatform(o.platform); err != nil {
		return err
	}
	work, _, err := workDirs(o.workDir)
	if err != nil {
		return err
	}
	src, err := openSource(from, o.hosts, work)
	if err != nil {
		return err
	}
	defer closeInto(&err, src)
	c.Layers = src.layers
	report, err := merge.Run(ctx, c)
	var place *converter.PlaceError
	if errors.As(err, &place) {
		return usageError{place}
	}
	if err != nil {
		return fmt.Errorf("merging %s: %w", from, converter.NoSpace(err, work))
	}
	if o.asJSON {
		return printJSON(stdout, report)
	}
	return report.Print(stdout)
}
