package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/lazyerofs/lazyerofs/cmd/internal/config"
	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/doctor"
	"github.com/lazyerofs/lazyerofs/fs/driver/all"
)

// noKeeper stands where drivers are only probed: nothing is mounted, so there
// is nothing to keep.
type noKeeper struct{}

func (noKeeper) Put(string, *os.File) error { return errors.New("doctor keeps no descriptors") }
func (noKeeper) Remove(string) error        { return nil }

func newDoctorCmd() *cobra.Command {
	var (
		cfg    doctor.Config
		file   string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "say what this machine can do for lazy layers, and why not",
		Example: `  lazyerofs doctor
  lazyerofs doctor --json | jq .driver`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			configured(cmd, &cfg, file)
			drivers, err := all.New(cmd.Context(), all.Config{Keeper: noKeeper{}})
			if err != nil {
				return err
			}
			for _, d := range drivers {
				cfg.Drivers = append(cfg.Drivers, d)
			}
			report, err := doctor.Run(cmd.Context(), cfg)
			for _, d := range drivers {
				err = errors.Join(err, d.Shutdown(cmd.Context()))
			}
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(report)
			} else {
				err = report.Print(cmd.OutOrStdout())
			}
			if err != nil {
				return fmt.Errorf("printing the report: %w", err)
			}
			if report.Driver == "" {
				return errors.New("no driver works here; see the reasons above")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "config", "", "configuration `file` of the daemon (default "+config.DefaultPath+" if it exists)")
	f.StringVar(&cfg.CacheDir, "root", "", "state `directory` of the daemon, whose file system decides what works (default as configured)")
	f.StringVar(&cfg.Address, "address", "", "`socket` of the daemon (default as configured)")
	f.StringVar(&cfg.ContainerdConfig, "containerd-config", "/etc/containerd/config.toml", "containerd's configuration `file`")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// configured completes cfg with what the daemon's configuration says. Flags win, as
// they do there.
func configured(cmd *cobra.Command, cfg *doctor.Config, file string) {
	c, err := config.Load(file)
	if err == nil {
		err = c.Check()
	}
	if err != nil {
		cfg.Configuration = err
		c = config.Default()
	}
	cfg.Force, cfg.Forbid = c.Driver.Name, c.Driver.Forbid
	if !cmd.Flags().Changed("root") {
		cfg.CacheDir = c.Root
	}
	if !cmd.Flags().Changed("address") {
		cfg.Address = c.Address
	}
}
