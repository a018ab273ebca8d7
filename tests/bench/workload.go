package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// readerVerb makes this program a reader: it takes one job from standard input
// and answers with samples on standard output. Reads are timed in a process of
// their own, because one that serves a mount must not read from it, and because
// a reader that waits for a driver can be killed.
const readerVerb = "read"

// readerTimeout bounds one job.
const readerTimeout = 5 * time.Minute

// job is what a reader is to do below Root.
type job struct {
	Kind    string   `json:"kind"`
	Root    string   `json:"root"`
	Paths   []string `json:"paths"`   // below Root
	Readers int      `json:"readers"` // at once; 0 is one
	Reads   int      `json:"reads"`   // of all readers together
	Seed    uint64   `json:"seed"`
}

// sample is one timing.
type sample struct {
	Name  string        `json:"name"`
	Took  time.Duration `json:"took_ns"`
	Ops   int64         `json:"ops"`
	Bytes int64         `json:"bytes"`
}

// Kinds of jobs.
const (
	kindSequential = "sequential" // whole files, 1 MiB at a time
	kindRandom     = "random"     // single pages of files
	kindPages      = "pages"      // the same while the data file is in the page cache
	kindStream     = "stream"     // whole files while the data file is in the page cache
	kindWalk       = "walk"       // lstat of every file, twice
	kindExec       = "exec"       // a program with an argument
)

// kinds are the functions that do the jobs.
var kinds = map[string]func(context.Context, job) ([]sample, error){
	kindSequential: sequential,
	kindRandom:     random,
	kindPages:      cached(random),
	kindStream:     cached(sequential),
	kindWalk:       walk,
	kindExec:       execute,
}

// serveJob is the reader process.
func serveJob(ctx context.Context, in io.Reader, out io.Writer) error {
	var j job
	if err := json.NewDecoder(in).Decode(&j); err != nil {
		return fmt.Errorf("reading the job: %w", err)
	}
	do := kinds[j.Kind]
	if do == nil {
		return fmt.Errorf("no job is named %q", j.Kind)
	}
	samples, err := do(ctx, j)
	if err != nil {
		return fmt.Errorf("%s below %s: %w", j.Kind, j.Root, err)
	}
	return json.NewEncoder(out).Encode(samples)
}

// reader runs a job in a process of its own.
func reader(ctx context.Context, j job) ([]sample, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding our own binary: %w", err)
	}
	in, err := json.Marshal(j)
	if err != nil {
		return nil, fmt.Errorf("encoding a job: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, readerTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, readerVerb)
	var out, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("reader: %w: %s", errors.Join(err, context.Cause(ctx)), stderr.String())
	}
	var samples []sample
	if err := json.Unmarshal(out.Bytes(), &samples); err != nil {
		return nil, fmt.Errorf("reading what a reader found: %w", err)
	}
	return samples, nil
}
