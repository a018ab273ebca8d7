package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	containerd "github.com/containerd/containerd/v2/client"
	ctd "github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/containerd/v2/core/images/converter/erofs"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/differ/converter/convertfunc"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "convertfunc:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	f := flag.NewFlagSet("convertfunc", flag.ContinueOnError)
	address := f.String("address", "/run/containerd/containerd.sock", "socket of containerd")
	namespace := f.String("namespace", namespaces.Default, "namespace of the image")
	layers := f.Bool("layers", false, "let containerd's own converter do all but the layers")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 2 {
		return fmt.Errorf("usage: convertfunc [FLAGS] SOURCE TARGET")
	}
	client, err := containerd.New(*address)
	if err != nil {
		return err
	}
	defer client.Close()
	return convert(namespaces.WithNamespace(ctx, *namespace), client, f.Arg(0), f.Arg(1), *layers, out)
}

// convert makes the image target of the image source, both in containerd.
func convert(ctx context.Context, client *containerd.Client, source, target string, layers bool, out io.Writer) error {
	opts := []ctd.Opt{ctd.WithIndexConvertFunc(convertfunc.Image(converter.Options{}))}
	if layers {
		opts = []ctd.Opt{
			ctd.WithLayerConvertFunc(convertfunc.Layer(differ.Config{}, "")),
			ctd.WithUpdateManifest(erofs.UpdateManifestPlatform), // adds the os.feature
			ctd.WithDockerToOCI(true),
		}
	}
	img, err := ctd.Convert(ctx, client, target, source, opts...)
	if err != nil {
		return fmt.Errorf("converting %s: %w", source, err)
	}
	_, err = fmt.Fprintf(out, "%s@%s\n", img.Name, img.Target.Digest)
	return err
}
