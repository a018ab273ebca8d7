package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
	"github.com/lazyerofs/lazyerofs/fs/fdstore"
	"github.com/lazyerofs/lazyerofs/fs/fdstore/keeper"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// The test binary is the supervisor, the daemon and the readers too: roleEnv says
// which.
const (
	roleEnv = "CRASH_TEST_ROLE"
	dirEnv  = "CRASH_TEST_DIR" // holds the data file and the mount point
	layerID = "layer"
	seed    = 7
)

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(roleEnv) {
	case "supervisor":
		_ = os.Setenv(roleEnv, "daemon")
		err = keeper.Run(context.Background(), []string{"/proc/self/exe"}, keeper.Options{Dir: os.TempDir()})
	case "daemon":
		err = daemon(os.Getenv(dirEnv))
	case "reader":
		err = reader(os.Getenv(dirEnv), os.Getenv(truthEnv))
	default:
		goleak.VerifyTestMain(m, testenv.IgnoreRegistry())
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Getenv(roleEnv), err)
		os.Exit(1)
	}
	os.Exit(0)
}

// daemon serves one layer: mounts it, or adopts what a predecessor mounted.
// SIGUSR1 completes the layer, SIGTERM is a planned stop.
func daemon(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	complete := make(chan os.Signal, 1)
	signal.Notify(complete, unix.SIGUSR1)
	store, err := fdstore.New()
	if err != nil {
		return err
	}
	inherited := store.Inherited()
	if err := fanotify.Reserve(inherited); err != nil {
		return err
	}
	d, err := fanotify.New(ctx, fanotify.Config{Keeper: store, Inherited: inherited})
	if err != nil {
		return err
	}
	layer, m, how, err := serve(ctx, d, dir, inherited)
	if err != nil {
		return err
	}
	if _, err := d.Settle(); err != nil {
		return err
	}
	if err := store.Ready(fmt.Sprintf("%s by %d", how, os.Getpid())); err != nil {
		return err
	}
	for {
		select {
		case <-complete:
			if err := finish(ctx, d, layer, store); err != nil {
				return err
			}
		case <-ctx.Done():
			return errors.Join(d.Shutdown(context.Background()), m.Release())
		}
	}
}

func serve(ctx context.Context, d driver.Driver, dir string, inherited map[string][]*os.File) (
	*drivertest.Layer, driver.Mount, string, error,
) {
	img, err := drivertest.BuildImage(seed, false)
	if err != nil {
		return nil, nil, "", err
	}
	target := filepath.Join(dir, "mnt")
	if kept := inherited[fanotify.WriterName(layerID)]; len(kept) > 0 {
		l := drivertest.OpenLayer(layerID, img, kept[0], nil)
		m, err := d.Adopt(ctx, target, l)
		return l, m, "adopted", err
	}
	l, err := drivertest.CreateLayer(dir, layerID, img)
	if err != nil {
		return nil, nil, "", err
	}
	m, err := d.Mount(ctx, target, l)
	return l, m, "mounted", err
}

// finish completes the layer and says so when nothing is kept any more.
func finish(ctx context.Context, d *fanotify.Driver, l *drivertest.Layer, store *fdstore.Store) error {
	if err := l.Fill(ctx); err != nil {
		return err
	}
	for d.Stats().Served > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return store.Status("complete")
}

// fields splits a status like "adopted by 12".
func fields(status string) (how string, pid int, err error) {
	_, err = fmt.Sscanf(strings.TrimSpace(status), "%s by %d", &how, &pid)
	return how, pid, err
}
