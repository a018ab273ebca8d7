package remote

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/stargz-snapshotter/fs/source"
	lru "github.com/hashicorp/golang-lru/v2"
)

// DefaultCertsDir is where containerd keeps its registry configuration.
const DefaultCertsDir = "/etc/containerd/certs.d"

// HostsConfig says how registry hosts are found and reached.
type HostsConfig struct {
	// CertsDir holds <host>/hosts.toml and certificates as containerd defines
	// them. Empty means DefaultCertsDir. It need not exist.
	CertsDir string
	// Credentials gives user and secret for a host; nil means DockerCredentials.
	Credentials func(host string) (user, secret string, err error)
	// PlainHTTP forces http for hosts that certs.d says nothing about.
	PlainHTTP bool
	// MaxIdlePerHost bounds kept connections to one host; 0 means 32.
	MaxIdlePerHost int
}

// HostSet gives the hosts of a registry name and owns their connections.
type HostSet struct {
	cfg    HostsConfig
	shared *http.Transport
	// own holds transports with TLS settings of their own. Each call makes new
	// ones, so old ones leave here and close what they keep.
	own *lru.Cache[*http.Transport, struct{}]
	// logs is what containerd wants to log with while it reads local files; a
	// source's function takes no context.
	logs context.Context
}

// maxTransports bounds the transports with TLS settings of their own that are kept.
const maxTransports = 256

// NewHosts returns the hosts that cfg describes.
func NewHosts(cfg HostsConfig) *HostSet {
	if cfg.CertsDir == "" {
		cfg.CertsDir = DefaultCertsDir
	}
	if cfg.Credentials == nil {
		cfg.Credentials = DockerCredentials
	}
	if cfg.MaxIdlePerHost <= 0 {
		cfg.MaxIdlePerHost = 32
	}
	h := &HostSet{cfg: cfg, shared: docker.DefaultHTTPTransport(nil), logs: context.Background()}
	h.tune(h.shared)
	// The only error of NewWithEvict is a size below 1.
	h.own, _ = lru.NewWithEvict(maxTransports, func(t *http.Transport, _ struct{}) { t.CloseIdleConnections() })
	return h
}

// Hosts returns the registry hosts of cfg as a function in the form that
// sources carry. It reads certs.d on every call and gives a new authorizer, so
// calling it again is how credentials and mirrors are refreshed.
func Hosts(cfg HostsConfig) source.RegistryHosts { return NewHosts(cfg).RegistryHosts }

// RegistryHosts implements source.RegistryHosts.
func (h *HostSet) RegistryHosts(ref reference.Spec) ([]docker.RegistryHost, error) {
	name := ref.Hostname()
	first := true
	opts := config.HostOptions{
		HostDir:     config.HostDirFromRoot(h.cfg.CertsDir),
		Credentials: h.cfg.Credentials,
		// containerd calls this once for the client that hosts share and then
		// once for each host with settings of its own, whose transport it has
		// cloned from its default, not from ours.
		UpdateClient: func(c *http.Client) error {
			t, ok := c.Transport.(*http.Transport)
			switch {
			case first:
				c.Transport, first = h.shared, false
			case ok && t != h.shared:
				h.tune(t)
				h.own.Add(t, struct{}{})
			}
			return nil
		},
	}
	if h.cfg.PlainHTTP {
		opts.DefaultScheme = "http"
	}
	hosts, err := config.ConfigureHosts(h.logs, opts)(name)
	if err != nil {
		return nil, fmt.Errorf("reading registry configuration of %s in %s: %w", name, h.cfg.CertsDir, err)
	}
	return hosts, nil
}

// Close closes idle connections. Requests under way go on.
func (h *HostSet) Close() {
	h.shared.CloseIdleConnections()
	h.own.Purge()
}

// tune fits a transport to many parallel ranged reads from few hosts.
func (h *HostSet) tune(t *http.Transport) {
	t.MaxIdleConns = 8 * h.cfg.MaxIdlePerHost
	t.MaxIdleConnsPerHost = h.cfg.MaxIdlePerHost
	t.IdleConnTimeout = 90 * time.Second
	// A transport with its own dialer or TLS settings speaks HTTP/2 only on request.
	t.ForceAttemptHTTP2 = true
	// Offsets are those of the blob as stored; no encoding may shift them.
	t.DisableCompression = true
}
