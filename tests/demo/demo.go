package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/tests/coldstart"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// repository is where the images are in the demo's registry.
const repository = "demo"

type demo struct {
	options
	dir string
	out io.Writer
	bed *coldstart.Bed
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

func (d *demo) run(ctx context.Context) (err error) {
	d.bed, err = coldstart.NewBed(d.dir, d.line)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cleaned(d.bed.Close())) }()
	if d.image == "" {
		err = d.buildImage(ctx)
	} else {
		err = d.fetchImage(ctx)
	}
	if err != nil {
		return err
	}
	name, why, err := d.driver(ctx)
	if err != nil {
		return err
	}
	lazy := coldstart.Lazyerofs(d.forbid...)
	if name == "" {
		d.say("This machine cannot load layers lazily (%s): lazyerofs downloads and unpacks the image.", why)
		lazy = coldstart.LazyerofsTar(d.forbid...)
	} else if err := d.convert(ctx); err != nil {
		return err
	} else {
		d.say("driver: %s", name)
	}
	d.say("\nline to the registry: %s; command: %s\n", d.line, strings.Join(d.cmd, " "))
	full, err := d.measure(ctx, coldstart.Overlayfs())
	if err != nil {
		return err
	}
	ours, err := d.measure(ctx, lazy)
	if err != nil {
		return err
	}
	if full.Output != ours.Output {
		return fmt.Errorf("the two printed different things: %q and %q", full.Output, ours.Output)
	}
	size, err := d.imageSize(lazy.Tag())
	if err != nil {
		return err
	}
	d.say("demo: lazyerofs ready in %.2f s (fetched %.1f of %.1f MB), overlayfs in %.2f s",
		ours.Ready().Seconds(), mb(ours.Received), mb(size), full.Ready().Seconds())
	return nil
}

// driver is what serves lazy layers here, as lazyerofs itself finds out, or "" and
// why nothing does.
func (d *demo) driver(ctx context.Context) (name, why string, err error) {
	path, err := testenv.Tool("lazyerofs")
	if err != nil {
		return "", "", err
	}
	// It exits with 1 where no driver works, and prints its report all the same.
	out, runErr := exec.CommandContext(ctx, path, "doctor", "--json", "--root", d.dir).Output()
	var report struct {
		Drivers []struct {
			Name   string `json:"name"`
			OK     bool   `json:"ok"`
			Detail string `json:"detail"`
		} `json:"drivers"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return "", "", fmt.Errorf("lazyerofs doctor: %w", errors.Join(runErr, err))
	}
	var reasons []string
	for _, each := range report.Drivers {
		switch {
		case slices.Contains(d.forbid, each.Name):
			reasons = append(reasons, each.Name+": left out")
		case each.OK:
			return each.Name, "", nil
		default:
			reasons = append(reasons, each.Name+": "+each.Detail)
		}
	}
	return "", strings.Join(reasons, "; "), nil
}

// buildImage pushes the image that the demo is about by default.
func (d *demo) buildImage(ctx context.Context) error {
	recipe, err := testenv.Python(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	image, err := recipe.Build(ctx, func(layer string) { d.say("building the layer: %s", layer) })
	if err != nil {
		return err
	}
	if err := image.Push(ctx, d.bed.Registry.Addr()+"/"+repository+":"+coldstart.TagTar); err != nil {
		return err
	}
	if len(d.cmd) == 0 {
		d.cmd = image.Ready
	}
	d.say("image: %d layers, %.1f MB compressed, in the registry after %.1f s", len(image.Layers), mb(image.Size()), time.Since(start).Seconds())
	return nil
}

// fetchImage copies the image that the user named, for this machine's platform,
// from where hosts.toml says to the demo's registry.
func (d *demo) fetchImage(ctx context.Context) (err error) {
	node, err := testenv.StartHost(ctx, filepath.Join(d.dir, "fetch"), testenv.HostOptions{})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, cleaned(errors.Join(node.Stop(), os.RemoveAll(filepath.Join(d.dir, "fetch")))))
	}()
	platform := "linux/" + runtime.GOARCH
	d.say("fetching %s for %s", d.image, platform)
	if _, err := node.Ctr(ctx, "content", "fetch", "--hosts-dir", d.hostsDir, "--platform", platform, d.image); err != nil {
		return err
	}
	to := d.bed.Registry.Addr() + "/" + repository + ":" + coldstart.TagTar
	_, err = node.Ctr(ctx, "images", "push", "--local", "--plain-http", "--platform", platform, to, d.image)
	return err
}

// convert makes the lazy form of the image, with the command that a user runs.
func (d *demo) convert(ctx context.Context) error {
	path, err := testenv.Tool("lazyerofs")
	if err != nil {
		return err
	}
	from := d.bed.Registry.Addr() + "/" + repository + ":"
	start := time.Now()
	cmd := exec.CommandContext(ctx, path, "convert", "--quiet", "--work-dir", d.dir, from+coldstart.TagTar, from+coldstart.TagLazy)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("lazyerofs convert: %w: %s", err, out)
	}
	size, err := d.imageSize(coldstart.TagLazy)
	if err != nil {
		return err
	}
	d.say("lazyerofs convert: %.1f MB of EROFS layers after %.1f s", mb(size), time.Since(start).Seconds())
	return nil
}

func (d *demo) measure(ctx context.Context, s coldstart.System) (coldstart.Result, error) {
	r, err := d.bed.Measure(ctx, s, repository, d.cmd)
	if err != nil {
		return r, err
	}
	rows := []coldstart.Row{{Label: "manifest, config"}}
	layers, err := d.layers(s.Tag())
	if err != nil {
		return r, err
	}
	for i, l := range layers {
		rows = append(rows, coldstart.Row{Label: fmt.Sprintf("layer %d", i+1), Blob: l.Digest, Size: l.Size})
	}
	d.say("%s printed: %s", s.Name(), strings.TrimSpace(r.Output))
	d.say("%s: pull %.2f s, run %.2f s, %.1f MB in %d requests\n%s",
		s.Name(), r.Pull.Seconds(), r.Run.Seconds(), mb(r.Received), r.Requests, r.Timeline(rows))
	return r, nil
}

// layers reads the layers of a tag from the registry's own files.
func (d *demo) layers(tag string) ([]ocispec.Descriptor, error) {
	v2 := filepath.Join(d.dir, "registry", "docker", "registry", "v2")
	link, err := os.ReadFile(filepath.Join(v2, "repositories", repository, "_manifests/tags", tag, "current/link"))
	if err != nil {
		return nil, fmt.Errorf("reading the manifest of %s: %w", tag, err)
	}
	algorithm, hex, _ := strings.Cut(strings.TrimSpace(string(link)), ":")
	data, err := os.ReadFile(filepath.Join(v2, "blobs", algorithm, hex[:min(2, len(hex))], hex, "data"))
	if err != nil {
		return nil, fmt.Errorf("reading the manifest of %s: %w", tag, err)
	}
	var m struct {
		Layers    []ocispec.Descriptor
		Manifests []ocispec.Descriptor
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("reading the manifest of %s: %w", tag, err)
	}
	return m.Layers, nil
}

func (d *demo) imageSize(tag string) (int64, error) {
	layers, err := d.layers(tag)
	var n int64
	for _, l := range layers {
		n += l.Size
	}
	return n, err
}

func mb(n int64) float64 { return float64(n) / 1e6 }
