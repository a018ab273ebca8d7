//go:build guest

package drivertest

import "time"

// deadline bounds every wait for something that must happen. A guest without KVM
// is ten times slower than its host, or more.
const deadline = 5 * time.Minute
