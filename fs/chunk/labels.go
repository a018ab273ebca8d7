package chunk

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseRange reads the value of AnnotationIndexRange, "offset:end" or "offset",
// and returns the blob range it means. Without an end it runs to the end of the
// blob. A range that is empty or not inside [0, blobSize) is an error.
func ParseRange(s string, blobSize int64) (Extent, error) {
	first, second, found := strings.Cut(s, ":")
	off, err := parseOffset(first)
	if err != nil {
		return Extent{}, fmt.Errorf("parsing range %q: %w", s, err)
	}
	end := blobSize
	if found {
		if end, err = parseOffset(second); err != nil {
			return Extent{}, fmt.Errorf("parsing range %q: %w", s, err)
		}
	}
	if off >= end || end > blobSize {
		return Extent{}, fmt.Errorf("parsing range %q: [%d, %d) is empty or outside a blob of %d bytes", s, off, end, blobSize)
	}
	return Extent{Off: off, Len: end - off}, nil
}

// FormatRange writes e as AnnotationIndexRange has it.
func FormatRange(e Extent) string { return formatPair(e.Off, e.End()) }

// ParseEnds reads the value of LabelPinned or LabelPrefetch, "imageEnd:blobEnd":
// image data [0, imageEnd) is stored in blob [0, blobEnd).
func ParseEnds(s string) (imageEnd, blobEnd int64, err error) {
	first, second, found := strings.Cut(s, ":")
	if !found {
		return 0, 0, fmt.Errorf("parsing ends %q: want imageEnd:blobEnd", s)
	}
	if imageEnd, err = parseOffset(first); err != nil {
		return 0, 0, fmt.Errorf("parsing ends %q: %w", s, err)
	}
	if blobEnd, err = parseOffset(second); err != nil {
		return 0, 0, fmt.Errorf("parsing ends %q: %w", s, err)
	}
	return imageEnd, blobEnd, nil
}

// FormatEnds writes LabelPinned or LabelPrefetch.
func FormatEnds(imageEnd, blobEnd int64) string { return formatPair(imageEnd, blobEnd) }

func formatPair(a, b int64) string {
	return strconv.FormatInt(a, 10) + ":" + strconv.FormatInt(b, 10)
}

// parseOffset reads an unsigned decimal that fits an int64, without a sign.
func parseOffset(s string) (int64, error) {
	v, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%q is not a byte offset", s)
	}
	return int64(v), nil
}
