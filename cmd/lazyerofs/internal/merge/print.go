package merge

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/docker/go-units"
)

// Print writes for people what was made and how it is mounted.
func (r *Report) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "DEVICE\tLAYER\tSIZE\tDIFF ID")
	var data int64
	for _, d := range r.Devices {
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\n", d.Slot, d.Layer, units.HumanSize(float64(d.Size)), d.DiffID)
		data += d.Size
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	_, err := fmt.Fprintf(w, "%s: %s of metadata for %s (%s), %d files in %s of image data, %s read from layers\n\n%s\n",
		r.Output, units.HumanSize(float64(r.Size)), r.Image, r.Platform, r.Inodes,
		units.HumanSize(float64(data)), units.HumanSize(float64(r.Fetched)), r.mountCommand())
	if err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	return nil
}

// mountCommand is what to type, as far as it is known where the data is.
func (r *Report) mountCommand() string {
	options := []string{"ro"}
	for _, d := range r.Devices {
		file := d.File
		if file == "" {
			file = fmt.Sprintf("DEVICE%d", d.Slot)
		}
		options = append(options, "device="+file)
	}
	return "mount -t erofs -o " + strings.Join(options, ",") + " " + r.Output + " DIR"
}
