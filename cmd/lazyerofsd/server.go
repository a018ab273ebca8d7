package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// stopTimeout bounds how long calls under way may take when the daemon stops.
const stopTimeout = 20 * time.Second

// run serves until ctx ends or a part fails, then ends everything.
func (d *daemon) run(ctx context.Context) error {
	err := d.serve(ctx)
	if d.notify != nil {
		err = errors.Join(err, d.notify.Stopping())
	}
	return errors.Join(err, d.end(ctx))
}

func (d *daemon) serve(ctx context.Context) error {
	// Before the socket for containerd: who can reach that finds the metrics too.
	metrics, err := d.listenMetrics(ctx)
	if err != nil {
		return err
	}
	listener, err := d.listen(ctx)
	if err != nil {
		if metrics != nil {
			err = errors.Join(err, metrics.Close())
		}
		return err
	}
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			return next(passNamespace(ctx), req)
		}))
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(d.node.Snapshots))
	diffapi.RegisterDiffServer(server, diffservice.FromApplierAndComparer(d.differ, d.differ))

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := server.Serve(listener)
		if errors.Is(err, grpc.ErrServerStopped) {
			return nil // told to stop before it came to serve
		}
		return err
	})
	g.Go(func() error {
		<-ctx.Done()
		stopServer(server)
		return nil
	})
	if metrics != nil {
		g.Go(func() error { return d.serveMetrics(ctx, metrics) })
	}
	g.Go(func() error { return d.takeOver(ctx) })
	return g.Wait()
}

// takeOver says that containerd is answered, then adopts what is mounted: local
// state only, but a broken disk may hold it up.
func (d *daemon) takeOver(ctx context.Context) error {
	if d.notify != nil {
		if err := d.notify.Ready("serving " + d.c.Address); err != nil {
			return fmt.Errorf("telling the service manager: %w", err)
		}
	}
	d.node.Restore(ctx)
	return nil
}

// stopServer lets calls under way finish, for a while.
func stopServer(server *grpc.Server) {
	timer := time.AfterFunc(stopTimeout, server.Stop)
	defer timer.Stop()
	server.GracefulStop()
}

// passNamespace makes calls that serve a request carry its namespace.
func passNamespace(ctx context.Context) context.Context {
	if ns, ok := namespaces.Namespace(ctx); ok {
		return namespaces.WithNamespace(ctx, ns)
	}
	return ctx
}

// listenMetrics returns where metrics are served, or nil when they are not.
func (d *daemon) listenMetrics(ctx context.Context) (net.Listener, error) {
	if d.c.Metrics.Address == "" {
		return nil, nil
	}
	network, address, err := d.c.Metrics.Listen()
	if err != nil {
		return nil, err
	}
	var l net.Listener
	if network == "unix" {
		l, err = listenUnix(ctx, address)
	} else {
		l, err = (&net.ListenConfig{}).Listen(ctx, network, address)
	}
	if err != nil {
		return nil, fmt.Errorf("listening for metrics: %w", err)
	}
	return l, nil
}

// serveMetrics serves metrics, and profiles when asked to, until ctx ends.
func (d *daemon) serveMetrics(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(d.metrics, promhttp.HandlerOpts{}))
	if d.c.Metrics.Pprof {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() {
		if err := server.Close(); err != nil {
			log.G(ctx).WithError(err).Warn("closing the metrics endpoint")
		}
	})
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving metrics: %w", err)
	}
	return nil
}
