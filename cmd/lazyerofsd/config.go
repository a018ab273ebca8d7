package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pelletier/go-toml/v2"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/remote"
	"github.com/lazyerofs/lazyerofs/snapshot"
)

// defaultConfig is where the configuration is looked for when no flag says so.
// Only then may it be missing.
const defaultConfig = "/etc/lazyerofs/config.toml"

// config is the configuration file. deploy/config.toml explains every key.
type config struct {
	Root     string `toml:"root"`
	Address  string `toml:"address"`
	LogLevel string `toml:"log_level"`

	Containerd  containerdConfig  `toml:"containerd"`
	Snapshotter snapshotterConfig `toml:"snapshotter"`
	Registry    registryConfig    `toml:"registry"`
	Driver      driverConfig      `toml:"driver"`
	Metrics     metricsConfig     `toml:"metrics"`
	Differ      differConfig      `toml:"differ"`

	// StreamProcessors are as in containerd's own configuration, by id.
	StreamProcessors map[string]streamProcessor `toml:"stream_processors"`
}

type differConfig struct {
	MediaType string `toml:"media_type"`
}

// streamProcessor is a program that turns layers of some media types into
// another.
type streamProcessor struct {
	Accepts []string `toml:"accepts"`
	Returns string   `toml:"returns"`
	Path    string   `toml:"path"`
	Args    []string `toml:"args"`
	Env     []string `toml:"env"`
}

type containerdConfig struct {
	Address string `toml:"address"`
}

type snapshotterConfig struct {
	PrepareTimeout duration `toml:"prepare_timeout"`
	Strict         bool     `toml:"strict"`
}

type registryConfig struct {
	CertsDir           string   `toml:"certs_dir"`
	RetryBudget        duration `toml:"retry_budget"`
	MaxRequests        int      `toml:"max_requests"`
	MaxRequestsPerHost int      `toml:"max_requests_per_host"`
}

type driverConfig struct {
	Name   string   `toml:"name"`
	Forbid []string `toml:"forbid"`
}

type metricsConfig struct {
	Address string `toml:"address"`
	Pprof   bool   `toml:"pprof"`
}

// duration is a time.Duration that is written as "20s".
type duration time.Duration

// UnmarshalText reads what time.ParseDuration reads, above 0.
func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v <= 0 {
		return fmt.Errorf("%q is not a time such as \"20s\"", b)
	}
	*d = duration(v)
	return nil
}

// builtin is what holds without a configuration file.
func builtin() config {
	return config{
		Root:        "/var/lib/lazyerofs",
		Address:     "/run/lazyerofs/lazyerofs.sock",
		LogLevel:    "info",
		Containerd:  containerdConfig{Address: "/run/containerd/containerd.sock"},
		Snapshotter: snapshotterConfig{PrepareTimeout: duration(snapshot.DefaultPrepareTimeout)},
		Registry:    registryConfig{CertsDir: remote.DefaultCertsDir, RetryBudget: duration(30 * time.Second)},
		Differ:      differConfig{MediaType: chunk.MediaTypeLayerZstd},
	}
}

// loadConfig reads the file at path over the defaults. An empty path means
// defaultConfig, which may be missing.
func loadConfig(path string) (config, error) {
	c := builtin()
	name := path
	if name == "" {
		name = defaultConfig
	}
	b, err := os.ReadFile(name)
	if path == "" && errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("reading the configuration: %w", err)
	}
	return c, c.parse(name, b)
}

// parse reads b, the content of the file name, over c.
func (c *config) parse(name string, b []byte) error {
	err := toml.NewDecoder(strings.NewReader(string(b))).DisallowUnknownFields().Decode(c)
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) && len(strict.Errors) > 0 {
		first := strict.Errors[0]
		row, _ := first.Position()
		return fmt.Errorf("%s, line %d: the key %q is not known; remove it or see deploy/config.toml for the keys there are",
			name, row, strings.Join(first.Key(), "."))
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		row, col := bad.Position()
		return fmt.Errorf("%s, line %d, column %d: %w", name, row, col, bad)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// check says what is wrong with the values, and cleans paths.
func (c *config) check() error {
	for _, p := range []struct {
		key   string
		value *string
	}{{"root", &c.Root}, {"address", &c.Address}, {"containerd.address", &c.Containerd.Address}} {
		if !filepath.IsAbs(*p.value) {
			return fmt.Errorf("%s is %q: give an absolute path", p.key, *p.value)
		}
		*p.value = filepath.Clean(*p.value)
	}
	if err := log.SetLevel(c.LogLevel); err != nil {
		return fmt.Errorf("log_level is %q: use trace, debug, info, warn or error", c.LogLevel)
	}
	if c.Registry.MaxRequests < 0 || c.Registry.MaxRequestsPerHost < 0 {
		return errors.New("registry.max_requests and registry.max_requests_per_host are numbers above 0, or 0 for the default")
	}
	if err := c.checkDiffer(); err != nil {
		return err
	}
	if c.Metrics.Address != "" {
		if _, _, err := c.Metrics.listen(); err != nil {
			return err
		}
	}
	return nil
}

func (c *config) checkDiffer() error {
	switch c.Differ.MediaType {
	case chunk.MediaTypeLayer, chunk.MediaTypeLayerZstd, ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd:
	default:
		return fmt.Errorf("differ.media_type is %q: use %s, %s or the type of an OCI tar layer", c.Differ.MediaType, chunk.MediaTypeLayerZstd, chunk.MediaTypeLayer)
	}
	for id, p := range c.StreamProcessors {
		if len(p.Accepts) == 0 || p.Returns == "" || p.Path == "" {
			return fmt.Errorf("stream_processors.%q needs accepts, returns and path", id)
		}
	}
	return nil
}

// listen returns what to listen on for metrics. Only who is on this machine may
// see them: they name nothing secret, but a profile does.
func (m metricsConfig) listen() (network, address string, err error) {
	if path, ok := strings.CutPrefix(m.Address, "unix:"); ok {
		path = strings.TrimPrefix(path, "//")
		if !filepath.IsAbs(path) {
			return "", "", fmt.Errorf("metrics.address is %q: give unix: and an absolute path", m.Address)
		}
		return "unix", path, nil
	}
	host, _, err := net.SplitHostPort(m.Address)
	if err != nil {
		return "", "", fmt.Errorf("metrics.address is %q: give unix:/path or 127.0.0.1:port", m.Address)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", "", fmt.Errorf("metrics.address is %q: only a loopback address or a unix socket is served", m.Address)
	}
	return "tcp", m.Address, nil
}
