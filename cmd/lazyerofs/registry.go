package main

import (
	"os"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// registryFlags choose the registry's configuration and the platform.
type registryFlags struct {
	certsDir string
	platform string
}

func (r *registryFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.certsDir, "hosts-dir", remote.DefaultCertsDir, "`directory` with HOST/hosts.toml, as containerd reads it")
	platformFlag(cmd, &r.platform)
}

// open returns the hosts, which the caller closes, and the platform.
func (r *registryFlags) open() (*remote.HostSet, *ocispec.Platform, error) {
	platform, err := onePlatform(r.platform)
	if err != nil {
		return nil, platform, err
	}
	return remote.NewHosts(remote.HostsConfig{CertsDir: r.certsDir}), platform, nil
}

// platformFlag adds the flag that chooses one platform's image.
func platformFlag(cmd *cobra.Command, platform *string) {
	cmd.Flags().StringVar(platform, "platform", "", "`os/arch[/variant]` to choose from a multi-platform image (default this machine's)")
}

// checkHostsDir refuses a --hosts-dir that is not there, without which registries would
// be reached in another way than was meant. The default need not exist.
func checkHostsDir(cmd *cobra.Command) error {
	f := cmd.Flags().Lookup("hosts-dir")
	if f == nil || !f.Changed {
		return nil
	}
	st, err := os.Stat(f.Value.String())
	if err == nil && !st.IsDir() {
		return badUsage("--hosts-dir %s is not a directory", f.Value)
	}
	if err != nil {
		return badUsage("--hosts-dir %q cannot be used: %w", f.Value.String(), err)
	}
	return nil
}

// onePlatform reads what that flag was given; nil is this machine's.
func onePlatform(flag string) (*ocispec.Platform, error) {
	if flag == "" {
		return nil, nil
	}
	list, err := parsePlatforms([]string{flag})
	if err != nil {
		return nil, err
	}
	return &list[0], nil
}

// addHosts adds the flags that say how registries are reached.
func addHosts(cmd *cobra.Command, cfg *remote.HostsConfig) {
	f := cmd.Flags()
	f.StringVar(&cfg.CertsDir, "hosts-dir", remote.DefaultCertsDir, "`directory` with HOST/hosts.toml, as containerd reads it")
	f.BoolVar(&cfg.PlainHTTP, "plain-http", false, "speak http to registries that hosts.toml says nothing about")
}

// dockerHosts gives hosts in the form that containerd's resolver takes.
func dockerHosts(h *remote.HostSet) docker.RegistryHosts {
	return func(host string) ([]docker.RegistryHost, error) {
		return h.RegistryHosts(reference.Spec{Locator: host + "/"})
	}
}
