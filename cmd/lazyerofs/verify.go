package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/progress"
	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/verify"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// verifyFlags are the options of verify.
type verifyFlags struct {
	hosts     remote.HostsConfig
	platforms []string
	jobs      int
	workDir   string
	asJSON    bool
	quiet     bool
}

func newVerifyCmd() *cobra.Command {
	var o verifyFlags
	cmd := &cobra.Command{
		Use:   "verify IMAGE",
		Short: "check a whole image against its digests and the strict parser",
		Long: `Read all of IMAGE and check it end to end: every index, manifest and config against
its digest, every layer against its digest, size and diff id, and of native
EROFS layers the chunk index, every chunk, the dm-verity hash tree, the annotations
and, by the rules of a mount, the metadata. IMAGE is written as for convert.

Each fault is one sentence on standard error; with any, the exit code is 1.`,
		Example: `  lazyerofs verify registry.example.com/app:lazy
  lazyerofs verify --json oci:layout:lazy | jq '.faults[].text'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return verifyImage(cmd.Context(), &o, args[0], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	addHosts(cmd, &o.hosts)
	f.StringSliceVar(&o.platforms, "platform", nil, "check only this `os/arch[/variant]` of an index; may be repeated (default all)")
	f.IntVar(&o.jobs, "jobs", 0, "check this `many` layers at once (default 2)")
	f.StringVar(&o.workDir, "work-dir", "", "`directory` for temporary data (default $XDG_CACHE_HOME/lazyerofs/convert)")
	f.BoolVar(&o.asJSON, "json", false, "print the report as JSON")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress")
	return cmd
}

func verifyImage(ctx context.Context, o *verifyFlags, from string, stdout, stderr io.Writer) (err error) {
	cfg := verify.Config{Parallel: o.jobs}
	if cfg.Platforms, err = parsePlatforms(o.platforms); err != nil {
		return err
	}
	work, _, err := workDirs(o.workDir)
	if err != nil {
		return err
	}
	src, err := openSource(from, o.hosts, work)
	if err != nil {
		return err
	}
	defer closeInto(&err, src)
	cfg.Layers = src.layers
	var shown progress.Display
	if !o.quiet {
		shown = progress.New(stderr)
		cfg.Progress = shown.Show
	}
	report, err := verify.Run(ctx, cfg)
	if shown != nil {
		shown.Close()
	}
	if err != nil {
		return fmt.Errorf("verifying %s: %w", from, converter.NoSpace(err, work))
	}
	for _, f := range report.Faults {
		fmt.Fprintln(stderr, "lazyerofs: fault:", f.Text)
	}
	if o.asJSON {
		err = printJSON(stdout, report)
	} else {
		err = report.Print(stdout)
	}
	if err == nil && !report.Sound {
		err = fmt.Errorf("%s is not sound: %s", from, report.Count())
	}
	return err
}
