package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/vm"
)

const nonce = "n"

// install makes a shell script the test binary of a package.
func install(t *testing.T, root, pkg, script string) {
	t.Helper()
	dir := filepath.Join(root, pkg)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "test"), []byte("#!/bin/sh\n"+script), 0o755))
}

func TestRunsAndVerdict(t *testing.T) {
	root := t.TempDir()
	install(t, root, "p/good", `echo "--- PASS: T (0.00s)"; echo "$PWD $* $EXTRA"; printf "half a line"`)
	install(t, root, "p/bad", `echo oops >&2; exit 3`)
	install(t, root, "p/killed", `kill -9 $$`)
	var out bytes.Buffer
	r := &runner{out: &out, nonce: nonce, root: root}
	r.run(vm.Run{Package: "p/good", Args: []string{"-x"}, Env: []string{"EXTRA=more"}, Timeout: time.Minute})
	r.run(vm.Run{Package: "p/bad"})
	r.run(vm.Run{Package: "p/killed"})
	r.run(vm.Run{Package: "p/none"})
	r.say("done")
	require.NoError(t, r.err)

	v, err := vm.ParseVerdict(&out, nonce)
	require.NoError(t, err)
	require.Len(t, v.Outcomes, 4)
	good := v.Outcomes[0]
	require.NoError(t, good.Err())
	require.Contains(t, good.Output(), filepath.Join(root, "p/good")+" -test.v -test.timeout=1m0s -x more\n")
	require.Contains(t, good.Output(), "half a line\n")
	require.Positive(t, good.Took)
	require.Equal(t, 3, v.Outcomes[1].Exit)
	require.Contains(t, v.Outcomes[1].Output(), "oops")
	require.Equal(t, -1, v.Outcomes[2].Exit)
	require.Equal(t, -1, v.Outcomes[3].Exit)
	require.Len(t, v.Trouble, 1)
	require.Contains(t, v.Trouble[0], "p/none")
}

// broken is a port that takes nothing.
type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("no port") }

func TestAVerdictThatCannotBeWritten(t *testing.T) {
	r := &runner{out: broken{}, nonce: nonce}
	r.say("done")
	require.ErrorContains(t, r.err, "no port")
}

func TestPlanFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "plan")
	_, err := readPlan(file)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(file, []byte("{"), 0o600))
	_, err = readPlan(file)
	require.ErrorContains(t, err, "reading the plan")
	require.NoError(t, os.WriteFile(file, []byte(`{"Nonce":"n","Runs":[{"Package":"p"}]}`), 0o600))
	p, err := readPlan(file)
	require.NoError(t, err)
	require.Equal(t, vm.Plan{Nonce: "n", Runs: []vm.Run{{Package: "p"}}}, p)
}

func TestModulesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, loadModules(dir))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "101-x.ko"), []byte("rubbish"), 0o600))
	require.ErrorContains(t, loadModules(dir), "101-x.ko")
	require.Error(t, loadModules(filepath.Join(dir, "none")))
}

func TestOneLine(t *testing.T) {
	require.False(t, strings.Contains(oneLine(errors.Join(errors.New("a"), errors.New("b"))), "\n"))
}
