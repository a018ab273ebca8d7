package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/docker/go-units"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
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
	dmVerity     bool
	chunkSize    string
	level        int
	prefetch     string
	jobs         int
	workDir      string
	output       string
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
writes it). Layers that are native already are carried over as they are, or made
anew if they have no chunk index.

The platform is this machine's unless --platform or --all-platforms says
otherwise. One platform gives a plain manifest, several an index. With
--output index the tar images stay in that index as they were, and the EROFS
images stand behind them with the os.feature "erofs": clients that do not know
it take the tar.

The same image and options give the same bytes, from any lazyerofs whose --version
is the same: it names what makes zstd frames, which is libzstd unless the build had
no C compiler.

BuildKit's attestations go along if the result is an index. Signatures and SBOMs
that refer to the source are listed, not copied: they are about other bytes.

A conversion that was interrupted is gone on with by the same command: finished
layers wait in --work-dir. Nothing has a name at the target before all of it is there.`,
		Example: `  lazyerofs convert python:3.13 localhost:5000/python:lazy
  lazyerofs convert --output index --platform linux/amd64,linux/arm64 python:3.13 registry.example.com/python:3.13
  lazyerofs convert --all-platforms --prefetch-list hot.txt registry.example.com/app:1 registry.example.com/app:1-lazy
  docker save app:1 -o app.tar && lazyerofs convert docker-archive:app.tar oci:layout:lazy`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return convertImage(cmd.Context(), &o, args[0], args[1], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	addHosts(cmd, &o.hosts)
	f.StringSliceVar(&o.platforms, "platform", nil, "convert this `os/arch[/variant]`; may be repeated or a list with commas")
	f.StringVar(&o.output, "output", "plain", "`shape` of the result: plain (EROFS only) or index (tar and EROFS side by side)")
	f.BoolVar(&o.allPlatforms, "all-platforms", false, "convert every Linux platform of the image")
	f.BoolVar(&o.raw, "raw", false, "store layers uncompressed: larger, but a file system can share them as they are")
	f.BoolVar(&o.dmVerity, "dm-verity", false, "append a dm-verity hash tree to every layer and name its root in the manifest")
	f.StringVar(&o.chunkSize, "chunk-size", "256KiB", "longest unit of fetch and verification, in `bytes` of file data: a multiple of 4KiB")
	f.IntVar(&o.level, "level", differ.DefaultLevel, "zstd compression `level`, 1 to 22")
	f.StringVar(&o.prefetch, "prefetch-list", "", "`file` with one path per line that start-up reads first, in that order")
	f.IntVar(&o.jobs, "jobs", 0, "convert this `many` layers at once (default 2; each uses all cores)")
	f.StringVar(&o.workDir, "work-dir", "", "`directory` for temporary data and finished layers (default $XDG_CACHE_HOME/lazyerofs/convert)")
	f.BoolVar(&o.asJSON, "json", false, "print the result as JSON")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress")
	cmd.MarkFlagsMutuallyExclusive("platform", "all-platforms")
	completeWith(cmd, "output", "plain\tEROFS only", "index\ttar and EROFS side by side")
	return cmd
}

func convertImage(ctx context.Context, o *convertFlags, from, to string, stdout, stderr io.Writer) error {
	opts, err := o.options()
	if err != nil {
		return err
	}
	if opts.WorkDir, opts.KeepDir, err = workDirs(o.workDir); err != nil {
		return err
	}
	t := transfer{doing: "converting", hosts: o.hosts, workDir: opts.WorkDir, quiet: o.quiet, asJSON: o.asJSON, stdout: stdout, stderr: stderr}
	return t.run(from, to, func(src *openedSource, dst converter.Target, progress func(converter.Event)) (converter.Result, error) {
		opts.Progress = progress
		return converter.Image(ctx, src.Source, dst, opts)
	})
}

// transfer is what convert and export have in common: an image that goes from one
// location to another.
type transfer struct {
	doing          string // for errors
	hosts          remote.HostsConfig
	workDir        string
	quiet, asJSON  bool
	stdout, stderr io.Writer
}

// run opens both locations, lets do its work and tells what came out. progress is nil
// when nobody wants to see it.
func (t *transfer) run(from, to string, do func(src *openedSource, dst converter.Target, progress func(converter.Event)) (converter.Result, error)) (err error) {
	src, err := openSource(from, t.hosts, t.workDir)
	if err != nil {
		return err
	}
	defer closeInto(&err, src)
	dst, err := converter.ParseTarget(to, dockerHosts(src.hosts))
	if err != nil {
		return err
	}
	defer closeInto(&err, dst)
	var show func(converter.Event)
	end := func() {}
	if !t.quiet {
		shown := progress.New(t.stderr)
		show, end = shown.Show, shown.Close
	}
	res, err := do(src, dst, show)
	end()
	for _, w := range warnings(from, res) {
		fmt.Fprintln(t.stderr, "lazyerofs: warning:", w)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", t.doing, from, err)
	}
	if t.asJSON {
		return printJSON(t.stdout, res)
	}
	printConversion(t.stdout, res)
	return nil
}

// printJSON writes a report for programs.
func printJSON(w io.Writer, report any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(report); err != nil {
		return fmt.Errorf("printing JSON: %w", err)
	}
	return nil
}

// options checks the flags that the converter does not check itself.
func (o *convertFlags) options() (converter.Options, error) {
	opts := converter.Options{AllPlatforms: o.allPlatforms, Parallel: o.jobs}
	size, err := units.RAMInBytes(o.chunkSize)
	if err != nil {
		return opts, badUsage("--chunk-size %q is not a size; write it like 256KiB", o.chunkSize)
	}
	if size <= 0 || o.level < 1 { // 0 means the default to the differ
		return opts, badUsage("--chunk-size %s and --level %d: both must be greater than zero", o.chunkSize, o.level)
	}
	if o.jobs < 0 {
		return opts, badUsage("--jobs %d: it must not be negative", o.jobs)
	}
	opts.Layer = differ.Config{ChunkSize: size, Level: o.level, Verity: o.dmVerity}
	if err := opts.Layer.Check(); err != nil {
		return opts, badUsage("--chunk-size %s, --level %d: %w", o.chunkSize, o.level, err)
	}
	switch o.output {
	case converter.Plain.String():
	case converter.Index.String():
		opts.Output = converter.Index
	default:
		return opts, badUsage("--output %q is none of plain and index", o.output)
	}
	if o.raw {
		opts.Layer.Form = differ.Raw
	}
	if opts.Platforms, err = parsePlatforms(o.platforms); err != nil {
		return opts, err
	}
	if o.prefetch != "" {
		if opts.Layer.First, err = readPaths(o.prefetch); err != nil {
			return opts, fmt.Errorf("reading --prefetch-list: %w", err)
		}
	}
	return opts, nil
}

// parsePlatforms reads what --platform was given.
func parsePlatforms(list []string) ([]ocispec.Platform, error) {
	var out []ocispec.Platform
	for _, s := range list {
		p, err := platforms.Parse(s)
		if err != nil {
			return nil, badUsage("--platform %q is not valid; write it like linux/arm64: %w", s, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// workDirs returns the directory for temporary data and the one for finished
// layers. Without a home directory that can be written to, as in some CI jobs,
// there is nothing that only the user can change: temporary data goes where the
// system puts it, and nothing is kept.
func workDirs(flag string) (work, keep string, err error) {
	dir := flag
	if flag == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", "", nil //nolint:nilerr // see above
		}
		dir = filepath.Join(cache, "lazyerofs", "convert")
	}
	err = os.MkdirAll(dir, 0o700)
	if err == nil {
		return dir, filepath.Join(dir, "layers"), nil
	}
	if flag == "" {
		return "", "", nil
	}
	return "", "", fmt.Errorf("making the work directory: %w", err)
}

// warnings are the sentences about what the new image does not have.
func warnings(from string, res converter.Result) []string {
	out := slices.Clone(res.Warnings)
	for _, r := range res.Referrers {
		tag := ""
		if r.Tag != "" {
			tag = " (tag " + r.Tag + ")"
		}
		out = append(out, fmt.Sprintf("%s %s%s of %s is not carried over: it is about %s, sign or describe the new image anew",
			r.What(), r.Digest, tag, from, r.Subject))
	}
	return out
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
	for _, a := range res.Attestations {
		if a.Digest != "" {
			fmt.Fprintf(w, "attestation %s -> %s, for %s; its statements are about %s\n", a.Source, a.Digest, a.Image, a.SourceImage)
		}
	}
	for _, s := range res.Skipped {
		fmt.Fprintf(w, "left out: %s is no Linux image\n", s)
	}
	fmt.Fprintf(w, "%s@%s\n", res.Target, res.Digest)
}
