package testenv

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/pelletier/go-toml/v2"
)

// table is a TOML table as go-toml decodes it.
type table = map[string]any

// containerdConfig is the configuration of a private containerd. CRI and NRI
// are off: they take a second to start and nothing here uses them. The opt
// plugin would make a directory outside ours.
func containerdConfig(root, state, address string) table {
	return table{
		"version": 3,
		"root":    root,
		"state":   state,
		"grpc":    table{"address": address},
		"disabled_plugins": []any{
			"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
			"io.containerd.podsandbox.controller.v1.podsandbox",
			"io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
			"io.containerd.tracing.processor.v1.otlp",
			"io.containerd.snapshotter.v1.blockfile",
		},
	}
}

// proxyStanzas is deploy/containerd/lazyerofs.toml, as a user would import it,
// with the daemon at another address and root.
func proxyStanzas(socket, daemonRoot string) (table, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(root, "deploy", "containerd", "lazyerofs.toml")
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the stanzas for containerd: %w", err)
	}
	var stanzas table
	if err := toml.Unmarshal(data, &stanzas); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	proxies, ok := stanzas["proxy_plugins"].(table)
	if !ok || len(proxies) == 0 {
		return nil, fmt.Errorf("%s has no proxy_plugins", file)
	}
	for name, v := range proxies {
		p, ok := v.(table)
		if !ok {
			return nil, fmt.Errorf("%s: proxy_plugins.%s is no table", file, name)
		}
		p["address"] = socket
		if exports, ok := p["exports"].(table); ok && exports["root"] != nil {
			exports["root"] = daemonRoot
		}
	}
	return stanzas, nil
}

// merge adds src to dst as containerd's imports do: tables are merged, anything
// else is replaced.
func merge(dst, src table) {
	for k, v := range src {
		to, ok1 := dst[k].(table)
		from, ok2 := v.(table)
		if ok1 && ok2 {
			merge(to, from)
		} else {
			dst[k] = v
		}
	}
}

func writeTOML(file string, t table) error {
	data, err := toml.Marshal(t)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", file, err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return nil
}
