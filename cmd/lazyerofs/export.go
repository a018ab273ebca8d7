package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/imagedata"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/format/all"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// exportFlags are the options of export.
type exportFlags struct {
	hosts        remote.HostsConfig
	platforms    []string
	allPlatforms bool
	compression  string
	jobs         int
	workDir      string
	asJSON       bool
	quiet        bool
}

func newExportCmd() *cobra.Command {
	var o exportFlags
	cmd := &cobra.Command{
		Use:   "export IMAGE DST",
		Short: "turn an image with EROFS layers back into plain tar layers",
		Long: `Write IMAGE to DST with its native EROFS layers as OCI tar layers of the same
content: paths, types, modes, owners, times, links, extended attributes, bytes,
and deletions as the OCI layer spec writes them. Layers that are tars already
are carried over as they are. IMAGE and DST are written as for convert.

Of a layer only what its files need is read, and each chunk is checked. The same
image and options give the same digests, but not those that the tars had before
the image was converted: their order and compression are not known any more.`,
		Example: `  lazyerofs export registry.example.com/app:lazy registry.example.com/app:plain
  lazyerofs export --compression zstd --all-platforms localhost:5000/app:lazy oci:layout:plain
  lazyerofs export localhost:5000/app:lazy oci-archive:app.tar && docker load -i app.tar`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return exportImage(cmd.Context(), &o, args[0], args[1], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	addHosts(cmd, &o.hosts)
	f.StringSliceVar(&o.platforms, "platform", nil, "export this `os/arch[/variant]`; may be repeated or a list with commas")
	f.BoolVar(&o.allPlatforms, "all-platforms", false, "export every Linux platform of the image")
	f.StringVar(&o.compression, "compression", "gzip", "`kind` of the tar layers: gzip, zstd or none")
	f.IntVar(&o.jobs, "jobs", 0, "export this `many` layers at once (default 2)")
	f.StringVar(&o.workDir, "work-dir", "", "`directory` for temporary data (default $XDG_CACHE_HOME/lazyerofs/convert)")
	f.BoolVar(&o.asJSON, "json", false, "print the result as JSON")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress")
	cmd.MarkFlagsMutuallyExclusive("platform", "all-platforms")
	completeWith(cmd, "compression", "gzip", "zstd", "none")
	return cmd
}

// options checks the flags.
func (o *exportFlags) options() (converter.ExportOptions, error) {
	opts := converter.ExportOptions{AllPlatforms: o.allPlatforms, Parallel: o.jobs}
	known := []converter.Compression{converter.Gzip, converter.ZstdTar, converter.Uncompressed}
	found := false
	for _, c := range known {
		if c.String() == o.compression {
			opts.Compression, found = c, true
		}
	}
	if !found {
		return opts, badUsage("--compression %q is none of %v", o.compression, known)
	}
	if o.jobs < 0 {
		return opts, badUsage("--jobs %d: it must not be negative", o.jobs)
	}
	var err error
	if opts.Platforms, err = parsePlatforms(o.platforms); err != nil {
		return opts, err
	}
	opts.WorkDir, _, err = workDirs(o.workDir)
	return opts, err
}

func exportImage(ctx context.Context, o *exportFlags, from, to string, stdout, stderr io.Writer) error {
	opts, err := o.options()
	if err != nil {
		return err
	}
	t := transfer{doing: "exporting", hosts: o.hosts, workDir: opts.WorkDir, quiet: o.quiet, asJSON: o.asJSON, stdout: stdout, stderr: stderr}
	return t.run(from, to, func(src *openedSource, dst converter.Target, progress func(converter.Event)) (converter.Result, error) {
		opts.Open, opts.Progress = src.layers.Open, progress
		return converter.Export(ctx, src.Source, dst, opts)
	})
}

// openedSource is an image with what it takes to read its layers.
type openedSource struct {
	converter.Source
	hosts    *remote.HostSet
	resolver *remote.Resolver
	layers   *imagedata.Layers
}

// openSource opens the image that from names, in the notation of convert.
func openSource(from string, cfg remote.HostsConfig, workDir string) (*openedSource, error) {
	hosts := remote.NewHosts(cfg)
	src, err := converter.ParseSource(from, dockerHosts(hosts))
	if err != nil {
		hosts.Close()
		return nil, err
	}
	resolver := remote.NewResolver(remote.Config{})
	return &openedSource{
		Source: src, hosts: hosts, resolver: resolver,
		layers: &imagedata.Layers{
			Source: src, Hosts: hosts.RegistryHosts, Resolver: resolver, Formats: imagedata.Formats(all.All()), WorkDir: workDir,
		},
	}, nil
}

// Close ends the connections and removes what the source unpacked.
func (s *openedSource) Close() error {
	err := s.Source.Close()
	if rerr := s.resolver.Close(); err == nil {
		err = rerr
	}
	s.hosts.Close()
	return err
}
