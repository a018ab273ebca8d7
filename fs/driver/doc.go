// Package driver makes kernel reads of missing ranges reach us.
package driver
