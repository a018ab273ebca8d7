package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"
)

// wantDescriptors is what a daemon needs: an event of a pre-content group
// holds one descriptor until it is answered.
const wantDescriptors = 65536

// setup checks what a node needs around the kernel.
func setup(c Config) []Check {
	return []Check{
		check("configuration", c.Configuration),
		check("root", isRoot()),
		check("descriptors", descriptorLimit()),
		check("runc", inPath("runc", "install it with the distribution's package manager; containers need it")),
		check("daemon", daemonSocket(c.Address)),
		check("containerd", containerdKnows(c.ContainerdConfig)),
	}
}

func isRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("mounting EROFS and fanotify need root; run as root")
	}
	return nil
}

func descriptorLimit() error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("asking for the limit of open files: %w", err)
	}
	if l.Max < wantDescriptors {
		return fmt.Errorf("the hard limit is %d open files; raise it to %d (LimitNOFILE= of the unit)", l.Max, wantDescriptors)
	}
	return nil
}

func inPath(name, remedy string) error {
	if _, err := exec.LookPath(name); err != nil {
		return fmt.Errorf("not in $PATH: %s", remedy)
	}
	return nil
}

func daemonSocket(address string) error {
	st, err := os.Stat(address)
	if err != nil {
		return fmt.Errorf("no daemon listens at %s; start lazyerofsd, or pass --address", address)
	}
	if st.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%s is not a socket", address)
	}
	return nil
}

// containerdFile is as much of containerd's configuration as is looked at.
type containerdFile struct {
	Imports      []string `toml:"imports"`
	ProxyPlugins map[string]struct {
		Type string `toml:"type"`
	} `toml:"proxy_plugins"`
}

// containerdKnows looks for our proxy plugins in containerd's configuration
// and the files that it imports.
func containerdKnows(path string) error {
	seen := map[string]bool{}
	found := map[string]bool{}
	if err := readContainerd(path, seen, found); err != nil {
		return err
	}
	for _, plugin := range []string{"lazyerofs", "lazyerofs-diff"} {
		if !found[plugin] {
			return fmt.Errorf("proxy plugin %q is not in %s; add deploy/containerd/lazyerofs.toml to its imports", plugin, path)
		}
	}
	return nil
}

func readContainerd(path string, seen, found map[string]bool) error {
	if seen[path] {
		return nil
	}
	seen[path] = true
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading containerd's configuration: %w", err)
	}
	var f containerdFile
	if err := toml.Unmarshal(b, &f); err != nil {
		return fmt.Errorf("decoding %s: %w", path, err)
	}
	for name := range f.ProxyPlugins {
		found[name] = true
	}
	for _, imp := range f.Imports {
		if !filepath.IsAbs(imp) {
			imp = filepath.Join(filepath.Dir(path), imp)
		}
		files := []string{imp}
		if strings.ContainsAny(imp, "*?[") {
			if files, err = filepath.Glob(imp); err != nil {
				return fmt.Errorf("imports of %s: %w", path, err)
			}
		}
		for _, file := range files {
			if err := readContainerd(file, seen, found); err != nil {
				return err
			}
		}
	}
	return nil
}
