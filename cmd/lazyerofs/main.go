package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
)

// Exit codes, as --help says them.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitPlatform    = 3
	exitCredentials = 4
	exitRefused     = 5
	exitNoSpace     = 6
)

// version is set by the linker; without it the build information says it.
var version string

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run executes the command line and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	started := false
	root := newRootCmd()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		started = true
		if err := checkHostsDir(cmd); err != nil {
			return err
		}
		// What libraries log on the way is for daemons; a command speaks in errors.
		return log.SetLevel("error")
	}
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("interrupted: %w", err)
	}
	if _, werr := fmt.Fprintln(stderr, "lazyerofs:", err); werr != nil {
		return exitError
	}
	// Cobra refuses unknown commands, flags and arguments before it starts a
	// command; everything after that is about the work.
	if !started {
		return exitUsage
	}
	return exitCode(err)
}

// usageError is about what was typed and not about the work.
type usageError struct{ error }

// Unwrap gives what errors.Is looks for.
func (u usageError) Unwrap() error { return u.error }

func badUsage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// exitCode tells scripts what went wrong.
func exitCode(err error) int {
	var usage usageError
	switch {
	case errors.As(err, &usage), errors.Is(err, converter.ErrLocation):
		return exitUsage
	case errors.Is(err, converter.ErrPlatform):
		return exitPlatform
	case errors.Is(err, converter.ErrCredentials):
		return exitCredentials
	case errors.Is(err, converter.ErrRefused):
		return exitRefused
	case errors.Is(err, converter.ErrNoSpace):
		return exitNoSpace
	}
	return exitError
}

// completeWith makes shells offer the values of a flag.
func completeWith(cmd *cobra.Command, flag string, values ...cobra.Completion) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag is not there: a mistake in this program
	}
}

func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "lazyerofs",
		Short: "container images that start before they are downloaded",
		Long: `lazyerofs makes and uses container images whose layers are mounted straight from
the registry: what is read is fetched, verified and kept.

Exit codes: 0 success, 1 failure, 2 wrong usage, 3 no image for the platform,
4 credentials refused, 5 refused by the registry, 6 no space left.`,
		Version:       fmt.Sprintf("%s (zstd by %s)", buildVersion(), differ.ZstdEncoder),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(commands()...)
	return root
}

// commands is the one list of verbs, each in a file of its own.
func commands() []*cobra.Command {
	return []*cobra.Command{
		newConvertCmd(),
		newExportCmd(),
		newMountCmd(),
		newUmountCmd(),
		newInspectCmd(),
		newMergeCmd(),
		newVerifyCmd(),
		newDoctorCmd(),
	}
}

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
