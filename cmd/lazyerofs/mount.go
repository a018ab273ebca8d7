package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/image"
	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/mounts"
	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/standalone"
)

// mountNamespace is the containerd namespace of what is mounted from the
// command line.
const mountNamespace = "lazyerofs"

// instanceFlags choose the daemon that serves the mounts.
type instanceFlags struct {
	root, address string
	rootless      bool
}

func (i *instanceFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&i.root, "root", "", "state `directory` of the daemon that serves the mounts (default "+standalone.DefaultRoot+
		", with --rootless ~/.local/share/lazyerofs)")
	f.StringVar(&i.address, "address", "", "`socket` of that daemon (default "+standalone.DefaultAddress+
		", with --rootless in $XDG_RUNTIME_DIR)")
	f.BoolVar(&i.rootless, "rootless", os.Geteuid() != 0, "mount through FUSE, without privileges; the default for all but root")
}

// instance returns the daemon that the flags name; certsDir is where it finds the
// registries' configuration. Its working directory is not this one, so all paths are
// absolute.
func (i *instanceFlags) instance(certsDir string) (standalone.Instance, error) {
	inst := standalone.Instance{Root: standalone.DefaultRoot, Address: standalone.DefaultAddress}
	if i.rootless && (i.root == "" || i.address == "") {
		var err error
		if inst, err = standalone.User(); err != nil {
			return inst, err
		}
	}
	inst.Rootless = i.rootless
	if i.root != "" {
		inst.Root = i.root
	}
	if i.address != "" {
		inst.Address = i.address
	}
	inst.CertsDir = certsDir
	for _, path := range []*string{&inst.Root, &inst.Address, &inst.CertsDir} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return inst, fmt.Errorf("finding %s: %w", *path, err)
		}
		*path = abs
	}
	return inst, nil
}

func newMountCmd() *cobra.Command {
	var (
		choose   instanceFlags
		pull     registryFlags
		writable bool
	)
	cmd := &cobra.Command{
		Use:   "mount IMAGE DIR",
		Short: "mount an image without downloading it",
		Long: `Mount a lazy image at a directory. Nothing is downloaded but metadata; what is
read is fetched, verified and kept. A daemon in the background serves the mount
until "lazyerofs umount DIR".

With --rootless, which is the default for all but root, nothing takes privileges
but fusermount3: the layers are merged and shown through FUSE, to the mounting
user alone, who can read every file whatever its mode and owner.`,
		Example: `  lazyerofs mount registry.example.com/app:lazy /mnt
  lazyerofs mount --writable localhost:5000/python:lazy /mnt
  lazyerofs mount --rootless registry.example.com/app:lazy ~/app`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			inst, err := choose.instance(pull.certsDir)
			if err != nil {
				return err
			}
			if choose.rootless {
				return mountRootless(cmd.Context(), inst, &pull, args[0], args[1], writable)
			}
			return mountImage(cmd.Context(), inst, &pull, args[0], args[1], writable)
		},
	}
	choose.add(cmd)
	pull.add(cmd)
	cmd.Flags().BoolVar(&writable, "writable", false, "allow changes, which umount throws away")
	return cmd
}

func mountImage(ctx context.Context, inst standalone.Instance, pull *registryFlags, ref, dir string, writable bool) (err error) {
	hosts, platform, err := pull.open()
	if err != nil {
		return err
	}
	defer hosts.Close()
	img, err := image.Resolve(ctx, ref, dockerHosts(hosts), platform)
	if err != nil {
		return err
	}
	conn, err := inst.Ensure(ctx)
	if err != nil {
		return err
	}
	defer closeInto(&err, conn)
	ctx = namespaces.WithNamespace(ctx, mountNamespace)
	client := mountsClient(conn)
	if err := client.Mount(ctx, img, dir, writable); err != nil {
		return errors.Join(err, stopIfIdle(context.WithoutCancel(ctx), inst, client))
	}
	return nil
}

func newUmountCmd() *cobra.Command {
	var choose instanceFlags
	cmd := &cobra.Command{
		Use:     "umount DIR",
		Aliases: []string{"unmount"},
		Short:   "unmount an image that mount has mounted",
		Example: "  lazyerofs umount /mnt",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			inst, err := choose.instance("")
			if err != nil {
				return err
			}
			if inst.Untouched(cmd.Context()) {
				return mounts.NotMounted(args[0])
			}
			if choose.rootless {
				return umountRootless(cmd.Context(), inst, args[0])
			}
			ctx := namespaces.WithNamespace(cmd.Context(), mountNamespace)
			conn, err := inst.Dial(ctx)
			if errors.Is(err, os.ErrNotExist) {
				// A daemon that died with its supervisor left the mount: start one to
				// take it down in order.
				conn, err = inst.Ensure(ctx)
			}
			if err != nil {
				return err
			}
			defer closeInto(&err, conn)
			client := mountsClient(conn)
			if err := client.Unmount(ctx, args[0]); err != nil {
				return errors.Join(err, stopIfIdle(context.WithoutCancel(ctx), inst, client))
			}
			return stopIfIdle(ctx, inst, client)
		},
	}
	choose.add(cmd)
	return cmd
}

func mountsClient(conn *grpc.ClientConn) *mounts.Client {
	return &mounts.Client{Snapshotter: proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "lazyerofs")}
}

// stopIfIdle ends the daemon once nothing is mounted: what was started by a
// command must not stay behind for good.
func stopIfIdle(ctx context.Context, inst standalone.Instance, client *mounts.Client) error {
	dirs, err := client.Dirs(ctx)
	if err != nil {
		return err
	}
	if len(dirs) > 0 {
		return nil
	}
	return inst.Stop()
}

// closeInto closes c and reports its error unless there is an earlier one.
func closeInto(err *error, c io.Closer) {
	if cerr := c.Close(); cerr != nil && *err == nil {
		*err = fmt.Errorf("closing: %w", cerr)
	}
}
