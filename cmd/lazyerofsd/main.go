package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"github.com/lazyerofs/lazyerofs/cmd/internal/config"
	"github.com/lazyerofs/lazyerofs/cmd/internal/wire"
	"github.com/lazyerofs/lazyerofs/fs/fdstore/keeper"
)

// version is set by the linker; without it the build information says it.
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "lazyerofsd:", err)
		stop()
		os.Exit(1)
	}
}

// options are the flags; empty means what the configuration file says.
type options struct {
	config, root, address, logLevel string
	supervise, rootless             bool
}

func command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "lazyerofsd [--supervise -- PROGRAM [ARG...]]",
		Short: "containerd snapshotter and differ that start containers before their image is downloaded",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && (!o.supervise || cmd.ArgsLenAtDash() != 0) {
				return cobra.NoArgs(cmd, args)
			}
			return nil
		},
		Version:       buildVersion(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return superviseOther(cmd.Context(), args)
			}
			if o.supervise {
				return supervise(cmd.Context(), o)
			}
			return serve(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "", "configuration file (default "+config.DefaultPath+" if it exists)")
	f.StringVar(&o.root, "root", "", "directory of snapshots and cached layers (default "+config.Default().Root+")")
	f.StringVar(&o.address, "address", "", "socket for containerd (default "+config.Default().Address+")")
	f.StringVar(&o.logLevel, "log-level", "", "trace, debug, info, warn or error (default "+config.Default().LogLevel+")")
	f.BoolVar(&o.rootless, "rootless", false, "mount whole images through FUSE for the user who runs this, as lazyerofs mount asks for them; no containerd")
	f.BoolVar(&o.supervise, "supervise", false, "keep the daemon running and its descriptors safe, where systemd does not; or PROGRAM instead, a containerd that has lazyerofs in it")
	return cmd
}

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// load reads the configuration; flags win over the file.
func (o options) load() (config.Config, error) {
	c, err := config.Load(o.config)
	if err != nil {
		return c, err
	}
	for _, f := range []struct{ flag, value *string }{
		{&o.root, &c.Root}, {&o.address, &c.Address}, {&o.logLevel, &c.LogLevel},
	} {
		if *f.flag != "" {
			*f.value = *f.flag
		}
	}
	if err := c.Check(); err != nil {
		return c, err
	}
	return c, log.SetLevel(c.LogLevel)
}

// supervise becomes the parent that keeps descriptors, of a daemon with the same
// arguments.
func supervise(ctx context.Context, o options) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding our own binary: %w", err)
	}
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(a string) bool {
		return a == "--supervise" || a == "--supervise=true"
	})
	var opts keeper.Options
	if o.rootless { // an ordinary user may not write to the default
		c, err := o.load()
		if err != nil {
			return err
		}
		opts.Dir = filepath.Dir(c.Address)
	}
	// The keeper handles signals itself: it may have to outlive them.
	return keeper.Run(context.WithoutCancel(ctx), append([]string{exe}, args...), opts)
}

// superviseOther becomes the parent that keeps descriptors of another program, and
// does nothing else.
func superviseOther(ctx context.Context, args []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("finding what to supervise: %w", err)
	}
	return keeper.Run(context.WithoutCancel(ctx), append([]string{path}, args[1:]...), keeper.Options{})
}

// serve runs the daemon until ctx ends.
func serve(ctx context.Context, o options) error {
	// Before any other file is opened.
	store, left, err := wire.Inherit()
	if err != nil {
		return err
	}
	c, err := o.load()
	if err != nil {
		return err
	}
	if o.rootless {
		return serveRootless(ctx, c, store, left)
	}
	d, err := assemble(ctx, c, store, left)
	if err != nil {
		return err
	}
	log.G(ctx).WithField("version", buildVersion()).WithField("address", c.Address).WithField("root", c.Root).Info("lazyerofsd serves")
	return d.run(ctx)
}
