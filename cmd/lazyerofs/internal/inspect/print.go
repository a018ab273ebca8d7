package inspect

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Print writes what was found for people.
func (i *Image) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	verdict := "loads lazily"
	if !i.Lazy {
		verdict = "does not load lazily"
	}
	lines := []string{
		fmt.Sprintf("%s\n%s, %s: %s\n", i.Ref, i.Digest, i.Platform, verdict),
		"LAYER\tSTORED\tIMAGE\tMETADATA\tINDEX\tCHUNKS\tINODES\tKERNEL",
	}
	for _, l := range i.Layers {
		if !l.Lazy {
			lines = append(lines, fmt.Sprintf("%s\t%s\tnot lazy: %s", short(l.Digest), Bytes(l.Size), l.Reason))
			continue
		}
		lines = append(lines, strings.Join([]string{
			short(l.Digest), Bytes(l.Size), Bytes(l.ImageSize),
			fmt.Sprintf("%s (%s stored)", Bytes(l.MetaSize), Bytes(l.MetaStored)),
			Bytes(l.IndexSize), fmt.Sprint(l.Chunks), fmt.Sprint(l.Inodes), l.Kernel + "+",
		}, "\t"))
	}
	lines = append(lines, fmt.Sprintf("total\t%s\t%s\t%s", Bytes(i.Size), Bytes(i.ImageSize), Bytes(i.MetaSize)))
	for _, l := range i.Layers {
		if l.Verity != "" {
			lines = append(lines, fmt.Sprintf("%s\t%s\tdm-verity root %s", short(l.Digest), Bytes(l.VeritySize), l.Verity))
		}
	}
	for _, l := range lines {
		if _, err := fmt.Fprintln(t, l); err != nil {
			return fmt.Errorf("printing: %w", err)
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	return nil
}

// short cuts a digest to what tells layers apart.
func short(d string) string {
	if _, hex, ok := strings.Cut(d, ":"); ok && len(hex) > 12 {
		return hex[:12]
	}
	return d
}

// Bytes writes a size for people, in decimal units as registries do.
func Bytes(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%d B", n)
}
