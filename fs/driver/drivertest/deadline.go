//go:build !guest

package drivertest

import "time"

// deadline bounds every wait for something that must happen.
const deadline = 30 * time.Second
