package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/differ"
)

// Forms in which a conversion gets a layer.
const (
	inputTar  = "tar"
	inputGzip = "gzip" // as registries have it
)

type convertOptions struct {
	images, inputs []string
	rounds         int
	level          int
	size           int64
	keep           string
	dir, out       string
}

func parseConvert(args []string) (convertOptions, error) {
	var o convertOptions
	var images, inputs, size string
	f := flags("convert")
	f.StringVar(&images, "images", "python,go,node", "of python, go, node")
	f.StringVar(&inputs, "inputs", "tar,gzip", "of tar, gzip: how the layers are compressed beforehand")
	f.IntVar(&o.rounds, "rounds", 5, "conversions of each layer by each system")
	f.IntVar(&o.level, "level", differ.DefaultLevel, "zstd level")
	f.StringVar(&size, "size", "", "convert one generated layer of this size instead, such as 10G, by the command line and by Apply, and look at the memory")
	f.StringVar(&o.keep, "profile", "", "directory for CPU profiles of our conversions; empty keeps none")
	f.StringVar(&o.dir, "dir", scratchDir, "directory for scratch files")
	f.StringVar(&o.out, "out", resultsDir, "directory for the JSON result")
	if err := onlyFlags(f, args); err != nil {
		return o, err
	}
	if o.rounds < 1 {
		return o, fmt.Errorf("%d rounds give no median", o.rounds)
	}
	if err := (differ.Config{Level: o.level}).Check(); err != nil {
		return o, err
	}
	o.images, o.inputs = strings.Split(images, ","), strings.Split(inputs, ",")
	if err := checkImages(o.images); err != nil {
		return o, err
	}
	for _, i := range o.inputs {
		if i != inputTar && i != inputGzip {
			return o, fmt.Errorf("no input named %q; there are tar and gzip", i)
		}
	}
	var err error
	o.size, err = parseSize(size)
	return o, err
}

// parseSize reads a number of bytes with one of the suffixes K, M and G, which
// are powers of 1024. Empty is 0.
func parseSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	var n int64
	var unit string
	if _, err := fmt.Sscanf(s+" ", "%d%s", &n, &unit); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, fmt.Errorf("%q is not a size such as 64M or 10G", s)
	}
	shift, ok := map[string]int{"": 0, "K": 10, "M": 20, "G": 30}[unit]
	if !ok || n < 1 || n > 1<<60>>shift {
		return 0, fmt.Errorf("%q is not a size such as 64M or 10G", s)
	}
	return n << shift, nil
}

func runConvert(ctx context.Context, args []string, out io.Writer) (err error) {
	o, err := parseConvert(args)
	if err != nil {
		return err
	}
	m, err := newMachine()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.dir, "lazyerofs-bench-")
	if err != nil {
		return fmt.Errorf("making a directory for the bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if o.size > 0 {
		return runBig(ctx, &bigReport{machine: m, Size: o.size}, dir, o, out)
	}
	report := &convertReport{machine: m, Level: o.level}
	floor, _, err := command(ctx, nil, "true")
	if err != nil {
		return err
	}
	report.Floor = floor.Peak
	for _, image := range o.images {
		layers, err := tarsOf(ctx, image, dir, out)
		if err != nil {
			return err
		}
		for _, input := range o.inputs {
			if err := convertImage(ctx, report, image, input, layers, dir, o, out); err != nil {
				return err
			}
		}
		for _, l := range layers {
			if err := os.Remove(l.tar); err != nil {
				return fmt.Errorf("removing a tar: %w", err)
			}
		}
	}
	if err := report.noteLoad(); err != nil {
		return err
	}
	fmt.Fprint(out, report.table())
	return store(o.out, report.Date, "convert", report)
}

// layerFiles are the two forms of one layer.
type layerFiles struct{ tar, gzip string }

func (l layerFiles) in(form string) string {
	if form == inputGzip {
		return l.gzip
	}
	return l.tar
}

// tarsOf builds an image and decompresses its layers into dir.
func tarsOf(ctx context.Context, name, dir string, out io.Writer) ([]layerFiles, error) {
	recipe, err := recipes[name](ctx)
	if err != nil {
		return nil, err
	}
	image, err := recipe.Build(ctx, func(layer string) { fmt.Fprintln(out, "building the layer:", layer) })
	if err != nil {
		return nil, err
	}
	var all []layerFiles
	for _, l := range image.Layers {
		f := layerFiles{
			gzip: filepath.Join(image.Dir, ocispec.ImageBlobsDir, l.Digest.Algorithm().String(), l.Digest.Encoded()),
			tar:  filepath.Join(dir, l.Digest.Encoded()+".tar"),
		}
		if err := gunzip(f.gzip, f.tar); err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

func gunzip(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("decompressing a layer: %w", err)
	}
	defer in.Close()
	zr, err := gzip.NewReader(in)
	if err != nil {
		return fmt.Errorf("decompressing %s: %w", from, err)
	}
	out, err := os.Create(to)
	if err != nil {
		return fmt.Errorf("decompressing a layer: %w", err)
	}
	_, err = io.Copy(out, zr)
	if err = errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("decompressing %s: %w", from, err)
	}
	return nil
}

// convertImage lets every system convert every layer of an image, in turn, and
// looks once more at where ours spends its time.
func convertImage(ctx context.Context, report *convertReport, image, input string, layers []layerFiles, dir string, o convertOptions, out io.Writer) error {
	for round := range o.rounds {
		for _, s := range converters {
			if s.once && round > 0 {
				continue
			}
			var done []outcome
			for _, l := range layers {
				// What the one before has written is not to be in the time of this one.
				unix.Sync()
				got, err := s.convert(ctx, conversion{in: l.in(input), input: input, dir: dir, level: o.level})
				if err != nil {
					return fmt.Errorf("%s, %s: %w", image, s.name, err)
				}
				done = addOutcomes(done, got)
			}
			for _, d := range done {
				fmt.Fprintf(out, "%s from %s, %d/%d %-20s %6.2f s, %6.2f s of CPU, %4d MiB, %.1f MB\n", image, input, round+1, o.rounds,
					d.name, d.Wall.Seconds(), d.CPU.Seconds(), d.Peak>>10, float64(d.size)/1e6)
				report.add(image, input, d)
			}
		}
	}
	where, err := profileOf(ctx, image, input, layers, dir, o)
	if err != nil {
		return err
	}
	report.Where = append(report.Where, where)
	return nil
}
