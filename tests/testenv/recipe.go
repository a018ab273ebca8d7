package testenv

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Step is one layer of an image: a shell script that changes the tree at $ROOT.
type Step struct {
	Name string // what the layer holds, for people
	// Script runs in a mount namespace and a pid namespace of its own with $ROOT
	// as described by Chroot. It needs no clean-up of mounts or processes.
	Script string
	// Chroot runs the script inside the tree, with /proc; else it runs outside
	// and finds the tree at $ROOT.
	Chroot bool
}

// Recipe is an image as the steps that make it, the lowest first.
type Recipe struct {
	Name  string
	Steps []Step
	Env   []string // of the image's configuration
	// Ready is a command that proves the image's workload: it exits with 0 after
	// it printed its result.
	Ready []string
}

// key identifies the layer that steps end in: the same steps give the same key.
func key(steps []Step) (string, error) {
	data, err := json.Marshal(steps)
	if err != nil {
		return "", fmt.Errorf("encoding a recipe: %w", err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:6]), nil
}

// clean takes away what apt leaves behind and what differs between two runs.
const clean = `
apt-get clean
rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/debconf/*-old /tmp/*
`

const install = `export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends `

// apt is the step that installs packages.
func apt(packages string) Step {
	return Step{Name: packages, Script: install + packages + " >/dev/null\n" + clean, Chroot: true}
}

// debian is the root file system of the suite that this machine runs, from the
// archive that its own sources name.
func debian(ctx context.Context) (Step, error) {
	root, err := Root()
	if err != nil {
		return Step{}, err
	}
	release, err := osRelease("/etc/os-release")
	if err != nil {
		return Step{}, err
	}
	id, suite := release["ID"], release["VERSION_CODENAME"]
	mirror, err := exec.CommandContext(ctx, filepath.Join(root, "tests/tools/apt-mirror.sh"), id).Output()
	if err != nil {
		return Step{}, fmt.Errorf("finding the archive of %s: %w", id, err)
	}
	components := "main"
	if id == "ubuntu" {
		components = "main,universe"
	}
	script := fmt.Sprintf("debootstrap --variant=minbase --components=%s %s \"$ROOT\" %s\nchroot \"$ROOT\" sh -ec '%s'\n",
		components, suite, strings.TrimSpace(string(mirror)), clean)
	return Step{Name: id + " " + suite, Script: script}, nil
}

// osRelease reads the assignments of an os-release(5) file.
func osRelease(file string) (map[string]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("finding out what this machine runs: %w", err)
	}
	defer f.Close()
	values := make(map[string]string)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok {
			values[name] = strings.Trim(value, `"'`)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	if values["ID"] == "" || values["VERSION_CODENAME"] == "" {
		return nil, fmt.Errorf("%s names no suite; images are built on Debian and Ubuntu", file)
	}
	return values, nil
}

// Python is a root file system with Python, numpy and scipy as the distribution
// packages them; its workload imports numpy.
func Python(ctx context.Context) (Recipe, error) {
	base, err := debian(ctx)
	return Recipe{
		Name:  "python",
		Steps: []Step{base, apt("python3"), apt("python3-numpy"), apt("python3-scipy")},
		Ready: []string{"python3", "-c", `import numpy; print("ready: numpy", numpy.__version__, int(numpy.arange(10).sum()))`},
	}, err
}

// GoToolchain is a root file system with the Go toolchain that this program's
// machine has; its workload lists the standard library.
func GoToolchain(ctx context.Context) (Recipe, error) {
	base, err := debian(ctx)
	if err != nil {
		return Recipe{}, err
	}
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT", "GOVERSION").Output()
	if err != nil {
		return Recipe{}, fmt.Errorf("finding the Go toolchain: %w", err)
	}
	fields := strings.Fields(string(out))
	if len(fields) != 2 {
		return Recipe{}, fmt.Errorf("finding the Go toolchain: go env printed %q", out)
	}
	copyTree := Step{Name: fields[1], Script: "mkdir -p \"$ROOT/usr/local\"\ncp -a " + fields[0] + " \"$ROOT/usr/local/go\"\n"}
	return Recipe{
		Name:  "go",
		Steps: []Step{base, apt("ca-certificates"), copyTree},
		Env:   []string{"PATH=/usr/local/go/bin:" + defaultPath, "HOME=/root", "GOTOOLCHAIN=local"},
		Ready: []string{"sh", "-c", "go version && go list std | wc -l"},
	}, nil
}

// nodePackages bring several thousand packages' files with what they depend on.
const nodePackages = "express@4 lodash@4 axios@1 webpack@5 typescript@5 react@18 react-dom@18 next@14 jest@29 eslint@8"

// Node is a root file system with node and a tree of npm packages; its workload
// loads three of them.
func Node(ctx context.Context) (Recipe, error) {
	r, err := NodeWith(ctx, "node", nodePackages)
	r.Ready = []string{"node", "-e", `require("express"); require("lodash"); require("axios"); console.log("ready: node", process.version)`}
	return r, err
}

// NodeWith is a root file system with node and what the named packages, as npm
// takes them, bring.
func NodeWith(ctx context.Context, name, packages string) (Recipe, error) {
	base, err := debian(ctx)
	npm := Step{Name: "npm packages", Chroot: true, Script: `export NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt
mkdir -p /srv/app
cd /srv/app
npm install --fetch-retries=1 --no-audit --no-fund --loglevel=error ` + packages + ` >/dev/null
rm -rf /root/.npm` + clean}
	return Recipe{
		Name:  name,
		Steps: []Step{base, apt("nodejs npm ca-certificates"), npm},
		Env:   []string{"PATH=" + defaultPath, "HOME=/root", "NODE_PATH=/srv/app/node_modules"},
	}, err
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
