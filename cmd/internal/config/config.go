package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pelletier/go-toml/v2"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/remote"
	"github.com/lazyerofs/lazyerofs/snapshot"
)

// DefaultPath is where the configuration is looked for when no flag says so.
// Only then may it be missing.
const DefaultPath = "/etc/lazyerofs/config.toml"

// Config is the daemon's configuration file. deploy/config.toml explains every key.
type Config struct {
	Node
	Unpack

	Address    string     `toml:"address"`
	LogLevel   string     `toml:"log_level"`
	Containerd Containerd `toml:"containerd"`
	Metrics    Metrics    `toml:"metrics"`
}

// Node is what the snapshotter has, and what loads layers behind it.
type Node struct {
	Root        string      `toml:"root"`
	Snapshotter Snapshotter `toml:"snapshotter"`
	Registry    Registry    `toml:"registry"`
	Driver      Driver      `toml:"driver"`
	Verity      Verity      `toml:"verity"`
}

// Unpack is what the differ has.
type Unpack struct {
	Differ Differ `toml:"differ"`
	// StreamProcessors are as in containerd's own configuration, by id.
	StreamProcessors map[string]StreamProcessor `toml:"stream_processors"`
}

// Differ says how containers' changes are written.
type Differ struct {
	MediaType string `toml:"media_type"`
}

// Verity says what the kernel is to check on every read.
type Verity struct {
	DM bool `toml:"dm"`
	FS bool `toml:"fs"`
}

// StreamProcessor is a program that turns layers of some media types into
// another.
type StreamProcessor struct {
	Accepts []string `toml:"accepts"`
	Returns string   `toml:"returns"`
	Path    string   `toml:"path"`
	Args    []string `toml:"args"`
	Env     []string `toml:"env"`
}

// Containerd says where containerd is.
type Containerd struct {
	Address string `toml:"address"`
}

// Snapshotter bounds how long a pull may wait for us.
type Snapshotter struct {
	PrepareTimeout Duration `toml:"prepare_timeout"`
	Strict         bool     `toml:"strict"`
}

// Registry says how registries are reached.
type Registry struct {
	CertsDir           string   `toml:"certs_dir"`
	RetryBudget        Duration `toml:"retry_budget"`
	MaxRequests        int      `toml:"max_requests"`
	MaxRequestsPerHost int      `toml:"max_requests_per_host"`
}

// Driver says which drivers may serve, as driver.Select is told.
type Driver struct {
	// Name is the only one that may; empty: the first that works.
	Name string `toml:"name"`
	// Forbid are those that may not.
	Forbid []string `toml:"forbid"`
}

// Metrics says where counters are shown, and profiles.
type Metrics struct {
	Address string `toml:"address"`
	Pprof   bool   `toml:"pprof"`
}

// Duration is a time.Duration that is written as "20s".
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration reads, above 0.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v <= 0 {
		return fmt.Errorf("%q is not a time such as \"20s\"", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes what UnmarshalText reads: containerd prints the defaults of
// its plugins.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Default is what holds without a configuration file.
func Default() Config {
	c := Config{
		Node:       DefaultNode(),
		Unpack:     DefaultUnpack(),
		Address:    "/run/lazyerofs/lazyerofs.sock",
		LogLevel:   "info",
		Containerd: Containerd{Address: "/run/containerd/containerd.sock"},
	}
	c.Root = "/var/lib/lazyerofs"
	return c
}

// DefaultNode is Default's Node without a root.
func DefaultNode() Node {
	return Node{
		Snapshotter: Snapshotter{PrepareTimeout: Duration(snapshot.DefaultPrepareTimeout)},
		Registry:    Registry{CertsDir: remote.DefaultCertsDir, RetryBudget: Duration(30 * time.Second)},
	}
}

// DefaultUnpack is Default's Unpack.
func DefaultUnpack() Unpack { return Unpack{Differ: Differ{MediaType: chunk.MediaTypeLayerZstd}} }

// Load reads the file at path over the defaults. An empty path means DefaultPath,
// which may be missing. The values are not checked.
func Load(path string) (Config, error) {
	c := Default()
	name := path
	if name == "" {
		name = DefaultPath
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
func (c *Config) parse(name string, b []byte) error {
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

var logLevels = []string{"trace", "debug", "info", "warn", "error"}

// Check says what is wrong with the values, and cleans paths.
func (c *Config) Check() error {
	if err := c.Node.Check(); err != nil {
		return err
	}
	if err := cleanPath("address", &c.Address); err != nil {
		return err
	}
	if err := cleanPath("containerd.address", &c.Containerd.Address); err != nil {
		return err
	}
	if !slices.Contains(logLevels, c.LogLevel) {
		return fmt.Errorf("log_level is %q: use trace, debug, info, warn or error", c.LogLevel)
	}
	if err := c.Unpack.Check(); err != nil {
		return err
	}
	if c.Metrics.Address != "" {
		if _, _, err := c.Metrics.Listen(); err != nil {
			return err
		}
	}
	return nil
}

func cleanPath(key string, value *string) error {
	if !filepath.IsAbs(*value) {
		return fmt.Errorf("%s is %q: give an absolute path", key, *value)
	}
	*value = filepath.Clean(*value)
	return nil
}

// Check says what is wrong with the values, and cleans paths.
func (n *Node) Check() error {
	if err := cleanPath("root", &n.Root); err != nil {
		return err
	}
	if n.Registry.MaxRequests < 0 || n.Registry.MaxRequestsPerHost < 0 {
		return errors.New("registry.max_requests and registry.max_requests_per_host are numbers above 0, or 0 for the default")
	}
	return nil
}

// Check says what is wrong with the values.
func (u *Unpack) Check() error {
	switch u.Differ.MediaType {
	case chunk.MediaTypeLayer, chunk.MediaTypeLayerZstd, ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd:
	default:
		return fmt.Errorf("differ.media_type is %q: use %s, %s or the type of an OCI tar layer", u.Differ.MediaType, chunk.MediaTypeLayerZstd, chunk.MediaTypeLayer)
	}
	for id, p := range u.StreamProcessors {
		if len(p.Accepts) == 0 || p.Returns == "" || p.Path == "" {
			return fmt.Errorf("stream_processors.%q needs accepts, returns and path", id)
		}
	}
	return nil
}

// Listen returns what to listen on for metrics. Only who is on this machine may
// see them: they name nothing secret, but a profile does.
func (m Metrics) Listen() (network, address string, err error) {
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
