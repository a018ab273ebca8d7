// Command bench measures cold starts: for every image, line and system, the
// time to pull, to create and run, and until the workload has ended, with the
// bytes that went over the line. The systems take turns within a round, so that
// whatever else the machine does falls on all of them; medians are reported.
//
// Results go to standard output as a table and to tests/bench/results as JSON
// with what they were measured on. Another system is one more coldstart.System
// in main.go, another workload one more recipe.
package main
