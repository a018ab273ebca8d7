package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/lazyerofs/lazyerofs/tests/coldstart"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// systems are compared in this order; ratios are against the first.
var systems = []coldstart.System{coldstart.Overlayfs(), coldstart.Lazyerofs()}

// recipes are the images, each with its workload.
var recipes = map[string]func(context.Context) (testenv.Recipe, error){
	"python": testenv.Python,
	"go":     testenv.GoToolchain,
	"node":   testenv.Node,
}

// lines are what lies between the host and the registry.
var lines = map[string]testenv.Profile{
	"lan": {RTT: 10 * time.Millisecond, BytesPerSecond: 100_000_000},
	"wan": {RTT: 50 * time.Millisecond, BytesPerSecond: 12_000_000},
}

type options struct {
	images, lines []string
	rounds        int
	out           string
}

func parse(args []string) (options, error) {
	var o options
	var images, profiles string
	f := flags("starts")
	f.StringVar(&images, "images", "python,go,node", "of python, go, node")
	f.StringVar(&profiles, "lines", "lan,wan", "of lan (10 ms, 100 MB/s), wan (50 ms, 12 MB/s)")
	f.IntVar(&o.rounds, "rounds", 5, "cold starts of each system, image and line")
	f.StringVar(&o.out, "out", resultsDir, "directory for the JSON result")
	if err := onlyFlags(f, args); err != nil {
		return o, err
	}
	o.images, o.lines = strings.Split(images, ","), strings.Split(profiles, ",")
	if err := checkImages(o.images); err != nil {
		return o, err
	}
	for _, l := range o.lines {
		if _, ok := lines[l]; !ok {
			return o, fmt.Errorf("no line named %q; there are lan and wan", l)
		}
	}
	if o.rounds < 1 {
		return o, fmt.Errorf("%d rounds give no median", o.rounds)
	}
	return o, nil
}

func runStarts(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	report, err := newReport()
	if err != nil {
		return err
	}
	for _, image := range o.images {
		for _, line := range o.lines {
			fmt.Fprintf(out, "%s over %s\n", image, lines[line])
			runs, size, err := measure(ctx, image, lines[line], o.rounds, out)
			if err != nil {
				return err
			}
			report.add(image, line, size, runs)
		}
	}
	fmt.Fprint(out, report.table())
	return report.write(o.out)
}

// measure returns the results of every system, by name, and the image's size as
// tar layers.
func measure(ctx context.Context, name string, p testenv.Profile, rounds int, out io.Writer) (_ map[string][]coldstart.Result, size int64, err error) {
	dir, err := os.MkdirTemp(scratchDir, "lazyerofs-bench-")
	if err != nil {
		return nil, 0, fmt.Errorf("making a directory for the bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	bed, err := coldstart.NewBed(dir, p)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	recipe, err := recipes[name](ctx)
	if err != nil {
		return nil, 0, err
	}
	image, err := recipe.Build(ctx, func(layer string) { fmt.Fprintln(out, "building the layer:", layer) })
	if err != nil {
		return nil, 0, err
	}
	if err := publish(ctx, bed, image); err != nil {
		return nil, 0, err
	}
	runs := make(map[string][]coldstart.Result)
	for round := range rounds {
		for _, s := range systems {
			r, err := bed.Measure(ctx, s, image.Name, image.Ready)
			if err != nil {
				return nil, 0, err
			}
			fmt.Fprintf(out, "  %d/%d %-10s %6.2f s, %.1f MB in %d requests\n", round+1, rounds, s.Name(), r.Ready().Seconds(), float64(r.Received)/1e6, r.Requests)
			runs[s.Name()] = append(runs[s.Name()], r)
		}
	}
	return runs, image.Size(), nil
}

// publish puts both forms of the image into the bed's registry.
func publish(ctx context.Context, bed *coldstart.Bed, image *testenv.Image) error {
	to := bed.Registry.Addr() + "/" + image.Name + ":"
	if err := image.Push(ctx, to+coldstart.TagTar); err != nil {
		return err
	}
	return convert(ctx, bed.Dir, to+coldstart.TagTar, to+coldstart.TagLazy)
}

// convert makes the lazy form of an image, with scratch files in dir.
func convert(ctx context.Context, dir, from, to string) error {
	_, err := lazyerofs(ctx, "convert", "--quiet", "--work-dir", dir, from, to)
	return err
}
