package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/require"
)

// The sample that we ship shows every key with its default.
func TestSampleShowsTheDefaults(t *testing.T) {
	b, err := os.ReadFile("../../../deploy/config.toml")
	require.NoError(t, err)
	var got Config
	require.NoError(t, got.parse("sample", b))
	want := Default()
	want.Driver.Forbid = []string{}
	require.Equal(t, want, got)
	require.NoError(t, got.Check())
}

func TestAFileThatWasNamedMustExist(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
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
		c := Default()
		err := c.parse("f", []byte(text))
		if err == nil {
			err = c.Check()
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
		network, at, err := Metrics{Address: address}.Listen()
		require.NoError(t, err)
		require.Equal(t, want, network+" "+at)
	}
}

// containerd prints the defaults of its plugins and reads what it printed.
func TestConfigReadsBack(t *testing.T) {
	want := DefaultNode()
	want.Root, want.Snapshotter.PrepareTimeout, want.Driver.Forbid = "/r", Duration(90*time.Second), []string{"x"}
	b, err := toml.Marshal(want)
	require.NoError(t, err)
	require.Contains(t, string(b), "prepare_timeout = '1m30s'")
	var got Node
	require.NoError(t, toml.Unmarshal(b, &got))
	require.Equal(t, want, got)
}
