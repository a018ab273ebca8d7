package main

import (
	"context"
	"errors"
	"fmt"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/content/proxy"
	leases "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lazyerofs/lazyerofs/cmd/internal/config"
	"github.com/lazyerofs/lazyerofs/cmd/internal/wire"
	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/fs/fdstore"
)

// daemon is everything that runs.
type daemon struct {
	c       config.Config
	notify  *fdstore.Store // nil without a keeper
	left    wire.Inheritance
	metrics *prometheus.Registry
	node    *wire.Node
	differ  *differ.Differ
	conn    *grpc.ClientConn // to containerd
}

// assemble puts the parts together. Nothing is fetched and nothing served to
// containerd yet.
func assemble(ctx context.Context, c config.Config, notify *fdstore.Store, left wire.Inheritance) (_ *daemon, err error) {
	d := &daemon{c: c, notify: notify, left: left, metrics: prometheus.NewRegistry()}
	d.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	d.node, err = wire.New(ctx, c.Node, wire.Options{Keeper: notify, Inherited: left, Metrics: d.metrics})
	if err != nil {
		return nil, err
	}
	if err := d.makeDiffer(); err != nil {
		return nil, errors.Join(err, d.node.End(ctx))
	}
	return d, nil
}

// makeDiffer makes the differ, which reads layers from containerd's own content
// store, and writes them there, in the namespace of the caller.
func (d *daemon) makeDiffer() (err error) {
	d.conn, err = grpc.NewClient("unix://"+d.c.Containerd.Address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)))
	if err != nil {
		return fmt.Errorf("reaching containerd at %s: %w", d.c.Containerd.Address, err)
	}
	d.differ, err = wire.NewDiffer(d.c.Node, d.c.Unpack, proxy.NewContentStore(d.conn),
		leases.NewLeaseManager(leasesapi.NewLeasesClient(d.conn)))
	if err != nil {
		return errors.Join(err, d.conn.Close())
	}
	return nil
}

// end undoes assemble. Mounts stay.
func (d *daemon) end(ctx context.Context) error {
	return errors.Join(d.conn.Close(), d.node.End(ctx))
}
