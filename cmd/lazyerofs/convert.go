package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/platforms"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/progress"
	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// convertFlags are the options of convert.
type convertFlags struct {
	hosts        remote.HostsConfig
	platforms    []string
	allPlatforms bool
	raw          bool
	chunkSize    string
	level        int
	prefetch     string
	jobs         int
	workDir      string
	asJSON       bool
	quiet        bool
}

func newConvertCmd() *cobra.Command {
	var o convertFlags
	cmd := &cobra.Command{
		Use:   "convert SRC DST",
		Short: "make an image lazily mountable",
		Long: `Convert an image to native EROFS layers that can be mounted before they are
downloaded. SRC and DST are references to a registry (python:3.13,
localhost:5000/app:lazy), OCI layouts (oci:DIR[:TAG]) or archives
(oci-archive:FILE[:TAG]; as SRC also docker-archive:FILE[:REF], as docker save
writes it). Layers that are native already are carried over as they are.

The platform is this machine's unless --platform or --all-platforms says
otherwise. One platform gives a plain manifest, several an index.`,
		Example: `  lazyerofs convert python:3.13 localhost:5000/python:lazy
  lazyerofs convert --all-platforms --prefetch-list hot.txt registry.example.com/app:1 registry.example.com/app:1-lazy
  docker save app:1 -o app.tar && lazyerofs convert docker-archive:app.tar oci:layout:lazy`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return convertImage(cmd.Context(), &o, args[0], args[1], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.hosts.CertsDir, "hosts-dir", remote.DefaultCertsDir, "`directory` with HOST/hosts.toml, as containerd reads it")
	f.BoolVar(&o.hosts.PlainHTTP, "plain-http", false, "speak http to registries that hosts.toml says nothing about")
	f.StringSliceVar(&o.platforms, "platform", nil, "convert this `os/arch[/variant]`; may be repeated")
	f.BoolVar(&o.allPlatforms, "all-platforms", false, "convert every Linux platform of the image")
	f.BoolVar(&o.raw, "raw", false, "store layers uncompressed: larger, but a file system can share them as they are")
	f.StringVar(&o.chunkSize, "chunk-size", "256KiB", "longest unit of fetch and verification, in `bytes` of file data: a multiple of 4KiB")
	f.IntVar(&o.level, "level", differ.DefaultLevel, "zstd compression `level`, 1 to 22")
	f.StringVar(&o.prefetch, "prefetch-list", "", "`file` with one path per line that start-up reads first, in that order")
	f.IntVar(&o.jobs, "jobs", 0, "convert this `many` layers at once (default 2; each uses all cores)")
	f.StringVar(&o.workDir, "work-dir", "", "`directory` for temporary data (default $TMPDIR)")
	f.BoolVar(&o.asJSON, "json", false, "print the result as JSON")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress")
	cmd.MarkFlagsMutuallyExclusive("platform", "all-platforms")
	return cmd
}

func convertImage(ctx context.Context, o *convertFlags, from, to string, stdout, stderr io.Writer) (err error) {
	opts, err := o.options()
	if err != nil {
		return err
	}
	hosts := remote.NewHosts(o.hosts)
	defer hosts.Close()
	src, err := converter.ParseSource(from, dockerHosts(hosts))
	if err != nil {
		return err
	}
	defer closeInto(&err, src)
	dst, err := converter.ParseTarget(to, dockerHosts(hosts))
	if err != nil {
		return err
	}
	defer closeInto(&err, dst)
	var shown progress.Display
	if !o.quiet {
		shown = progress.New(stderr)
		opts.Progress = shown.Show
	}
	res, err := converter.Image(ctx, src, dst, opts)
	if shown != nil {
		shown.Close()
	}
	if err != nil {
		return fmt.Errorf("converting %s: %w", from, err)
	}
	if o.asJSON {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(res)
	}
	printConversion(stdout, res)
	return nil
}

// options checks the flags that the converter does not check itself.
func (o *convertFlags) options() (converter.Options, error) {
	opts := converter.Options{AllPlatforms: o.allPlatforms, Parallel: o.jobs, WorkDir: o.workDir}
	size, err := units.RAMInBytes(o.chunkSize)
	if err != nil {
		return opts, fmt.Errorf("--chunk-size %q is not a size; write it like 256KiB", o.chunkSize)
	}
	opts.Layer = differ.Config{ChunkSize: size, Level: o.level}
	if o.raw {
		opts.Layer.Form = differ.Raw
	}
	for _, s := range o.platforms {
		p, err := platforms.Parse(s)
		if err != nil {
			return opts, fmt.Errorf("--platform %q is not valid; write it like linux/arm64: %w", s, err)
		}
		opts.Platforms = append(opts.Platforms, p)
	}
	if o.prefetch != "" {
		if opts.Layer.First, err = readPaths(o.prefetch); err != nil {
			return opts, fmt.Errorf("reading --prefetch-list: %w", err)
		}
	}
	return opts, nil
}

// readPaths reads one path per line; empty lines and lines that start with
// "#" are left out.
func readPaths(file string) ([]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var paths []string
	for sc := bufio.NewScanner(f); ; {
		if !sc.Scan() {
			if errors.Is(sc.Err(), bufio.ErrTooLong) {
				return nil, fmt.Errorf("%s: line %d is too long for a path", file, len(paths)+1)
			}
			return paths, sc.Err()
		}
		if line := strings.TrimSpace(sc.Text()); line != "" && !strings.HasPrefix(line, "#") {
			paths = append(paths, line)
		}
	}
}

func printConversion(w io.Writer, res converter.Result) {
	for _, img := range res.Images {
		var from, to int64
		for _, l := range img.Layers {
			from, to = from+l.SourceSize, to+l.Size
		}
		fmt.Fprintf(w, "%-16s %d layers, %s -> %s\n", img.Platform, len(img.Layers), units.HumanSize(float64(from)), units.HumanSize(float64(to)))
	}
	for _, s := range res.Skipped {
		fmt.Fprintf(w, "left out: %s is no Linux image\n", s)
	}
	fmt.Fprintf(w, "%s@%s\n", res.Target, res.Digest)
}
