package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The sample that we ship shows every key with its default.
func TestSampleShowsTheDefaults(t *testing.T) {
	b, err := os.ReadFile("../../deploy/config.toml")
	require.NoError(t, err)
	var got config
	require.NoError(t, got.parse("sample", b))
	want := builtin()
	want.Driver.Forbid = []string{}
	require.Equal(t, want, got)
	require.NoError(t, got.check())
}

func TestConfigFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "c.toml")
	require.NoError(t, os.WriteFile(name, []byte("root = '/r/'\n[snapshotter]\nprepare_timeout = '3s'\n"), 0o600))
	c, err := options{config: name, address: "/run/x.sock"}.load()
	require.NoError(t, err)
	want := builtin()
	want.Root, want.Address = "/r", "/run/x.sock"
	want.Snapshotter.PrepareTimeout = duration(3 * time.Second)
	require.Equal(t, want, c)

	_, err = options{config: name + ".missing"}.load()
	require.ErrorIs(t, err, os.ErrNotExist, "a file that was named must exist")
}

// Stream processors are written as in containerd's configuration.
func TestStreamProcessors(t *testing.T) {
	c := builtin()
	require.NoError(t, c.parse("f", []byte(`
[stream_processors."io.containerd.ocicrypt.decoder.v1.tar.gzip"]
  accepts = ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted"]
  returns = "application/vnd.oci.image.layer.v1.tar+gzip"
  path = "ctd-decoder"
  args = ["--decryption-keys-path", "/etc/keys"]
  env = ["A=1"]
`)))
	require.NoError(t, c.check())
	all := c.processors()
	require.Len(t, all, 1)
	_, takes := all[0](t.Context(), "application/vnd.oci.image.layer.v1.tar+gzip+encrypted")
	require.True(t, takes)
	_, takes = all[0](t.Context(), "application/vnd.oci.image.layer.v1.tar+gzip")
	require.False(t, takes)
}

func TestConfigErrorsNameTheKey(t *testing.T) {
	for text, want := range map[string]string{
		"[snapshotter]\nstrikt = true\n":               `line 2: the key "snapshotter.strikt" is not known`,
		"rooot = 'x'":                                  `the key "rooot" is not known`,
		"[snapshotter]\nprepare_timeout = '5 minutes'": "line 2",
		"[snapshotter]\nprepare_timeout = '-5s'":       `is not a time such as "20s"`,
		"root = 'relative'":                            "root is",
		"address = 'a.sock'":                           "address is",
		"[containerd]\naddress = ''":                   "containerd.address is",
		"log_level = 'loud'":                           "log_level is",
		"[metrics]\naddress = '0.0.0.0:9100'":          "only a loopback address",
		"[metrics]\naddress = 'example.org:9100'":      "only a loopback address",
		"[metrics]\naddress = 'unix:relative'":         "absolute path",
		"[metrics]\naddress = '9100'":                  "give unix:/path",
		"[registry]\nmax_requests = -1":                "registry.max_requests",
		"[differ]\nmedia_type = 'x'":                   "differ.media_type is",
		"[stream_processors.d]\npath = 'x'":            `stream_processors."d" needs accepts`,
		"root = ":                                      "line 1",
	} {
		c := builtin()
		err := c.parse("f", []byte(text))
		if err == nil {
			err = c.check()
		}
		require.ErrorContains(t, err, want, text)
		require.NotContains(t, strings.TrimSpace(err.Error()), "\n", text)
	}
}

func TestMetricsAddresses(t *testing.T) {
	for address, want := range map[string]string{
		"unix:/run/m.sock": "unix /run/m.sock", "unix:///run/m.sock": "unix /run/m.sock",
		"127.0.0.1:9100": "tcp 127.0.0.1:9100", "[::1]:9100": "tcp [::1]:9100", "localhost:9100": "tcp localhost:9100",
	} {
		network, at, err := metricsConfig{Address: address}.listen()
		require.NoError(t, err)
		require.Equal(t, want, network+" "+at)
	}
}
