package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// BuildKit is a buildkitd of our own, which builds in a containerd.
type BuildKit struct {
	dir, state string
	cgroup     string
	address    string
	buildctl   string
	proc       *process
}

// StartBuildKit starts the pinned buildkitd with everything below dir, which it
// creates, and returns when it serves. It builds in c, with our snapshotter, and
// speaks plain HTTP to registries.
func StartBuildKit(ctx context.Context, dir string, c *Containerd, registries ...string) (*BuildKit, error) {
	buildkitd, err := Tool("buildkitd")
	if err != nil {
		return nil, err
	}
	buildctl, err := Tool("buildctl")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("preparing buildkitd: %w", err)
	}
	plain := table{}
	for _, r := range registries {
		plain[r] = table{"http": true}
	}
	state, err := NewState()
	if err != nil {
		return nil, err
	}
	b := &BuildKit{
		dir: dir, state: state, cgroup: c.Namespace + "/buildkit",
		address: filepath.Join(state, "b.sock"), buildctl: buildctl,
	}
	config := filepath.Join(dir, "buildkitd.toml")
	if err := writeTOML(config, table{
		"root": filepath.Join(dir, "root"),
		"grpc": table{"address": []any{"unix://" + b.address}},
		// In the network of the host: another would need the programs of CNI.
		"worker": table{"oci": table{"enabled": false}, "containerd": table{
			"enabled": true, "address": c.Address, "namespace": c.Namespace, "snapshotter": "lazyerofs",
			"networkMode": "host", "defaultCgroupParent": c.Namespace,
		}},
		"otel":     table{"socketPath": filepath.Join(state, "o.sock")},
		"registry": plain,
	}); err != nil {
		return nil, errors.Join(err, os.Remove(state))
	}
	if b.proc, err = startProcess(filepath.Join(dir, "buildkitd.log"), buildkitd, "--config", config); err != nil {
		return nil, errors.Join(err, os.Remove(state))
	}
	if err := waitSocket(ctx, b.address, b.proc); err != nil {
		return nil, errors.Join(err, b.Stop())
	}
	return b, nil
}

// Build builds the Dockerfile in a directory, with that as its context, and pushes
// what comes out to ref.
func (b *BuildKit) Build(ctx context.Context, dir, ref string) error {
	cmd := exec.CommandContext(ctx, b.buildctl, "--addr", "unix://"+b.address, "build", "--progress", "plain",
		"--frontend", "dockerfile.v0", "--local", "context="+dir, "--local", "dockerfile="+dir,
		"--output", "type=image,push=true,name="+ref)
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+b.dir) // nobody's credentials
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, tail(out.String(), 20))
	}
	return nil
}

// Stop ends buildkitd. What it made in containerd goes with that.
func (b *BuildKit) Stop() error {
	return errors.Join(b.proc.stop(), UnmountAll(b.dir), os.RemoveAll(b.state), removeCgroups(b.cgroup))
}
